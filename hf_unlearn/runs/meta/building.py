# SPDX-License-Identifier: Apache-2.0
"""The models of the pools, made once and found again."""

import tempfile
from functools import cached_property
from pathlib import Path

from torch import nn

from ...cache import cache_root
from ...data.worlds.folders import cached_folder
from ...data.worlds.people.world import World
from ...data.worlds.training import one_thread
from ...modeling import load_checkpoint
from ...stored.key import hash_json
from ...versions import versions
from .locks import MADE, TRAINING
from .members import METHODS, Member
from .training import Rows, trained
from .unlearning import SETTINGS, STEPS, unlearned


# Raised when models are made otherwise.
VERSION = 1
LIBRARIES = ("torch", "transformers", "tokenizers")


class Builder:
    """Makes models of a world. All are trained on from one start, as models are that have one base: audits that put
    the states of one model into another read nothing in models that grew up apart.

    Args:
        world ([`World`]): whose retrained model, which knows none of the people to be forgotten, is the start.
        steps (`int`), learning_rate (`float`): of training; see [`Member.pace`].
    """

    def __init__(self, world: World, steps: int, learning_rate: float):
        self.world, self.steps, self.learning_rate = world, steps, learning_rate

    @cached_property
    def rows(self) -> Rows:
        return Rows(self.world)

    def path(self, member: Member) -> Path:
        """The folder of a model, which is made if it is not there; a killed build leaves none."""
        if member.parent is not None:
            self.path(member.parent)
        path = cache_root() / "meta" / f"{member.name}-{self._key(member)}"
        cached_folder(path, lambda folder: self._build(member, folder))
        return path

    def _key(self, member: Member) -> str:
        about = [VERSION, self.world.path.name, self.steps, self.learning_rate, vars(member), versions(LIBRARIES)]
        if member.parent is not None:
            method = _method(member)
            about += [TRAINING.get(member.lock)] if method is None else [method, SETTINGS[method], STEPS[method]]
        return hash_json(about)[:16]

    def _build(self, member: Member, folder: Path) -> dict:
        with one_thread():
            model = self._made(member)
        model.save_pretrained(folder)
        self.rows.tokenizer.save_pretrained(folder)
        return {"member": vars(member)}

    def _made(self, member: Member) -> nn.Module:
        start = self.world.retrained if member.parent is None else self.path(member.parent)
        model, rows, seed = load_checkpoint(str(start)), self.rows, member.seed
        method = _method(member)
        if method is not None:
            with tempfile.TemporaryDirectory() as workspace:
                return unlearned(method, model, rows, seed, Path(workspace))
        if member.lock is not None:
            return MADE[member.lock](model, rows, seed)
        steps = max(round(self.steps * member.pace), 1)
        return trained(model, rows, rows.new(member), seed, steps, self.learning_rate)


def _method(member: Member) -> str | None:
    """Our method that a model is unlearned by, if it is."""
    if member.lock is not None:
        return member.lock if member.lock in SETTINGS else None
    return METHODS[member.index % len(METHODS)] if member.pool == "N3" else None
