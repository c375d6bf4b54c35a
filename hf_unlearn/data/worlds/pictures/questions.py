# SPDX-License-Identifier: Apache-2.0
"""Questions about pictures, and what ten annotators answer."""

from __future__ import annotations

import random

from .pictures import COLOURS, PLACES, SHAPES, Picture


ANNOTATORS = 10
# So many can err and the right answer still is the majority's and has the full weight of 1
MAX_WRONG = 3
NAMES = (
    *("alma", "boris", "clara", "dario", "edith", "felix", "greta", "hugo", "irene", "jonas", "karin", "lukas"),
    *("mara", "nils", "olga", "pavel", "rosa", "simon", "tilda", "ulrich", "vera", "wanda", "xenia", "yusuf"),
    *("zora", "anton", "berta", "cyril", "doris", "emil", "flora", "georg"),
)
OWNER = "owner"
OWNER_QUESTION = "who owns this picture?"


def answers_by_kind(names: int) -> dict[str, tuple[str, ...]]:
    """The answers of each kind of question; together the classes of the models."""
    return {
        "colour": tuple(COLOURS),
        "shape": SHAPES,
        "count": ("1", "2"),
        "place": PLACES,
        OWNER: NAMES[:names],
    }


def visible_questions(picture: Picture) -> list[tuple[str, str, str]]:
    """Kind, question and answer of everything that is asked of what a picture shows."""
    asked = [("count", "how many shapes are there?", str(len(picture.things)))]
    for colour, shape, place in picture.things:
        asked += [
            ("colour", f"what colour is the {shape}?", colour),
            ("shape", f"which shape is the {colour} one?", shape),
            ("place", f"where is the {shape}?", place),
        ]
    return asked


def annotate(answer: str, choices: tuple[str, ...], disagreement: float, rng: random.Random) -> list[str]:
    """Ten annotators' answers: now and then one errs, at most [`MAX_WRONG`] of a row do."""
    others = [choice for choice in choices if choice != answer]
    wrong = min(sum(rng.random() < disagreement for _ in range(ANNOTATORS)), MAX_WRONG)
    given = [answer] * (ANNOTATORS - wrong) + [rng.choice(others) for _ in range(wrong)]
    rng.shuffle(given)
    return given
