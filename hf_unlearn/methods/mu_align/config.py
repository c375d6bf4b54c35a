# SPDX-License-Identifier: Apache-2.0
"""Settings of MU-ALIGN, its defaults and its published variants."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...checks import check_choice, check_number, check_whole
from ...training.config import UnlearnConfig
from ..teacher import TeacherArguments
from .tails import CAPS, TAILS


DIRECTIONS = ("uniform_to_model", "model_to_uniform")
FORGET_TARGETS = ("uniform", "bernoulli_prior", "bernoulli_half")
# Weights of what is added to the retain rows' cross-entropy.
KEPT_TERMS = ("lambda_kd", "lambda_align", "lambda_cssa", "lambda_cmfc", "lambda_coral")
# The README's numbers. It writes KL(model || uniform), whose gradient vanishes on what is memorised; the code, and
# this default, have the other direction.
DEFAULTS: dict[str, Any] = {
    "alpha": 1.0,
    "beta": 0.5,
    "temperature": 2.0,
    "top_k": 10,
    "kl_direction": "uniform_to_model",
    "tail": "topk_hinge",
    "label_smoothing": 0.0,
    "lambda_kd": 0.0,
    "kd_temperature": 2.0,
    "lambda_align": 0.0,
    "grad_ortho": "off",
    "learning_rate": 1e-5,
    "num_train_epochs": 5,
}
PRESETS: dict[str, dict[str, Any]] = {
    "readme": {"kl_direction": "model_to_uniform"},
    # Without what is dead there (norms that never reach their cap), what only training sees (`forget_clip=2`, which
    # undoes the rest, and `forget_noise=0.1`) and what needs two modalities.
    "code": {
        "alpha": 6.0,
        "beta": 8.0,
        "temperature": 1.0,
        "tail": "conf_hinge",
        "label_smoothing": 0.05,
        "lambda_kd": 0.6,
        "grad_ortho": "project",
        "learning_rate": 5e-4,
        "num_train_epochs": 8,
    },
    # Direction, temperature of the forget term, cap and learning rate are not published: ours.
    "paper": {
        "beta": 1.0,
        "temperature": 1.0,
        "tail": "logit_norm",
        "label_smoothing": 0.05,
        "lambda_kd": 0.5,
        "lambda_align": 0.1,
        "num_train_epochs": 8,
    },
    # The last README's baseline "Uniform-Target": cross-entropy with uniform labels on forget rows, and nothing else.
    "uniform": {"beta": 0.0, "temperature": 1.0},
}


def _preset(name: str, help: str) -> Any:
    return field(default=None, metadata={"help": f"{help} Default: the preset's, or {DEFAULTS[name]}."})


def _modal(what: str) -> Any:
    return field(default=0.0, metadata={"help": f"Weight of {what}. For ViLT."})


@dataclass
class MUAlignConfig(TeacherArguments, UnlearnConfig):
    r"""Settings of [`MUAlignTrainer`]. Fields that are left out are the preset's, or without one the README's, except
    the direction of the divergence, which is the published code's."""

    RETAIN_LOSSES: ClassVar[tuple[str, ...]] = ("none", "nll")

    preset: str | None = field(
        default=None,
        metadata={"help": "Published variant that sets arguments left out: `readme`, `code`, `paper` or `uniform`."},
    )
    learning_rate: float | None = _preset("learning_rate", "Initial learning rate.")
    num_train_epochs: float | None = _preset("num_train_epochs", "Passes over the forget rows.")
    retain_loss: str = field(
        default="nll", metadata={"help": "Retain term: cross-entropy and the terms added to it (`nll`), or `none`."}
    )
    alpha: float | None = _preset(
        "alpha", "Weight of the divergence between uniform and the prediction on forget rows."
    )
    beta: float | None = _preset("beta", "Weight of the tail penalty on forget rows.")
    temperature: float | None = _preset(
        "temperature", "Divides the logits in that divergence, which is multiplied by its square."
    )
    top_k: int | None = _preset("top_k", "How many of the largest probabilities a `topk_` tail or `cvar` looks at.")
    kl_direction: str | None = _preset(
        "kl_direction", "`uniform_to_model`, or `model_to_uniform`, whose gradient vanishes where the model is sure."
    )
    tail: str | None = _preset(
        "tail", "Tail penalty: `topk_hinge`, `topk_mean`, `conf_hinge`, `logit_norm`, `margin`, `emb_norm` or `cvar`."
    )
    tail_cap: float | None = field(
        default=None,
        metadata={"help": "Threshold of the tail penalty. Default: the tail's own, such as 1 / vocabulary."},
    )
    cvar_level: float = field(
        default=0.1, metadata={"help": "Share of a row's tokens, the worst ones, that tail `cvar` includes."}
    )
    label_smoothing: float | None = _preset(
        "label_smoothing", "Share of a retain label that is spread over all tokens."
    )
    lambda_kd: float | None = _preset("lambda_kd", "Weight of distillation from the frozen original on retain rows.")
    kd_temperature: float | None = _preset("kd_temperature", "Temperature of that distillation.")
    lambda_align: float | None = _preset(
        "lambda_align", "Weight of the distance to the frozen original's second moments of retain rows' last states."
    )
    forget_target: str = field(
        default="uniform",
        metadata={
            "help": "Target of the forget predictions: `uniform`; for a classifier with independent classes also "
            "`bernoulli_prior` (class frequencies of the retain rows) or `bernoulli_half`."
        },
    )
    lambda_cssa: float = _modal("1 - cosine of a retain row's picture and text")
    lambda_cmfc: float = _modal("the squared difference of retain rows' mean picture and mean text")
    lambda_coral: float = _modal("the squared difference of the covariances of retain rows' pictures and texts")
    grad_ortho: str | None = _preset(
        "grad_ortho",
        "Keep the forget gradient from working against the retain gradient: `off`, `project` or `pcgrad`.",
    )
    forget_clip: float | None = field(
        default=None,
        metadata={"help": "Maximum norm of the head's input for forget rows, in training only (published code: 2)."},
    )
    forget_noise: float = field(
        default=0.0,
        metadata={
            "help": "Standard deviation of noise on that input, after clipping, in training only (published code: "
            "0.1)."
        },
    )
    forget_shrink: float = field(
        default=0.0,
        metadata={
            "help": "Share by which that input is moved to the retain rows' mean before clipping, in training only."
        },
    )

    def __post_init__(self):
        if self.preset is not None:
            check_choice("preset", self.preset, PRESETS)
        for name, value in (DEFAULTS | PRESETS.get(self.preset, {})).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.forget_clip is not None:
            check_number("forget_clip", self.forget_clip, above=0)
        for name in ("alpha", "beta", "label_smoothing", "forget_noise", "forget_shrink", *KEPT_TERMS):
            check_number(name, getattr(self, name), at_least=0)
        for name in ("temperature", "kd_temperature", "cvar_level"):
            check_number(name, getattr(self, name), above=0)
        for name in ("label_smoothing", "cvar_level", "forget_shrink"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is a share; give at most 1.")
        check_whole("top_k", self.top_k, at_least=1)
        check_choice("kl_direction", self.kl_direction, DIRECTIONS)
        check_choice("tail", self.tail, (*TAILS, "emb_norm"))
        check_choice("forget_target", self.forget_target, FORGET_TARGETS)
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
        asked = [name for name in ("label_smoothing", "forget_shrink", *KEPT_TERMS) if getattr(self, name)]
        asked += ["forget_target"] * (self.forget_target == "bernoulli_prior")
        if asked and self.retain_loss == "none":
            raise ValueError(
                f"{', '.join(asked)}: for retain rows, and retain_loss='none'. Take 'nll', or set them off."
            )
        if self.forget_shrink and self.forward_passes == "split":
            raise ValueError(
                "forget_shrink moves forget rows towards the retain rows of their pass, and forward_passes='split' "
                "gives each role its own. Take 'auto', 'one' or 'packed'."
            )
