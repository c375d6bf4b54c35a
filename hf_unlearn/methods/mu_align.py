# SPDX-License-Identifier: Apache-2.0
"""MU-ALIGN (https://github.com/abdullahak07/MU-Align), for causal language models: see `docs/mu_align.md`."""

import logging
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor

from ..checks import check_choice, check_number, check_whole
from ..config import UnlearnConfig
from ..forward import RoleRows
from ..gradient_conflict import GRAD_ORTHO, TwoGradients
from ..launch_check import asks_fsdp
from ..losses import second_moment_distance
from ..needs import KL, RowFunction
from ..tails import CAPS, TAILS, Tail, WorstShare, emb_norm
from ..trainer import UnlearnTrainer
from .mu_align_terms import DEFAULTS, PRESETS, ForgetTerms, RetainTerms


logger = logging.getLogger(__name__)

DIRECTIONS = ("uniform_to_model", "model_to_uniform")


def _preset(help: str) -> Any:
    return field(default=None, metadata={"help": f"{help} Default: the preset's."})


@dataclass
class MUAlignConfig(UnlearnConfig):
    r"""Settings of [`MUAlignTrainer`]. Fields that are left out are the preset's, or without one the README's, but for
    the direction of the divergence, which is the published code's."""

    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("none", "nll")

    preset: str | None = field(
        default=None, metadata={"help": "Published variant that fills what is left out: `readme`, `code` or `paper`."}
    )
    learning_rate: float | None = _preset("Initial learning rate.")
    num_train_epochs: float | None = _preset("Passes over the forget rows.")
    retain_loss: str = field(
        default="nll", metadata={"help": "Retain term: cross-entropy and what is added to it (`nll`), or `none`."}
    )
    alpha: float | None = _preset("Weight of the divergence between uniform and the prediction on forget rows.")
    beta: float | None = _preset("Weight of the tail penalty on forget rows.")
    temperature: float | None = _preset("Divides the logits in that divergence, which is multiplied by its square.")
    top_k: int | None = _preset("How many of the largest probabilities a `topk_` tail or `cvar` looks at.")
    kl_direction: str | None = _preset(
        "`uniform_to_model`, or `model_to_uniform`, whose gradient vanishes where the model is sure."
    )
    tail: str | None = _preset(
        "Tail penalty: `topk_hinge`, `topk_mean`, `conf_hinge`, `logit_norm`, `margin`, `emb_norm` or `cvar`."
    )
    tail_cap: float | None = field(
        default=None, metadata={"help": "What the tail penalty leaves free. Default: its own, such as 1 / vocabulary."}
    )
    cvar_level: float = field(
        default=0.1, metadata={"help": "Share of a row's tokens, the worst ones, that tail `cvar` counts."}
    )
    label_smoothing: float | None = _preset("Share of a retain label that is spread over all tokens.")
    lambda_kd: float | None = _preset("Weight of distillation from the frozen original on retain rows.")
    kd_temperature: float | None = _preset("Temperature of that distillation.")
    lambda_align: float | None = _preset(
        "Weight of the distance to the frozen original's second moments of retain rows' last states."
    )
    grad_ortho: str | None = _preset(
        "Keep the forget gradient from working against the retain gradient: `off`, `project` or `pcgrad`."
    )
    allow_oracle_teacher: bool = field(
        default=False,
        metadata={"help": "Allow a `ref_model` as teacher, such as one trained without the forget rows."},
    )

    def __post_init__(self):
        if self.preset is not None:
            check_choice("preset", self.preset, PRESETS)
        for name, value in (DEFAULTS | PRESETS.get(self.preset, {})).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name in ("alpha", "beta", "lambda_kd", "lambda_align", "label_smoothing"):
            check_number(name, getattr(self, name), at_least=0)
        for name in ("temperature", "kd_temperature", "cvar_level"):
            check_number(name, getattr(self, name), above=0)
        for name in ("label_smoothing", "cvar_level"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is a share; give at most 1.")
        check_whole("top_k", self.top_k, at_least=1)
        check_choice("kl_direction", self.kl_direction, DIRECTIONS)
        check_choice("tail", self.tail, (*TAILS, "emb_norm"))
        check_choice("grad_ortho", self.grad_ortho, GRAD_ORTHO)
        self._check_cap()
        super().__post_init__()
        self._check_retain_terms()

    def _check_cap(self) -> None:
        if self.tail_cap is not None:
            check_number("tail_cap", self.tail_cap, at_least=0)
            if self.tail == "topk_mean":
                raise ValueError("tail='topk_mean' is a mean, and leaves nothing free. Leave `tail_cap` out.")
        elif self.tail == "emb_norm":
            raise ValueError("tail='emb_norm' needs a `tail_cap`: a model's states may have any norm.")
        else:
            self.tail_cap = CAPS.get(self.tail)

    def _check_retain_terms(self) -> None:
        asked = [name for name in ("label_smoothing", "lambda_kd", "lambda_align") if getattr(self, name)]
        asked += ["grad_ortho"] * (self.grad_ortho != "off")
        if asked and self.retain_loss == "none":
            raise ValueError(
                f"{', '.join(asked)}: of retain rows, and retain_loss='none'. Take 'nll', or set them off."
            )
        if self.grad_ortho == "off":
            return
        if self.world_size > 1 or self.deepspeed or asks_fsdp(self):
            raise ValueError(
                "grad_ortho takes two backward passes a step and compares whole gradients, which works on one process "
                "without DeepSpeed and FSDP only. Start one process, or take grad_ortho='off'."
            )
        if self.reentrant or "lomo" in str(getattr(self.optim, "value", self.optim)):
            raise ValueError(
                "grad_ortho takes two backward passes a step, which reentrant checkpointing and LOMO do not allow. "
                "Pass activation_checkpointing_kwargs={'use_reentrant': False}, or another `optim`."
            )


class MUAlignTrainer(UnlearnTrainer):
    r"""\\( \alpha L_{uniform} + \beta L_{tail} \\) on forget rows, cross-entropy on retain rows, and what else
    is asked for there: label smoothing, distillation and second moments of the frozen original.

    Only answer tokens count: each row's mean over them, then the mean over rows. Uniform is over the tokenizer's
    entries, not those that pad the head. With `grad_ortho` a step takes a backward pass for each side.
    """

    config_class = MUAlignConfig
    method = "mu_align"

    def __init__(self, *args, **kwargs):
        # While set, `objective` holds the forget term back.
        self._apart, self._forget_part = False, None
        self._gradients: TwoGradients | None = None
        super().__init__(*args, **kwargs)
        if self.args.kl_direction == "model_to_uniform" and self.args.alpha:
            logger.warning(
                "kl_direction='model_to_uniform': its gradient vanishes where the model is sure, so what is well "
                "memorised hardly begins to be forgotten. 'uniform_to_model' does not have this fault."
            )

    def _plan_step(self, entry, shape, fresh_adapter, ref_model, reload) -> None:
        args, self._tokens = entry.args, len(entry.tokenizer)
        if args.top_k > self._tokens:
            raise ValueError(f"top_k={args.top_k}, and there are {self._tokens} tokens. Give at most that many.")
        if ref_model is not None and self.reference_roles_of(args):
            if not args.allow_oracle_teacher:
                raise ValueError(
                    "`ref_model` would be the teacher in place of the frozen original. One that saw less than it "
                    "gives away what is to be found: pass allow_oracle_teacher=True if that is meant, or leave it out."
                )
            logger.warning("The teacher is the `ref_model` given, not the original: an oracle, if it saw less.")
        super()._plan_step(entry, shape, fresh_adapter, ref_model, reload)

    # What the method says of itself

    @classmethod
    def needs_of(cls, args: MUAlignConfig):
        of_logits = None if args.tail == "emb_norm" else Tail(args.tail, args.top_k, args.tail_cap)
        forget = RowFunction(
            ForgetTerms(args.alpha, args.beta, args.temperature, args.kl_direction, of_logits),
            states=of_logits is None,
            weigh=WorstShare(args.cvar_level) if args.tail == "cvar" else None,
        )
        kept = RowFunction(
            RetainTerms(args.label_smoothing, args.lambda_kd, args.kd_temperature),
            compares=args.lambda_kd > 0,
            states=args.lambda_align > 0,
        )
        return {"forget": forget} | {role: KL if term == "kl" else kept for role, term in args.kept_terms.items()}

    @classmethod
    def reference_roles_of(cls, args: MUAlignConfig) -> set[str]:
        kept = args.kept_terms if args.lambda_kd or args.lambda_align else {}
        return super().reference_roles_of(args) | {role for role, term in kept.items() if term != "none"}

    def build_forward(self, model, args: MUAlignConfig, needs, shape):
        bound = dict(needs)
        bound["forget"] = replace(needs["forget"], columns=self._tokens)
        for role, need in needs.items():
            if role != "forget" and isinstance(need, RowFunction):
                bound[role] = replace(need, function=replace(need.function, tokens=self._tokens))
        # In passes of their own the two sides share nothing, so that two backward passes cost what one does.
        apart = args.grad_ortho != "off" and args.forward_passes == "auto"
        return super().build_forward(model, args, bound, "split" if apart else shape)

    # The objective

    def forget_loss(self, rows: RoleRows) -> Tensor:
        self._log_terms("forget", rows, ("uniform", "tail", "entropy"))
        p_max = rows.stats["p_max"] if len(rows.stats["p_max"]) else rows.token_logps.new_zeros(1)
        largest = {"p_max": p_max.mean(), "p_max_p99": p_max.quantile(0.99), "p_max_max": p_max.max()}
        for name, value in largest.items():
            self.meters.add(f"forget/{name}", value)
        if self.args.tail != "emb_norm":
            return rows.value
        tail = (emb_norm(rows.states, self.args.tail_cap) * rows.predicted.row_weights).sum()
        self.meters.add("forget/tail", tail)
        return rows.value + self.args.beta * tail

    def retain_loss(self, rows: RoleRows) -> Tensor:
        if rows.value is None:
            return super().retain_loss(rows)
        self._log_terms("retain", rows, ("ce", "kd"))
        if rows.ref_states is None:
            return rows.value
        align = second_moment_distance(*map(rows.predicted.row_means, (rows.states, rows.ref_states)))
        self.meters.add("retain/align", align)
        return rows.value + self.args.lambda_align * align

    def _log_terms(self, role: str, rows: RoleRows, names: tuple[str, ...]) -> None:
        for name in names:
            if name in rows.stats:
                self.meters.add(f"{role}/{name}", (rows.stats[name] * rows.predicted.row_weights).sum())

    # Two gradients

    def training_step(self, model, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        """As [`~transformers.Trainer.training_step`]; with `grad_ortho` the two sides' gradients are summed apart over
        the micro-batches, and combined once a step."""
        if self.args.grad_ortho == "off":
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        if self._gradients is None:
            self._gradients = TwoGradients(model.parameters(), self.accelerator.backward)
        inputs, share = self._prepare_inputs(inputs), 1 / self.current_gradient_accumulation_steps
        self._apart = True
        try:
            with self.compute_loss_context_manager():
                kept = share * self.compute_loss(model, inputs)
        finally:
            self._apart = False
        forget, self._forget_part = share * self._forget_part, None
        # Weights that autocast has rounded are shared by the two graphs.
        self._gradients.add("kept", kept, retain_graph=True)
        self._gradients.add("forget", forget)
        if self.accelerator.sync_gradients:
            self.meters.add("forget/cosine_to_retain", self._gradients.combine(self.args.grad_ortho))
        return (kept + forget).detach()

    def objective(self, terms) -> Tensor:
        if not self._apart:
            return super().objective(terms)
        self._forget_part = self.args.weight_of("forget") * terms["forget"]
        return super().objective({role: term for role, term in terms.items() if role != "forget"})
