# SPDX-License-Identifier: Apache-2.0
"""Who's Harry Potter (https://huggingface.co/papers/2310.02238): fine-tuning on generic predictions."""

from dataclasses import dataclass, field

from torch import Tensor

from ..checks import check_choice, check_number
from ..data.anchors import anchored, labelled, read_anchors
from ..data.pairing import RolePairs
from ..data.role_table import FORGET, GENERIC
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
    anchors: str | None = field(
        default=None,
        metadata={
            "help": "JSON or YAML file of terms and generic terms in their place (`Harry: Jon`): generic predictions "
            "are then made from the forget rows with these replaced. Default: from the rows as they are."
        },
    )

    def __post_init__(self):
        check_number("alpha", self.alpha, at_least=0)
        check_choice("whp_target", self.whp_target, TARGETS)
        self.anchor_terms()
        super().__post_init__()

    def anchor_terms(self) -> dict[str, str]:
        """The terms of `anchors`, and what replaces them; none without."""
        return {} if self.anchors is None else read_anchors("anchors", self.anchors)


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

    With `anchors`, the model's own prediction is that of a row in which names are replaced by generic ones; the
    reinforced model reads the row as it is, and the model is trained on that. Both predict the tokens outside of
    names, and a name's first token where it stands for the first time (see [`~hf_unlearn.data.anchors.Anchors`]).
    """

    config_class = WHPConfig
    method = "whp"
    paper = "2310.02238"

    @classmethod
    def needs_of(cls, args: WHPConfig):
        generic = Generic(args.alpha, args.whp_target == "argmax")
        needs = super().needs_of(args)
        if args.anchors is None:
            return {**needs, FORGET: Need(generic, reference=(REFERENCE, REINFORCED))}
        stands = Need(generic, reference=(REFERENCE,), stands_for=FORGET)
        return {**needs, FORGET: Need(generic, reference=(REINFORCED,)), GENERIC: stands}

    @classmethod
    def check_early(cls, args: WHPConfig, roles, processor, config) -> None:
        if args.anchors is not None:
            cls._anchored(args, roles, processor)

    def check_rows(self, args: WHPConfig, roles, tokenizer) -> None:
        if args.anchors is not None:
            forget, generic = self._anchored(args, roles, tokenizer)
            there = labelled(forget)
            roles[FORGET] = roles[FORGET].select(there)
            self._replaced = {FORGET: forget.select(there), GENERIC: generic.select(there)}

    def make_pairs(self, roles, args: WHPConfig, processor) -> RolePairs:
        # Given are the rows with all their labels, by which add-ons score weights.
        replaced = {} if args.anchors is None else self._replaced
        return super().make_pairs({**roles, **replaced}, args, processor)

    @staticmethod
    def _anchored(args: WHPConfig, roles, tokenizer):
        return anchored(roles[FORGET], args.anchor_terms(), tokenizer, args.max_length)

    @classmethod
    def ref_models_of(cls, args: WHPConfig) -> dict[str, str]:
        given = args.reinforced_model_name_or_path
        return {} if given is None else {REINFORCED: given}
