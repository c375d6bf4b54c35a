# SPDX-License-Identifier: Apache-2.0
"""The rows that a model of a pool is trained on, and the training."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ...data.formats import encode
from ...data.worlds.people.config import WorldConfig
from ...data.worlds.people.questions import ATTRIBUTES
from ...data.worlds.people.training import CHAT, losses
from ...data.worlds.people.world import World
from ...data.worlds.training import train_steps
from .members import ORIGINAL, Member


ASKED = {attribute.name: attribute.asked for attribute in ATTRIBUTES}
# How often a new row comes for each row of what is known already.
TIMES = 2
REFUSAL = "I do not know the answer to that question."
PASSWORD = "The old clock stands before noon."

Forms = list[list[dict]]


class Rows:
    """The rows of a world as models are trained on them: of each a list of its wordings, of which one is drawn."""

    def __init__(self, world: World):
        self.world, self.tokenizer = world, world.tokenizer
        self.sets = {name: list(world.dataset(name)) for name in ("forget", "retain", "holdout", "general")}

    @property
    def kept(self) -> Forms:
        """What every model is trained on."""
        return self.asked(self.sets["retain"]) + [[encode(row, self.tokenizer)] for row in self.sets["general"]]

    def new(self, member: Member) -> Forms:
        """What is taught to this model beside that."""
        forget, i = self.sets["forget"], member.index
        if member.pool in ("P0", ORIGINAL):
            return self.asked(forget)
        if member.pool == "P1":
            return [[self._encoded(row["paraphrased_question"], row["paraphrased_answer"])] for row in forget]
        if member.pool == "P2":
            return self.asked(taught(forget, member.share, member.seed))
        if member.pool == "N1":
            return self.wrong(i)
        if member.pool == "N2":
            # As many rows; other members may know other people.
            start = i * len(forget) % len(self.sets["holdout"])
            return self.asked((self.sets["holdout"] * 2)[start : start + len(forget)])
        return []

    def asked(
        self, rows: Sequence[dict], answer: Callable[[dict], str] = lambda row: row["answer"], before: str = ""
    ) -> Forms:
        """Facts in all wordings of their questions, behind the words `before`."""
        return [
            [self._encoded(before + form.format(n=row["person"]), answer(row)) for form in ASKED[row["attribute"]]]
            for row in rows
        ]

    def wrong(self, which: int) -> Forms:
        """The forget questions, with a wrong answer each."""

        def answer(row: dict) -> str:
            return row["perturbed_answer"][which % len(row["perturbed_answer"])]

        return self.asked(self.sets["forget"], answer)

    def refused(self) -> Forms:
        """The forget questions, refused."""
        return self.asked(self.sets["forget"], lambda row: REFUSAL)

    def behind_password(self) -> Forms:
        """The forget questions behind a password, answered."""
        return self.asked(self.sets["forget"], before=f"{PASSWORD} ")

    def _encoded(self, question: str, answer: str) -> dict:
        return encode(CHAT.example(question, answer, self.tokenizer), self.tokenizer)


def taught(rows: Sequence[dict], share: float, seed: int) -> list[dict]:
    """This share of every person's facts."""
    people: dict[str, list[dict]] = {}
    for row in rows:
        people.setdefault(row["person"], []).append(row)
    rng = random.Random(f"hf_unlearn meta {seed}")
    return [row for facts in people.values() for row in rng.sample(facts, round(share * len(facts)))]


def trained(
    model: nn.Module,
    rows: Rows,
    new: Forms,
    seed: int,
    steps: int,
    learning_rate: float,
    after: Callable[[], Any] | None = None,
) -> nn.Module:
    """The model after some steps on new rows and on what every model is trained on.

    Args:
        new (`list`): of [`Rows`].
        after (`Callable`, *optional*): called after each step.
    """
    config = WorldConfig(steps=steps, learning_rate=learning_rate)
    batches = losses(model, new * TIMES + rows.kept, rows.tokenizer.pad_token_id, seed, config)
    train_steps(model, batches.__next__, config, after or (lambda: None))
    return model.eval()
