# SPDX-License-Identifier: Apache-2.0
"""A weight mask, kept through the optimizer.

A gradient of 0 does not keep a weight: decay and momentum move it. Here the gradient is 0, so that neither clipping
nor the optimizer's moments see a masked weight, and after each step its value is put back bit for bit.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..addon import AddOn, Step
from ..cost import Cost, Sizes
from .choice import highest
from .files import check_mask_fits, packed, read_mask, unpacked
from .kinds import FILE, SCORES, WAGLE
from .scores import Scorer


logger = logging.getLogger(__name__)
BITS = "bits."


class WeightMask(AddOn):
    """Only the weights that a score or a file chooses train.

    Args:
        args ([`UnlearnConfig`]): the run's.
    """

    name = "mask"
    title = "The weight mask"

    def __init__(self, args):
        self.args, self.by = args, args.mask_by
        self.language_models_only = bool(SCORES.get(self.by))
        # Name -> bool, true where a weight trains; as bits until the model is there, on resume.
        self.masks: dict[str, Tensor] = {}
        self.bits: dict[str, Tensor] = {}
        self.kept: dict[str, Tensor] = {}
        self.handles: list = []

    def refuse(self, args, method: type, adapter: bool) -> None:
        """Raises `ValueError` for an adapter: what it adds changes every entry of a weight."""
        if adapter:
            raise ValueError(
                "mask_by: a mask chooses entries of the model's own weights, and an adapter changes all of them. "
                "Leave `mask_by` or the adapter out."
            )
        if self.by == WAGLE and (why := method.unscored(args)):
            raise ValueError(
                f"mask_by='wagle' scores weights by the forget term that training begins with, and {method.method} "
                f"{why}. Choose another `mask_by`."
            )

    def load(self, roles: Mapping, collator) -> None:
        """Raises `ValueError` if the score is of rows that the run does not have."""
        if missing := [role for role in SCORES.get(self.by, ()) if role not in roles]:
            raise ValueError(
                f"mask_by={self.by!r} scores weights by {' and '.join(missing)} rows, and this run has "
                f"{', '.join(roles)} rows. Give them, or choose another `mask_by`."
            )

    def setup(self, entry) -> None:
        """Raises `ValueError` for a file that does not fit the model."""
        self.entry = entry
        if self.by == FILE:
            check_mask_fits(self.args.mask_file, entry.model)

    def prepare(self, start) -> None:
        """Chooses the weights, or finds those of the checkpoint again, and takes the values of the others."""
        parameters = {name: weight for name, weight in start.core.named_parameters() if weight.requires_grad}
        if self.bits:
            if self.bits.keys() != parameters.keys():
                raise ValueError(
                    "The checkpoint's mask is of other weights than train now. Give its trainable_modules."
                )
            self.masks = {name: unpacked(self.bits.pop(name), weight) for name, weight in parameters.items()}
            if self.by == FILE and any(
                not torch.equal(mask, self.masks[name]) for name, mask in self._choose(start, parameters).items()
            ):
                raise ValueError(
                    f"The checkpoint was made with another mask than mask_file={self.args.mask_file!r} has."
                )
        elif not self.masks:
            self.masks = self._choose(start, parameters)
            train, of = (sum(int(f(mask)) for mask in self.masks.values()) for f in (torch.count_nonzero, torch.numel))
            logger.info("The weight mask (%s): %d of %d weights train (%.3g).", self.by, train, of, train / of)
        self.kept = {name: weight.detach().masked_select(~self.masks[name]) for name, weight in parameters.items()}

    def before_step(self, step: Step) -> None:
        """From here to the optimizer's step the gradients of masked weights are 0, those of repeated passes too."""
        self._release()
        for name, weight in step.parameters.items():
            self.handles.append(weight.register_hook(_zeroed_outside(self.masks[name])))

    @torch.no_grad()
    def after_optimizer(self, step: Step) -> None:
        """Puts the values of masked weights back."""
        self._release()
        for name, weight in step.parameters.items():
            weight.masked_scatter_(~self.masks[name], self.kept[name])

    def cost(self, sizes: Sizes) -> Cost:
        """A byte and, if it is masked, a copy of each weight; before, two scores and a gradient at most."""
        copied = 0.0 if self.by == FILE else 1 - self.args.mask_share
        scores = 8 if self.by in ("fisher", WAGLE) else 4
        gradients = sizes.gradient if SCORES.get(self.by) and self.by != "wanda" else 0
        start = 0 if self.by == FILE else (scores + gradients) * sizes.trained
        return Cost(held=(1 + copied * sizes.weight) * sizes.trained, start=start)

    def state(self) -> dict[str, Any]:
        """What decided the mask, and one bit a weight."""
        bits = {f"{BITS}{name}": packed(mask) for name, mask in self.masks.items()}
        return self._settings | bits

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes the mask of a checkpoint.

        Raises:
            `ValueError`: if it was chosen in another way than this run's settings say.
        """
        now = self._settings
        # Checkpoints of before do not say what had one value alone.
        made = {name: state.get(name) for name in now}
        if made != now:
            told, asked = (", ".join(f"mask_{n}={v!r}" for n, v in found.items()) for found in (made, now))
            raise ValueError(
                f"The checkpoint was made with {told}, and this run has {asked}. Give the same, or start anew."
            )
        self.bits = {name.removeprefix(BITS): bits for name, bits in state.items() if name.startswith(BITS)}

    @property
    def _settings(self) -> dict[str, Any]:
        mu = {"mu": self.args.mask_mu} if self.by == WAGLE else {}
        return {"by": self.by, "share": self.args.mask_share, "rows": self.args.mask_rows} | mu

    def _choose(self, start, parameters: Mapping) -> dict[str, Tensor]:
        if self.by == FILE:
            return read_mask(self.args.mask_file, parameters)
        scorer = Scorer(self.entry, start, parameters, self.args.mask_rows)
        return highest(scorer.scores(self.by), self.args.mask_share)

    def _release(self) -> None:
        while self.handles:
            self.handles.pop().remove()


def _zeroed_outside(mask: Tensor):
    # Filled, not multiplied: 0 times a gradient that is not finite is no 0.
    return lambda gradient: gradient.masked_fill(~mask, 0)
