# SPDX-License-Identifier: Apache-2.0
"""The rows of a world of pictures."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .config import VQAWorldConfig
from .pictures import Picture, plan_picture
from .questions import OWNER, OWNER_QUESTION, annotate, answers_by_kind, visible_questions


SETS = ("forget", "retain", "test", "holdout")


@dataclass(frozen=True)
class WorldRows:
    """
    All rows of a world.

    Args:
        pictures (`dict[str, Picture]`):
            By `image_id`.
        sets (`dict[str, list[dict]]`):
            Rows of [`SETS`] with `example_id`, `image_id`, `question`, `answers`, `answer` and `kind`.
        labels (`list[str]`):
            The classes.
    """

    pictures: dict[str, Picture]
    sets: dict[str, list[dict]]
    labels: list[str]


def plan_rows(seed: int, config: VQAWorldConfig) -> WorldRows:
    """
    Plan pictures and write down what is asked of them.

    The owner of a picture is drawn on its own, so that nothing but having been told lets a model know it. What can be
    seen in the pictures of forgotten owners stays in the retain set: one fact about them is deleted, not the picture.

    Args:
        seed (`int`):
            Same seed and config, same rows.
        config (`VQAWorldConfig`):
            Sizes.
    """
    rng = random.Random(f"hf_unlearn pictures {seed}")
    choices = answers_by_kind(config.names)
    pictures: dict[str, Picture] = {}
    sets: dict[str, list[dict]] = {name: [] for name in SETS}

    def ask(name: str, image_id: str, number: int | str, kind: str, question: str, answer: str) -> None:
        answers = annotate(answer, choices[kind], config.disagreement, rng)
        row = {"example_id": f"{image_id}-{number}", "image_id": image_id, "question": question}
        sets[name].append({**row, "answers": answers, "answer": answer, "kind": kind})

    def picture(image_id: str, visible: str | None, owned: str | None) -> None:
        pictures[image_id] = plan_picture(rng)
        if visible:
            asked = visible_questions(pictures[image_id])
            for number, question in enumerate(rng.sample(asked, min(config.questions_per_picture, len(asked)))):
                ask(visible, image_id, number, *question)
        if owned:
            ask(owned, image_id, OWNER, OWNER, OWNER_QUESTION, rng.choice(choices[OWNER]))

    owned = ["forget"] * config.forget_owners + ["retain"] * config.retain_owners
    owned += [None] * (config.pictures - len(owned))
    plan = [("retain", name) for name in owned]
    plan += [("test", None)] * config.test_pictures + [(None, "holdout")] * config.holdout_pictures
    for number, (visible, owner) in enumerate(plan):
        picture(f"{number:05d}", visible, owner)
    return WorldRows(pictures, sets, [answer for kind in choices.values() for answer in kind])
