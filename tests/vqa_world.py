# SPDX-License-Identifier: Apache-2.0
"""A world of pictures for tests, in a quarter of the time of the one users get."""

from hf_unlearn.data.vqa import VQAWorldConfig


SMALL = VQAWorldConfig(
    pictures=120,
    forget_owners=20,
    retain_owners=40,
    test_pictures=60,
    holdout_pictures=60,
    names=10,
    questions_per_picture=3,
    steps=550,
    learning_rate=2e-3,
    min_known=0.9,
    min_seen=0.6,
    max_unseen=0.3,
)
