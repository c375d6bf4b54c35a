# SPDX-License-Identifier: Apache-2.0
"""What penalties share that compare the adapter that trains with saved ones."""

from collections.abc import Iterable

from torch import nn

from ..models.adapter_factors import STARTS_APART, Factors, check_lora_folder, check_shared, saved_factors
from .addon import WEIGHTS, AddOn


def check_adapters(field: str, folders: Iterable[str], lora_init: str) -> None:
    """Raises `ValueError` for folders without a LoRA adapter, or an own adapter that starts at a part of the weights;
    reads no weights."""
    if lora_init != "default":
        raise ValueError(STARTS_APART.format(field, f"lora_init={lora_init!r}"))
    for folder in folders:
        check_lora_folder(field, folder)


class OtherAdapters(AddOn):
    """An add-on that compares adapters; its `title` is the setting that names their folders."""

    requires = frozenset({WEIGHTS})

    def refuse(self, args, method: type, adapter: bool) -> None:
        """Raises `ValueError` without an adapter."""
        if not adapter:
            raise ValueError(
                f"{self.title} compares adapters, and this run has none. Pass a `peft_config` (`use_peft: true` in a "
                "recipe), or leave it out."
            )

    def read(self, folder: str, model: nn.Module) -> dict[str, Factors]:
        """The factors of a saved adapter, of the layers that the model's has too. Raises `ValueError` if there are
        none, or of other sizes."""
        return check_shared(self.title, folder, saved_factors(folder), model)
