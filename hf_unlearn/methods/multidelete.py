# SPDX-License-Identifier: Apache-2.0
"""MultiDelete (https://huggingface.co/papers/2311.12047), for classifiers of pictures with texts."""

import logging
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from ..checks import check_choice, check_left_out, check_number
from ..data.pairing import RolePairs
from ..data.role_table import FORGET, RETAIN
from ..families.base import CLASSIFIER
from ..families.classifier.pairs import PairForward, PairRows, derangement, vilt_of, with_texts_of
from ..forward.needs import REFERENCE, Need
from ..fused import TileRows
from ..losses import at_least_float32
from ..modeling import is_peft_model
from ..training.config import UnlearnConfig
from ..training.trainer import UnlearnTrainer
from .teacher import Taught, TeacherArguments


logger = logging.getLogger(__name__)

TEXTS_OF = (FORGET, RETAIN)


@dataclass
class MultiDeleteConfig(TeacherArguments, UnlearnConfig):
    """Settings of [`MultiDeleteTrainer`]; the published code has no weights, so the defaults are 1."""

    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("states",)

    md_weight: float = field(default=1.0, metadata={"help": "Weight of modality decoupling, on forget rows."})
    mkr_weight: float = field(default=1.0, metadata={"help": "Weight of multimodal retention, on retain rows."})
    ukr_weight: float = field(default=1.0, metadata={"help": "Weight of unimodal retention, on forget rows."})
    unrelated_from: str = field(
        default=FORGET,
        metadata={
            "help": "Texts that forget images are paired with: those of other `forget` rows, as in the published "
            "code, or of `retain` rows, as in the paper. If all forget rows ask the same, only the latter has "
            "an effect."
        },
    )
    retain_loss: str = field(default="states", metadata={"help": "Distance of fused states on retain rows: `states`."})

    def __post_init__(self):
        for name in ("md_weight", "mkr_weight", "ukr_weight"):
            check_number(name, getattr(self, name), at_least=0)
        check_choice("unrelated_from", self.unrelated_from, TEXTS_OF)
        names = ("forget_weight", "retain_weight", "poison_prefix", "value_norm_penalty")
        check_left_out(self, names, "MultiDelete has `md_weight`, `mkr_weight` and `ukr_weight`.")
        super().__post_init__()
        if self.per_device_train_batch_size < 2:
            raise ValueError("per_device_train_batch_size=1: a forget row takes another's text. Give at least 2.")


def likelihood(logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
    """What is logged beside the losses, which are of states."""
    nll = at.nll(logits)
    return nll, {"logps": -nll}


class MultiDeleteTrainer(Taught, UnlearnTrainer):
    r"""Mean squared distances from the frozen original \\( f \\).

    Modality decoupling, on forget rows: a pair gets the original's state for its image with the text of another row,
    \\( \| f'(I_i, T_i) - f(I_i, T_j) \|^2 \\), \\( j \neq i \\). Multimodal retention, on retain rows:
    \\( \| f'(I, T) - f(I, T) \|^2 \\). Unimodal retention, on forget rows:
    \\( \| f'_{img}(I_i) - f_{img}(I_i) \|^2 + \| f'_{txt}(T_i) - f_{txt}(T_i) \|^2 \\).

    For ViLT, \\( f \\) is the pooled state that the classifier reads, which itself is not trained; the unimodal states
    are the embeddings of patches and tokens.
    """

    config_class = MultiDeleteConfig
    method = "multidelete"
    families = (CLASSIFIER,)
    paper = "2311.12047"

    @classmethod
    def needs_of(cls, args: MultiDeleteConfig):
        need = Need(likelihood, reference=(REFERENCE,), compares=False, states=True)
        return dict.fromkeys((FORGET, RETAIN), need)

    def check_rows(self, args: MultiDeleteConfig, roles, processor) -> None:
        if len(roles[FORGET]) < 2:
            raise ValueError("There is one forget row, and it takes another's text. Give at least 2.")
        texts = roles[FORGET].with_format(None)
        texts = set(texts["question"]) if "question" in texts.column_names else ()
        if args.unrelated_from == FORGET and len(texts) == 1:
            logger.warning(
                "All forget rows ask %r: with another's text a pair is what it was, and modality decoupling says "
                "nothing. Take unrelated_from='retain'.",
                *texts,
            )

    def check_architecture(self, args: MultiDeleteConfig, model: nn.Module) -> None:
        if vilt_of(model) is None:
            raise ValueError(
                "MultiDelete takes pictures and texts apart, and is built for ViLT; this model is a "
                f"{type(model).__name__}. For one of texts or pictures alone it is not defined: take another method."
            )

    def make_pairs(self, roles, args: MultiDeleteConfig, processor) -> RolePairs:
        pairs = super().make_pairs(roles, args, processor)
        # A batch of one forget row would have no other's text to take.
        pairs.length += -pairs.length % (args.per_device_train_batch_size * args.world_size)
        return pairs

    def build_forward(self, model, args, needs, shape):
        return PairForward(needs, shape, self.family.likelihood)

    def trainable_patterns(self, args: MultiDeleteConfig, model: nn.Module) -> list[str] | None:
        # No loss depends on the classifier.
        return args.trainable_modules or (None if is_peft_model(model) else [r"^(?!classifier\.)"])

    def role_rows(self, model, inputs) -> dict[str, PairRows]:
        parts = self.parts_of(inputs)
        forget = parts[FORGET]
        others = derangement(len(forget["index"])) if self.args.unrelated_from == FORGET else None
        unrelated = with_texts_of(forget, parts[RETAIN] if others is None else forget, others)
        references = self.reference.rows(self.forward_path, model, {**parts, FORGET: unrelated})
        found = references[FORGET]
        if others is None:
            found.text = self.reference.rows(self.forward_path, model, {FORGET: forget})[FORGET].text
        else:
            # A text's embeddings are its own beside whatever picture.
            found.text = found.text[others.argsort().to(found.text.device)]
        said = {role: {REFERENCE: rows} for role, rows in references.items()}
        return self.forward_path.policy(model, parts, said)

    def forget_loss(self, rows: PairRows) -> Tensor:
        real = rows.batch["attention_mask"].bool()
        decoupling = distance(rows.states, rows.ref_states)
        unimodal = distance(rows.image, rows.ref_image) + distance(rows.text[real], rows.ref_text[real])
        rows.noted |= {"md": decoupling, "ukr": unimodal}
        return self.args.md_weight * decoupling + self.args.ukr_weight * unimodal

    def retain_loss(self, rows: PairRows) -> Tensor:
        rows.noted["mkr"] = distance(rows.states, rows.ref_states)
        return self.args.mkr_weight * rows.noted["mkr"]


def distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of the entries; no gradient is taken by `wanted`."""
    return (at_least_float32(found) - at_least_float32(wanted.detach())).square().mean()
