# SPDX-License-Identifier: Apache-2.0
"""The head over the stages of a run: what it reads, what it predicts, and where its thresholds are."""

import logging
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback

from ...data.role_table import FORGET
from ...forward.layer import LayerRows
from ...forward.planning import needed_rows
from ...modeling import evaluating
from .alignment_check import AlignmentCheck, tell_rising
from .forward import StageStates
from .head import AlignHead, HeadShape
from .losses import nearest_concept
from .stages import ALIGN, UNLEARN, Stage
from .targets import Targets


logger = logging.getLogger(__name__)

# A share of tokens of which a round would hardly be noticed.
FEW = 0.01


class Rounds:
    """What the trainer's stages share.

    Args:
        trainer ([`AlignThenUnlearnTrainer`]): the run.
        targets ([`Targets`]): its windows.
    """

    def __init__(self, trainer, targets: Targets):
        self.trainer, self.targets, args = trainer, targets, trainer.args
        shape = HeadShape(
            input_size=trainer.model.config.get_text_config().hidden_size,
            output_size=targets.width,
            size=args.head_size,
            layers=args.head_layers,
            heads=args.head_heads,
            dropout=args.head_dropout,
            variant=args.head_variant,
        )
        with torch.random.fork_rng():
            torch.manual_seed(args.seed)
            self.head = AlignHead(shape)
        self.head.to(args.device)
        self.states = StageStates(trainer.forward_path, trainer.train_dataset.roles, trainer.data_collator)
        self.begin()

    def head_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.head.parameters(), lr=self.trainer.args.head_learning_rate)

    # Stages

    def begin(self) -> None:
        """Before the first step of a run, also of the next one of the same trainer."""
        args = self.trainer.args
        # As cosines; quantiles become cosines when their round begins.
        self.thresholds: list[float] = [] if args.threshold_mode == "quantile" else list(args.thresholds)
        self.entered: Stage | None = None
        self.check = AlignmentCheck(args)

    def enter(self, stage: Stage, model: nn.Module) -> None:
        """Makes the stage the current one, if it is not; called by all ranks."""
        if stage == self.entered:
            return
        args = self.trainer.args
        self.trainer.staged.active = stage.kind
        aligns = stage.kind == ALIGN
        if not aligns:
            self.check.judge(stage.round, self.targets.floor, self.trainer.accelerator)
        # A frozen head costs no gradients of its weights.
        self.head.train(aligns).requires_grad_(aligns)
        self.states.clear()
        needed = needed_rows(self.trainer.train_dataset, args)
        if aligns:
            steps = min(stage.stop, self.trainer.state.max_steps) - stage.start
            pairs = steps * args.per_device_train_batch_size * args.gradient_accumulation_steps
            coming_back = {role: rows for role, rows in needed.items() if len(rows) <= pairs}
            with evaluating(model):
                self.states.fill(model, coming_back, args.per_device_eval_batch_size, args.device)
        elif len(self.thresholds) == stage.round:
            self.thresholds.append(self._quantile(model, needed[FORGET], args.thresholds[stage.round]))
            if self.trainer.is_world_process_zero():
                tell_rising(self.thresholds)
        self.entered = stage
        if self.trainer.is_world_process_zero():
            told = f", threshold {self.threshold:.3g}" if stage.kind == UNLEARN else ""
            logger.info("Round %d, steps %d to %d: %s%s.", stage.round + 1, stage.start, stage.stop, stage.kind, told)

    @property
    def threshold(self) -> float:
        """The current round's."""
        return self.thresholds[self.entered.round]

    def _quantile(self, model: nn.Module, rows: list[int], share: float) -> float:
        """A quantile of cosines to the concept, over all forget tokens that a full window follows."""
        args = self.trainer.args
        with evaluating(model), torch.no_grad():
            self.states.fill(model, {FORGET: rows}, args.per_device_eval_batch_size, args.device)
            found = []
            for i in rows:
                states = self.states.known[FORGET, i][None].to(args.device)
                predicted = self.head(states, states.new_ones(states.shape[:2], dtype=torch.bool))[0]
                known = self.targets.known(FORGET, [i]).to(args.device)
                found.append(nearest_concept(predicted[known], self.targets.concept_vectors))
        self.states.clear()
        # `torch.quantile` takes 16 million values at most.
        ordered = torch.cat(found).cpu().sort().values
        threshold = ordered[min(int(share * len(ordered)), len(ordered) - 1)]
        active = (ordered > threshold).float().mean().item()
        if active < FEW and self.trainer.is_world_process_zero():
            logger.warning(
                "The threshold %g, a quantile, leaves %.2g %% of the forget rows' tokens to be pushed: this round "
                "unlearns next to nothing. Give smaller `thresholds`.",
                share,
                100 * active,
            )
        return threshold.item()

    # The head's predictions

    def predictions_and_targets(self, model: nn.Module, parts) -> tuple[Tensor, Tensor]:
        """Of a batch's tokens that a full window follows, all roles together, `[N, d]` each."""
        rows, known, wanted = [], [], []
        with evaluating(model):
            for role, part in parts.items():
                rows += self.states.of(model, role, part)
                known.append(self.targets.known(role, part["index"].tolist()))
                wanted.append(self.targets.vectors(role, part["index"].tolist()))
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        states = pad_sequence(rows, batch_first=True)
        mask = torch.arange(states.shape[1], device=states.device) < lengths[:, None]
        known = torch.cat(known).to(states.device)
        return self.head(states, mask)[mask][known], torch.cat(wanted).to(states.device)

    def concept_cosines(self, rows: LayerRows) -> Tensor:
        """Cosines of predictions to the concept where a full window follows, `[N]`."""
        tokens, mask = rows.tokens, rows.batch["attention_mask"].bool()
        states = rows.states.new_zeros((*mask.shape, rows.states.shape[-1]))
        states = states.index_put((tokens.row, tokens.column), rows.states)
        predicted = self.head(states, mask)[tokens.row, tokens.column]
        known = self.targets.known(FORGET, rows.batch["index"].tolist()).to(predicted.device)
        return nearest_concept(predicted[known], self.targets.concept_vectors)

    # Checkpoints

    def state(self) -> dict[str, Any]:
        head = {f"head.{name}": tensor for name, tensor in self.head.state_dict().items()}
        return {**head, "thresholds": self.thresholds, "plan": self.plan()}

    def plan(self) -> dict[str, Any]:
        """What a resumed run must have as it was, by the arguments' names: the stages, what `thresholds` are, and the
        head."""
        names = ("threshold_mode", "thresholds", "first_align_steps", "align_steps", "unlearn_steps")
        head = {f"head_{name}": value for name, value in asdict(self.head.shape).items()}
        return {name: getattr(self.trainer.args, name) for name in names} | head

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on where [`state`] was asked for.

        Raises:
            `ValueError`: naming what the checkpoint's plan has otherwise.
        """
        then, now = state["plan"], self.plan()
        other = [name for name in now if then[name] != now[name]]
        if other:
            made, asked = (", ".join(f"{name}={plan[name]!r}" for name in other) for plan in (then, now))
            raise ValueError(
                f"The checkpoint was made with {made}, and this run has {asked}. A resumed run goes on with the same "
                "stages and head: give them as they were, or start anew."
            )
        prefix = "head."
        head = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
        self.head.load_state_dict(head)
        self.thresholds = state["thresholds"]
        self.entered = None


class StepHead(TrainerCallback):
    """Encodes the windows before the first step, and does for the head what Trainer and its wrappers do for the model:
    gradients are averaged over processes, clipped, and gone after a step."""

    def __init__(self, trainer):
        self.trainer = trainer
        # Before clipping, of the last step if it trained the head.
        self.grad_norm: Tensor | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.trainer.rounds.begin()
        self.trainer.targets.prepare(self.trainer)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.grad_norm = None
        if self.trainer.stage.kind != ALIGN:
            return
        parameters = list(self.trainer.rounds.head.parameters())
        for parameter in parameters if args.world_size > 1 else ():
            parameter.grad = self.trainer.accelerator.reduce(parameter.grad, reduction="mean")
        if args.max_grad_norm:
            self.grad_norm = nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)

    def on_optimizer_step(self, args, state, control, **kwargs):
        # Trainer lets go of the model's gradients, not the optimizer's.
        self.trainer.rounds.head.zero_grad()

    def on_train_end(self, args, state, control, **kwargs):
        self.trainer.rounds.states.clear()
