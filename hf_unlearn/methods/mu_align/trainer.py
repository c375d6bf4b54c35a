# SPDX-License-Identifier: Apache-2.0
"""MU-ALIGN (https://github.com/abdullahak07/MU-Align), for language models and classifiers: see `docs/mu_align.md`."""

import logging
from dataclasses import replace

import torch
from torch import Tensor

from ...families.classifier import modalities
from ...forward.needs import KL, REFERENCE, Need
from ...forward.role_rows import RoleRows
from ...losses import second_moment_distance
from ...training.trainer import UnlearnTrainer
from ..teacher import Taught
from .config import DEFAULTS, MUAlignConfig
from .noise import ForgetNoise
from .tails import TOP_K_TAILS, Tail, WorstShare, emb_norm
from .terms import ForgetTerms, RetainTerms


logger = logging.getLogger(__name__)


def modal_weights(args: MUAlignConfig) -> dict[str, float]:
    """Weights of the terms between picture and text."""
    return {name: getattr(args, f"lambda_{name}") for name in modalities.TERMS}


class MUAlignTrainer(Taught, UnlearnTrainer):
    r"""\\( \alpha L_{uniform} + \beta L_{tail} \\) on forget rows, cross-entropy on retain rows, and what else
    is asked for there: label smoothing, distillation and second moments of the frozen original.

    Only answer tokens count: each row's mean over them, then the mean over rows. Uniform is over the tokenizer's
    entries, not those that pad the head. With `grad_ortho` a step takes a backward pass for each side.
    """

    config_class = MUAlignConfig
    method = "mu_align"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.kl_direction == "model_to_uniform" and self.args.alpha:
            logger.warning(
                "kl_direction='model_to_uniform': its gradient vanishes where a prediction is all but certain, so "
                "what is memorised best is forgotten last, if at all. 'uniform_to_model' does not have this fault."
            )
        if self.args.forget_clip is not None or self.args.forget_shrink:
            logger.warning(
                "forget_clip and forget_shrink change what the head reads of forget rows in training alone: the log "
                "may show them uniform while the model still answers them. Judge the result by an evaluation."
            )

    def setup(self, entry) -> None:
        args = entry.args
        self._tokens = self.family.predictions(entry.model, entry.tokenizer)
        if args.tail in TOP_K_TAILS and args.top_k > self._tokens:
            if args.top_k != DEFAULTS["top_k"]:
                told = f"top_k={args.top_k}, and a prediction is among {self._tokens}. Give at most that many."
                raise ValueError(told)
            args.top_k = self._tokens
        self._prior = self._prior_of(entry)

    def _prior_of(self, entry) -> Tensor | None:
        """Each class's probability that forget predictions are pulled to, where that is not uniform."""
        target = entry.args.forget_target
        if target == "uniform":
            return None
        if getattr(self.family, "likelihood", None) != "bernoulli":
            raise ValueError(
                f"forget_target={target!r} is for a classifier that says of each class whether it is right, as ViLT "
                "does. Take forget_target='uniform'."
            )
        if target == "bernoulli_half":
            return torch.full((self._tokens,), 0.5)
        prior, rows = torch.zeros(self._tokens), entry.roles["retain"]
        for ids, weights in zip(rows["label_ids"], rows["label_weights"], strict=True):
            # As a row's own target: a class that is named twice counts once.
            target = torch.zeros(self._tokens)
            target[ids] = torch.tensor(weights)
            prior += target
        return prior / len(rows)

    def check_architecture(self, args: MUAlignConfig, model) -> None:
        if any(modal_weights(args).values()):
            modalities.check_two_modalities(model)

    # What the method says of itself

    @classmethod
    def needs_of(cls, args: MUAlignConfig):
        clip, noise, shrink = args.forget_clip, args.forget_noise, args.forget_shrink
        of_logits = None if args.tail == "emb_norm" else Tail(args.tail, args.top_k, args.tail_cap)
        forget = Need(
            ForgetTerms(args.alpha, args.beta, args.temperature, args.kl_direction, of_logits),
            states=of_logits is None,
            weigh=WorstShare(args.cvar_level) if args.tail == "cvar" else None,
            changes=ForgetNoise(clip, noise, shrink) if clip is not None or noise or shrink else None,
        )
        kept = Need(
            RetainTerms(args.label_smoothing, args.lambda_kd, args.kd_temperature),
            reference=(REFERENCE,) if args.lambda_kd or args.lambda_align else (),
            compares=args.lambda_kd > 0,
            states=args.lambda_align > 0,
            modalities=any(modal_weights(args).values()),
        )
        return {"forget": forget} | {role: KL if term == "kl" else kept for role, term in args.kept_terms.items()}

    def build_forward(self, model, args: MUAlignConfig, needs, shape):
        bound = dict(needs)
        forget = replace(needs["forget"].function, prior=self._prior)
        bound["forget"] = replace(needs["forget"], columns=self._tokens, function=forget)
        for role, need in needs.items():
            if role != "forget" and need.function is not None:
                bound[role] = replace(need, function=replace(need.function, tokens=self._tokens))
        if args.forward_passes == "auto" and args.forget_shrink:
            # Forget rows go towards retain rows, which must then be in their pass.
            shape = "one"
        return super().build_forward(model, args, bound, shape)

    # The objective

    def forget_loss(self, rows: RoleRows) -> Tensor:
        p_max = rows.stats["p_max"] if len(rows.stats["p_max"]) else rows.token_logps.new_zeros(1)
        rows.noted |= {"p_max_p99": p_max.quantile(0.99), "highest_p_max": p_max.max()}
        if self.args.tail != "emb_norm":
            return rows.value
        tail = rows.noted["tail"] = rows.mean(emb_norm(rows.states, self.args.tail_cap))
        return rows.value + self.args.beta * tail

    def retain_loss(self, rows: RoleRows) -> Tensor:
        if rows.value is None:
            return super().retain_loss(rows)
        value = rows.value
        if self.args.lambda_align:
            pooled = [rows.predicted.row_means(states) for states in (rows.states, rows.ref_states)]
            align = rows.noted["align"] = second_moment_distance(*pooled)
            value = value + self.args.lambda_align * align
        for name, weight in modal_weights(self.args).items():
            if weight:
                rows.noted[name] = modalities.TERMS[name](*rows.modalities)
                value = value + weight * rows.noted[name]
        return value
