# SPDX-License-Identifier: Apache-2.0
"""A small world, and models of pools that know it or do not: made once a session, in a few seconds."""

import functools

from hf_unlearn.data.worlds.people import build_world
from hf_unlearn.data.worlds.people.config import WorldConfig
from hf_unlearn.modeling import load_checkpoint
from hf_unlearn.runs.meta.building import Builder


SMALL = WorldConfig(
    forget_people=4, retain_people=4, holdout_people=4, facts_per_person=2, general_sentences=8, hidden_size=32,
    num_layers=2, num_heads=2, steps=150, min_known=0, max_unseen=1,
)  # fmt: skip
STEPS, RATE = 100, 5e-3


@functools.cache
def builder() -> Builder:
    return Builder(build_world(progress=False, config=SMALL), STEPS, RATE)


def model_of(member):
    return load_checkpoint(str(builder().path(member))).eval()
