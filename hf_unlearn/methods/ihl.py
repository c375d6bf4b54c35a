# SPDX-License-Identifier: Apache-2.0
"""The inverted hinge loss of LoKU (https://huggingface.co/papers/2408.06621)."""

from dataclasses import dataclass

from ..data.role_table import FORGET
from ..forward.needs import Need
from ..losses import ihl_rows
from ..training.config import UnlearnConfig
from .label_rows import LabelRowsTrainer, OfLabels


@dataclass
class IHLConfig(UnlearnConfig):
    """Settings of [`IHLTrainer`]; the loss has none. The paper's retain term is `nll` of weight 1."""


class IHLTrainer(LabelRowsTrainer):
    """Lowers a label's probability and raises that of the likeliest other token; bounded. See
    [`~hf_unlearn.losses.ihl_rows`]. LoKU is this with `lora_init: fila` (see
    docs/addons.md)."""

    config_class = IHLConfig
    method = "ihl"
    paper = "2408.06621"

    @classmethod
    def needs_of(cls, args: IHLConfig):
        return {**super().needs_of(args), FORGET: Need(OfLabels(ihl_rows))}
