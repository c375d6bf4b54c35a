# SPDX-License-Identifier: Apache-2.0
"""How the audit of sampled answers reads."""

from ..robustness.view import RobustnessView


VIEW = RobustnessView(
    "sampling",
    "Forgotten rows in many draws",
    "Answers are drawn at a temperature: `leak@k` is the best of `k` draws, `leak_exact@k` the probability that one "
    "of them is the expected answer, word for word.",
)
