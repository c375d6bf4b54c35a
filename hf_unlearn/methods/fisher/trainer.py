# SPDX-License-Identifier: Apache-2.0
"""Fisher forgetting (https://huggingface.co/papers/1911.04933): see `docs/baselines.md`."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

from ...data.pairing import RolePairs
from ...data.role_table import FORGET, RETAIN
from ...data.seeds import data_seed
from ...families.base import CLASSIFIER
from ...families.classifier.forward import classifier_of
from ...families.classifier.predictions import BernoulliRows
from ...files import write_text
from ...forward.needs import Need
from ...fused import TileRows
from ...fused.head import unwrapped
from ...modeling import evaluating
from ...training.trainer import UnlearnTrainer
from .config import FisherConfig
from .noise import RULES, Noise, SquaredGradients


logger = logging.getLogger(__name__)

CURVE = "fisher.json"


@dataclass(frozen=True)
class Drawn:
    """Negative log-likelihood of labels that the model draws, or of the rows' own (`true`)."""

    true: bool

    def __call__(self, logits: Tensor, at: TileRows) -> tuple[Tensor, dict[str, Tensor]]:
        own = at.nll(logits)
        if self.true:
            return own, {"logps": -own}
        if at.weights is None:
            with torch.no_grad():
                return own, {"logps": -own, "drawn": draw(logits, at).to(logits.dtype)}
        drawn = at.weights.long() if at.labels.dim() == 1 else at.weights
        return at._replace(labels=drawn).nll(logits), {"logps": -own}


def draw(logits: Tensor, at: TileRows) -> Tensor:
    """Labels of the form of `at.labels`, drawn from the prediction."""
    if isinstance(at, BernoulliRows):
        return logits.sigmoid().bernoulli()
    drawn = logits.softmax(-1).multinomial(1)
    return drawn.squeeze(-1) if at.labels.dim() == 1 else torch.zeros_like(logits).scatter_(-1, drawn, 1.0)


class FisherTrainer(UnlearnTrainer):
    r"""Noise on the weights, \\( w + \sqrt{a} F^{-1/2} n \\) (released code) or \\( w + \sqrt{a} F^{-1/4} n \\)
    (paper), where \\( F \\) is the diagonal Fisher information on retain rows:
    \\( F_i = E_x E_{y \sim p(y|x)} (\partial \log p(y|x) / \partial w_i)^2 \\). A row is one example; for a
    language model \\( \log p \\) is the sum over its tokens, each sampled given the true prefix.

    `train` passes once over the retain rows, without an optimizer step, and adds the noise. The losses of held-out
    retain rows and of forget rows at each scale are in the log and in `fisher.json`.
    """

    config_class = FisherConfig
    method = "fisher"
    paper = "1911.04933"
    # The noise comes after the last step.
    changes_at_end = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.squares: SquaredGradients | None = None
        self._found: dict[str, Any] = {}
        if self.forgotten:
            self._check_head_trains()
        self.add_callback(AddNoise(self))

    # What the method says of itself

    @property
    def trains_model(self) -> bool:
        return False

    @classmethod
    def needs_of(cls, args: FisherConfig):
        true = args.fisher == "empirical"
        retain = Need(Drawn(true), weigh=None if true else _drawn)
        return {FORGET: Need(Drawn(True)), RETAIN: retain}

    @classmethod
    def trained_roles_of(cls, args):
        return (RETAIN,)

    def make_pairs(self, roles, args: FisherConfig, processor) -> RolePairs:
        self.forget_rows, retain = roles[FORGET], roles[RETAIN]
        if len(args.scales) > 1 and len(retain) < 2:
            raise ValueError(
                f"scales={args.scales}: one of them is chosen by held-out retain rows, and there is 1 retain row in "
                "all. Give at least 2 retain rows, or one scale."
            )
        order = np.random.default_rng([data_seed(args), len(retain)]).permutation(len(retain))
        held_out = min(args.validation_rows, len(retain) // 2) if len(args.scales) > 1 else 0
        self.held_out_rows = retain.select(np.sort(order[:held_out]))
        return RolePairs({RETAIN: retain.select(np.sort(order[held_out:]))}, data_seed(args), epoch_by=RETAIN)

    def check_architecture(self, args: FisherConfig, model) -> None:
        names = args.forget_classes or ()
        if names and self.family.name != CLASSIFIER:
            raise ValueError("forget_classes are a classifier's, and this is a language model. Leave them out.")
        if unknown := [name for name in names if name not in self.family.classes.label2id]:
            raise ValueError(f"forget_classes: {unknown} are none of the model's {len(self.family.classes)} classes.")
        self.forgotten = [self.family.classes.label2id[name] for name in names]

    def _check_head_trains(self) -> None:
        # An adapter beside the last layer would leave the classes' rows as they are.
        if frozen := sorted(name for name in self.head_names() if not self.trainable.chosen[name]):
            raise ValueError(
                f"forget_classes={self.args.forget_classes} draws rows of the whole last layer anew, and of it do "
                f"not train: {', '.join(frozen)}. Train it (modules_to_save=['classifier'] of an adapter's config, "
                "'classifier' among trainable_modules), or leave forget_classes out."
            )

    # The pass

    def training_step(self, model, inputs: dict[str, Any], num_items_in_batch=None) -> Tensor:
        """Squares of each row's gradients are added up; no gradient is left for an optimizer."""
        if self.squares is None:
            self._begin()
        part = self.parts_of(self._prepare_inputs(inputs))[RETAIN]
        losses = []
        # The model itself: a wrapper would average gradients over processes.
        with evaluating(self.model), self.compute_loss_context_manager():
            for i in range(len(part["index"])):
                row = {name: value[i : i + 1] for name, value in part.items()}
                found = [self._row(self.forward_path, RETAIN, row) for _ in range(self.args.fisher_samples)]
                # A row's value is the mean over its predictions; its likelihood is the product.
                self.squares.add([rows.value * len(rows.token_logps) for rows in found])
                losses.append(found[0].nll.detach())
        loss = torch.stack(losses).mean()
        for name in ("retain/loss", "retain/nll"):
            self.meters.add(name, loss)
        return loss / self.current_gradient_accumulation_steps

    def _begin(self) -> None:
        self.squares = SquaredGradients({n: p for n, p in self.model.named_parameters() if p.requires_grad})
        if self._found and self.is_world_process_zero():
            self.squares.rows = self._found["rows"]
            for name, total in self.squares.sums.items():
                total.copy_(self._found[f"sums.{name}"])

    def _row(self, path, role: str, row):
        return path.policy(self.model, {role: row}, {})[role]

    @torch.no_grad()
    def loss_on(self, rows) -> float:
        """Mean over rows of the mean over a row's predictions, on all processes together; nats."""
        args, total = self.args, torch.zeros((), device=self.args.device)
        path = self.family.build_forward(self.model, args, {FORGET: Need(Drawn(True))}, "split")
        own = range(args.process_index, len(rows), args.world_size)
        with evaluating(self.model), self.compute_loss_context_manager():
            for start in range(0, len(own), args.per_device_eval_batch_size):
                numbers = list(own[start : start + args.per_device_eval_batch_size])
                batch = self.data_collator.pad([rows[i] for i in numbers]) | {"index": torch.tensor(numbers)}
                batch = {name: value.to(args.device) for name, value in batch.items()}
                total += self._row(path, FORGET, batch).value * len(numbers)
        return (self.accelerator.reduce(total, reduction="sum") / len(rows)).item()

    def diagonal(self) -> dict[str, Tensor]:
        """The Fisher information's diagonal over all rows that were seen, on all processes."""
        rows = self.accelerator.reduce(torch.tensor(float(self.squares.rows), device=self.args.device))
        sums = {name: self.accelerator.reduce(total.clone()) for name, total in self.squares.sums.items()}
        return {name: total / rows for name, total in sums.items()}

    def method_state(self) -> dict[str, Any]:
        if self.squares is None:
            return {}
        rows = self.accelerator.reduce(torch.tensor(self.squares.rows, device=self.args.device))
        sums = {f"sums.{n}": self.accelerator.reduce(total.clone()) for n, total in self.squares.sums.items()}
        return {"rows": int(rows), **sums}

    def load_method_state(self, state: dict[str, Any]) -> None:
        self._found, self.squares = dict(state), None

    def head_names(self) -> set[str]:
        """Names of the last layer's parameters; not of the unused copy that `modules_to_save` of an adapter leaves."""
        if self.family.name == CLASSIFIER:
            head, classes = classifier_of(self.model), len(self.family.classes)
            own = {id(p) for p in head.parameters() if p.shape[:1] == (classes,)}
        else:
            own = {id(p) for p in unwrapped(self.model).get_output_embeddings().parameters()}
        return {n for n, p in self.model.named_parameters() if id(p) in own and ".original_module." not in n}


def _drawn(stats, predicted) -> Tensor:
    return stats["drawn"]


class AddNoise(TrainerCallback):
    """Chooses the scale and adds the noise when the pass is over.

    Args:
        trainer ([`FisherTrainer`]): the run.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.trainer.load_method_state({})

    def on_train_end(self, args, state, control, **kwargs):
        trainer = self.trainer
        if trainer.squares is None:
            # Resumed after the last step.
            trainer._begin()
        rule = RULES[args.preset]
        rule = rule if args.exponent is None else replace(rule, exponent=args.exponent)
        parameters = trainer.squares.parameters
        noise = Noise(parameters, trainer.diagonal(), rule, trainer.head_names(), args.seed, trainer.forgotten)
        trainer.squares = None
        curve = []
        for scale in [0.0, *args.scales] if len(args.scales) > 1 else ():
            noise.put(scale)
            found = {"scale": scale, "retain_loss": trainer.loss_on(trainer.held_out_rows)}
            curve.append(found | {"forget_loss": trainer.loss_on(trainer.forget_rows)})
            trainer.log({f"fisher/{name}": value for name, value in curve[-1].items()})
        scale = chosen_scale(curve, args.max_retain_increase) if curve else args.scales[0]
        noise.put(scale)
        logger.info("Fisher forgetting: noise of scale %g.", scale)
        if args.should_save:
            content = {"scale": scale, "fisher": args.fisher, "exponent": rule.exponent, "curve": curve}
            write_text(Path(args.output_dir) / CURVE, json.dumps(content, indent=1) + "\n")


def chosen_scale(curve: list[dict[str, float]], allowed: float) -> float:
    """The largest scale with which held-out retain rows lose no more than `allowed` nats against none, the first."""
    limit = curve[0]["retain_loss"] + allowed
    fit = [point["scale"] for point in curve[1:] if point["retain_loss"] <= limit]
    if not fit:
        logger.warning(
            "The smallest of the scales raises the loss of held-out retain rows by %.3g nats already, above "
            "max_retain_increase=%g. It is taken; give smaller ones.",
            curve[1]["retain_loss"] - curve[0]["retain_loss"],
            allowed,
        )
    return max(fit, default=curve[1]["scale"])
