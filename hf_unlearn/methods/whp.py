# SPDX-License-Identifier: Apache-2.0
"""Who's Harry Potter (https://huggingface.co/papers/2310.02238): fine-tuning on generic predictions."""

from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_choice, check_number
from ..data.role_table import FORGET
from ..forward.needs import REFERENCE, Need
from ..fused import TileRows
from ..losses import whp_rows, whp_targets
from ..training.config import UnlearnConfig
from .label_rows import LabelRowsTrainer


# The name of the model that was trained further on the forget rows, in `ref_models`.
REINFORCED = "reinforced"
TARGETS = ("softmax", "argmax")


@dataclass
class WHPConfig(UnlearnConfig):
    """Settings of [`WHPTrainer`]. Published without retain rows, for two epochs at a learning rate of 1e-6 after three
    epochs of reinforcement at 3e-6."""

    reinforced_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Model trained further on the forget rows: a path or Hub id, an adapter too. `method: retrain` "
            "with `train_on: forget` trains one."
        },
    )
    alpha: float = field(
        default=5.0,
        metadata={"help": "How much the logits that the reinforced model raises are lowered, 0 or more."},
    )
    whp_target: str = field(
        default="softmax",
        metadata={"help": "Target of a token: the generic prediction (`softmax`), or its likeliest token (`argmax`)."},
    )

    def __post_init__(self):
        check_number("alpha", self.alpha, at_least=0)
        check_choice("whp_target", self.whp_target, TARGETS)
        super().__post_init__()


@dataclass(frozen=True)
class Generic:
    """Cross-entropy with generic predictions.

    Args:
        alpha (`float`): see [`~hf_unlearn.losses.whp_targets`].
        hard (`bool`): their likeliest token alone.
    """

    alpha: float
    hard: bool

    def __call__(self, logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
        generic = whp_targets(at.ref_logits, at.others[REINFORCED], self.alpha)
        altered = (generic.argmax(-1) != at.ref_logits.argmax(-1)).to(generic.dtype)
        return whp_rows(logits, generic, self.hard), {"logps": -at.nll(logits.detach()), "altered": altered}


class WHPTrainer(LabelRowsTrainer):
    """Fine-tuning on what the model would predict had it not seen the forget rows: its own prediction, with the tokens
    lowered that a model reinforced on these rows raises. See [`~hf_unlearn.losses.whp_targets`].

    The reinforced model is `ref_models={"reinforced": ...}` or `reinforced_model_name_or_path`. Both frozen models
    read the forget rows once, before training, where their predictions can be kept on disk. `forget/altered` in the
    log is the share of tokens whose likeliest prediction the reinforced model alters: at 0 there is nothing to learn.
    """

    config_class = WHPConfig
    method = "whp"
    paper = "2310.02238"

    @classmethod
    def needs_of(cls, args: WHPConfig):
        generic = Generic(args.alpha, args.whp_target == "argmax")
        return {**super().needs_of(args), FORGET: Need(generic, reference=(REFERENCE, REINFORCED))}

    @classmethod
    def ref_models_of(cls, args: WHPConfig) -> dict[str, str]:
        given = args.reinforced_model_name_or_path
        return {} if given is None else {REINFORCED: given}
