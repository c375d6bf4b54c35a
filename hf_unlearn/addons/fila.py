# SPDX-License-Identifier: Apache-2.0
r"""FILA, where an adapter starts: at the part of the weights that forget rows depend on more than retain rows do
(LoKU, https://huggingface.co/papers/2408.06621).

With F the mean square of single rows' gradients of the negative log-likelihood, \\( I = F_f / (F_r + 10^{-5}) \\) and
\\( d_i = \sqrt{\sum_j I_{ij}} \\), the singular values \\( \mathrm{diag}(d) W = U S V^T \\) of largest size give
\\( A = (S / s)^{1/2} V^T \\) and \\( B = \mathrm{diag}(d + 10^{-5})^{-1} U (S / s)^{1/2} \\), s the adapter's scaling.
The weights below keep the residual \\( W - s B A \\), so that the model says at first what it said.
"""

import logging
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checks import check_choice, check_whole
from ..models.adapter_start import begin_at, lora_layers
from ..models.adapters import trained_adapter
from ..stored.row_cache import RunStart
from .addon import WEIGHTS, AddOn
from .cost import Cost, Sizes
from .masks.scores import EPSILON, Alone, Scorer
from .settings import AddOnSettings, check_idle


logger = logging.getLogger(__name__)
LORA_INITS = ("default", "fila")


@dataclass
class LoraInitArguments(AddOnSettings):
    """Settings of where an adapter starts; as PEFT has it by default."""

    lora_init: str = field(
        default="default",
        metadata={
            "help": "Where a fresh LoRA adapter starts: `default` (its config's `init_lora_weights`), or `fila`, at "
            "what forget rows depend on more than retain rows do."
        },
    )
    lora_init_rows: int | None = field(
        default=None, metadata={"help": "With `fila`: rows of each role that this is computed from; all by default."}
    )

    def check_addon(self) -> None:
        """Raises `ValueError` for settings that cannot work or would have no effect."""
        check_choice("lora_init", self.lora_init, LORA_INITS)
        check_whole("lora_init_rows", self.lora_init_rows, at_least=1)
        if self.lora_init == "default":
            check_idle(self, LoraInitArguments, "give `lora_init: fila`")

    def make_addon(self):
        """FILA, or `None`."""
        return None if self.lora_init == "default" else FILA(self.lora_init_rows)


class FILA(AddOn):
    """Starts the adapter as the formula above says.

    Args:
        rows (`int`, *optional*): of each role, from which the importance is computed; all by default.
    """

    name, title = "lora_init", "FILA (lora_init)"
    requires = frozenset({WEIGHTS})
    language_models_only = True

    def __init__(self, rows: int | None):
        self.rows = rows

    def refuse(self, args, method: type, adapter: bool) -> None:
        """Raises `ValueError` without an adapter."""
        if not adapter:
            raise ValueError(
                "lora_init='fila' is where a LoRA adapter starts, and this run has none. Pass a `peft_config` "
                "(`use_peft: true` in a recipe), or leave `lora_init` out."
            )

    def load(self, roles: Mapping, collator) -> None:
        """Raises `ValueError` if there are no rows of one kind."""
        if missing := [role for role in ("forget", "retain") if role not in roles]:
            raise ValueError(
                f"lora_init='fila' compares forget rows with retain rows, and this run has no {missing[0]} rows. Give "
                "them, or leave `lora_init` out."
            )

    def start_adapter(self, entry, added) -> None:
        """Computes the start, the same on every process, and takes it out of the weights below."""
        if added is None:
            raise ValueError(
                "lora_init='fila' is where a fresh adapter starts, and the model came with one. Merge it first "
                "(`merge_and_unload()`) and pass a `peft_config`, or leave `lora_init` out."
            )
        model = entry.model
        layers = lora_layers(model)
        if getattr(model, "hf_device_map", None) is None:
            # Where Trainer would put it.
            model.to(entry.args.device)
        weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
        start = RunStart(model, model, Alone(entry.args.device), 0, None)
        with _requiring_gradients(weights.values()):
            importance = Scorer(entry, start, weights, self.rows).scores("fisher")
        adapter, factors = trained_adapter(model), {}
        for name, layer in layers.items():
            transposed = layer.fan_in_fan_out
            pair = (value.T if transposed else value for value in (weights[name].detach(), importance.pop(name)))
            factors[name] = low_rank(*pair, rank=layer.r[adapter], scaling=layer.scaling[adapter])
        begin_at(model, factors)
        logger.info("FILA: the adapter starts at a part of %d layers' weights, which keep the rest.", len(layers))

    def cost(self, sizes: Sizes) -> Cost:
        """Before the first step: two sums, and a gradient and its square."""
        return Cost(start=16 * sizes.below)

    def state(self) -> dict[str, Any]:
        """What decided the start; the start itself is in the adapter's files."""
        return {"init": "fila", "rows": self.rows}

    def load_state(self, state: dict[str, Any]) -> None:
        """Raises `ValueError` if the checkpoint's adapter started otherwise."""
        if state["rows"] != self.rows:
            raise ValueError(
                f"The checkpoint was made with lora_init_rows={state['rows']}, and this run has {self.rows}. Give the "
                "same, or start anew."
            )


@torch.no_grad()
def low_rank(weight: Tensor, importance: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """The factors A `[r, in]` and B `[out, r]` of a weight `[out, in]`, by the formula above.

    Args:
        weight, importance (`Tensor`): `[out, in]`, float32.
        rank (`int`): r; where a weight has fewer singular values, the rest is 0.
        scaling (`float`): s, which the product is multiplied by.
    """
    rows = importance.sum(dim=1).sqrt()
    left, values, right = torch.linalg.svd(rows[:, None] * weight, full_matrices=False)
    roots = (values[:rank] / scaling).sqrt()
    a, b = weight.new_zeros(rank, weight.shape[1]), weight.new_zeros(weight.shape[0], rank)
    a[: len(roots)] = roots[:, None] * right[:rank]
    b[:, : len(roots)] = left[:, :rank] * roots / (rows + EPSILON)[:, None]
    return a, b


@contextmanager
def _requiring_gradients(weights):
    flags = [(weight, weight.requires_grad) for weight in weights]
    for weight, _ in flags:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight, flag in flags:
            weight.requires_grad_(flag)
