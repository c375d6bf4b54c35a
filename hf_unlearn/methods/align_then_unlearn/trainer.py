# SPDX-License-Identifier: Apache-2.0
"""Align-then-Unlearn (https://huggingface.co/papers/2506.13181)."""

import logging
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from ...data.role_table import FORGET
from ...families.base import CAUSAL_LM
from ...forward.build import build_forward
from ...forward.layer import LayerRows
from ...forward.needs import STATES
from ...modeling import is_peft_model
from ...models.activations import check_layer, layers_of
from ...models.layer_choice import check_below, freeze_outside, names_up_to
from ...processes import shards_weights
from ...training.config import UnlearnConfig
from ...training.trainer import UnlearnTrainer
from .arguments import AlignArguments
from .concept import check_concept, concept_texts
from .encoder import TextEncoder
from .forward import AlignForward
from .head import save_head
from .losses import alignment_loss, concept_hinge
from .rounds import Rounds, StepHead
from .stages import ALIGN, UNLEARN, StagedOptimizer, make_stages, stage_at
from .targets import Targets
from .windows import Windows, find_windows


logger = logging.getLogger(__name__)


@dataclass
class AlignThenUnlearnConfig(AlignArguments, UnlearnConfig):
    """Settings of [`AlignThenUnlearnTrainer`]; defaults are the published ones for Phi-3-mini: plain SGD for the
    model, Adam for the head, no retain term. Steps follow from the stages: `max_steps` may only cut them short.

    Retain rows may be given without a retain term: the head is then also aligned on them.
    """

    READS_RETAIN: ClassVar[bool] = True

    retain_loss: str = field(
        default="none",
        metadata={
            "help": "Retain term: `none` (as published), `nll` or `kl`. The head is aligned on retain rows in all "
            "cases."
        },
    )
    learning_rate: float = field(default=3e-4, metadata={"help": "The model's learning rate, in unlearning stages."})
    optim: str = field(default="sgd", metadata={"help": "The model's optimizer; the head's is Adam."})
    lr_scheduler_type: str = field(
        default="constant", metadata={"help": "Scheduler of both learning rates, over all steps of the run."}
    )

    def __post_init__(self):
        self.check_align()
        super().__post_init__()
        if self.reentrant:
            raise ValueError(
                "Align-then-Unlearn reads activations inside the model, and reentrant checkpointing cuts their "
                "gradients. Pass activation_checkpointing_kwargs={'use_reentrant': False}."
            )
        if shards_weights(self):
            raise ValueError(
                "Align-then-Unlearn trains a head and the model in turns, each with an optimizer of its own, and "
                "DeepSpeed and FSDP run one optimizer over one model. Start it on one process, or with DDP "
                "(`--accelerate_config multi_gpu`)."
            )


class AlignThenUnlearnTrainer(UnlearnTrainer):
    r"""Trains a head on one layer to predict a text encoder's embedding of the next tokens, and the model until the
    head no longer finds the concept there, alternately: \\( L_{align} = -\cos(\hat e_t, e_t) \\) trains the head,
    \\( L_{forget} = \max(0, \max_c \cos(\hat e_t, c) - \tau) \\) the model, means over the tokens that a full window
    follows. The thresholds \\( \tau \\) decrease from round to round.

    All stages are one run: the optimizers of head and model persist across stages and in checkpoints. While the model
    is frozen, its states are computed once; the forward ends at the layer that the head reads. The head is saved next
    to the model, in `align_head`.
    """

    config_class = AlignThenUnlearnConfig
    method = "align_then_unlearn"
    families = (CAUSAL_LM,)
    paper = "2506.13181"

    def __init__(self, *args, **kwargs):
        self.staged: StagedOptimizer | None = None
        super().__init__(*args, **kwargs)
        self.stages = make_stages(
            len(self.args.thresholds), self.args.first_align_steps, self.args.align_steps, self.args.unlearn_steps
        )
        self.rounds = Rounds(self, self.targets)
        self.step_head = StepHead(self)
        self.add_callback(self.step_head)

    # What the method says of itself

    @classmethod
    def unscored(cls, args) -> str:
        return "begins by training something else"

    @classmethod
    def check_early(cls, args, roles, processor, config) -> None:
        count = config.get_text_config().num_hidden_layers
        check_layer("layer_id", args.layer_of(count), count)
        _, windows = _read_rows(args, roles, processor)
        check_concept(args, windows.texts[FORGET])

    def check_rows(self, args, roles, tokenizer) -> None:
        encoder, windows = _read_rows(args, roles, tokenizer)
        absent = check_concept(args, windows.texts[FORGET])
        if absent and args.process_index == 0:
            logger.warning(
                "concept: no forget row speaks of %s by this name; it is forgotten only where an alias stands for it.",
                " or ".join(map(repr, absent)),
            )
        self.targets = Targets(encoder, windows, concept_texts(args))

    @classmethod
    def needs_of(cls, args: AlignThenUnlearnConfig):
        return {**super().needs_of(args), FORGET: STATES}

    def check_architecture(self, args: AlignThenUnlearnConfig, model: nn.Module) -> None:
        check_layer("layer_id", args.layer_of(len(layers_of(model))), len(layers_of(model)))

    def build_forward(self, model, args, needs, shape):
        kept = {role: need for role, need in needs.items() if args.kept_terms.get(role, "none") != "none"}
        path = build_forward(model, args.fused_losses, kept, "split") if kept else None
        return AlignForward(args.layer_of(len(layers_of(model))), needs, path, whole=args.fused_losses is False)

    def trainable_patterns(self, args: AlignThenUnlearnConfig, model: nn.Module) -> list[str] | None:
        """What the head's layer depends on; all of the model where a retain term reads its predictions."""
        if any(term != "none" for term in args.kept_terms.values()):
            return args.trainable_modules
        layer = args.layer_of(len(layers_of(model)))
        if args.trainable_modules:
            check_below(model, args.trainable_modules, layer)
            return args.trainable_modules
        if is_peft_model(model):
            freeze_outside(model, range(layer + 1))
            return None
        return names_up_to(model, layer)

    # The objective

    @property
    def stage(self):
        """The stage that the coming step belongs to."""
        return stage_at(self.stages, self.state.global_step)

    @property
    def trains_model(self) -> bool:
        return self.stage.kind == UNLEARN

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if "role" in inputs and self.stage.kind == ALIGN:
            self.rounds.enter(self.stage, model)
            loss = self.align_loss(model, super().parts_of(inputs))
            return (loss, {"loss": loss}) if return_outputs else loss
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def weighted_terms(self, model, inputs):
        # Not in `compute_loss`, which an add-on that makes the backward passes itself does not call.
        if "role" in inputs:
            self.rounds.enter(self.stage, model)
        return super().weighted_terms(model, inputs)

    def align_loss(self, model: nn.Module, parts: dict[str, dict[str, Tensor]]) -> Tensor:
        """The head's term: over all roles' tokens that a full window follows, a scalar."""
        predicted, wanted = self.rounds.predictions_and_targets(model, parts)
        loss = alignment_loss(predicted, wanted)
        self.meters.add("align/loss", loss)
        gain = -loss.detach() - self.targets.floor
        self.rounds.check.add(gain)
        self.meters.add("align/gain", gain)
        return loss

    def forget_loss(self, rows: LayerRows) -> Tensor:
        cosines = self.rounds.concept_cosines(rows)
        threshold = self.rounds.threshold
        self.meters.add("forget/cosine", cosines.detach().mean() if len(cosines) else cosines.sum())
        self.meters.add("forget/active", (cosines > threshold).float().sum() / max(len(cosines), 1))
        return concept_hinge(cosines, threshold)

    def parts_of(self, inputs):
        parts = super().parts_of(inputs)
        return {
            role: part
            for role, part in parts.items()
            if role == FORGET or self.args.kept_terms.get(role, "none") != "none"
        }

    # Stages

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As of any method; `grad_norm` is that of what the last step trained."""
        if "grad_norm" in logs and self.step_head.grad_norm is not None:
            logs["grad_norm"] = self.step_head.grad_norm.item()
        super().log(logs, start_time)

    def create_optimizer(self, *args, **kwargs):
        if self.staged is None:
            own = super().create_optimizer(*args, **kwargs)
            self.staged = StagedOptimizer({UNLEARN: own, ALIGN: self.rounds.head_optimizer()}, active=ALIGN)
            self.optimizer = self.staged
        return self.optimizer

    def method_state(self) -> dict[str, Any]:
        return self.rounds.state()

    def load_method_state(self, state: dict[str, Any]) -> None:
        self.rounds.load_state(state)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            save_head(self.rounds.head, output_dir or self.args.output_dir)


def _read_rows(args: AlignThenUnlearnConfig, roles, tokenizer) -> tuple[TextEncoder, Windows]:
    """The encoder and the rows' windows.

    Raises:
        `ValueError`: if the encoder cannot be used, or no forget row has a window.
    """
    encoder = TextEncoder(args.encoder_name_or_path, args.encoder_pooling, args.trust_remote_code)
    encoder.check_window(args.window_tokens)
    windows = find_windows(roles, tokenizer, encoder.tokenizer, args.window_tokens)
    return encoder, windows
