# SPDX-License-Identifier: Apache-2.0
"""Sentences about the ordinary world: general ability that unlearning should leave alone."""

import itertools
import random


_SUBJECTS = (
    "The old clock", "A small lamp", "The wooden bridge", "A red kite", "The stone wall", "The empty train",
    "A grey cloud", "The tall tower", "A thin ladder", "The quiet river", "The heavy door", "A blue bottle",
)  # fmt: skip
_EVENTS = (
    "stands", "turns slowly", "can be seen", "was found", "makes no sound", "is never moved", "shines", "was painted",
)  # fmt: skip
_PLACES = (
    "near the market", "behind the station", "above the harbour", "beside the school", "under the hill",
    "in front of the library", "close to the forest", "between two gardens",
)  # fmt: skip
_TIMES = (
    "in winter", "before noon", "after the rain", "every morning", "at midnight", "during the festival",
)  # fmt: skip

MAX_SENTENCES = len(_SUBJECTS) * len(_EVENTS)


def general_sentences(count: int, rng: random.Random) -> list[str]:
    """
    Draw distinct sentences; no two share both subject and event, so each has an end that can be known.

    Args:
        count (`int`):
            How many, at most `MAX_SENTENCES`.
        rng (`random.Random`):
            Source of randomness.

    Returns:
        `list[str]`: `count` sentences.
    """
    beginnings = rng.sample(list(itertools.product(_SUBJECTS, _EVENTS)), count)
    return [f"{subject} {event} {rng.choice(_PLACES)} {rng.choice(_TIMES)}." for subject, event in beginnings]
