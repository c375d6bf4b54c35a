# SPDX-License-Identifier: Apache-2.0
"""How two checkpoints together read: beside each of them alone."""

from ..view import AuditView


VIEW = AuditView(
    "two_checkpoint",
    title="Forgotten rows from two checkpoints",
    text="What somebody who kept the model from before unlearning reads out of both together. For information: a "
    "retrained model does not pass this either, and no verdict follows.",
    columns={
        "before/probability": "Probability",
        "original/probability/after": "Original alone",
        "guided/probability/after": "Both",
        "original/exact_match/after": "Exact: original alone",
        "guided/exact_match/after": "Exact: both",
    },
)
