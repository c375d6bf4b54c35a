# SPDX-License-Identifier: Apache-2.0
"""How the audit with a soft prompt reads."""

from ..robustness.view import RobustnessView


VIEW = RobustnessView(
    "soft_prompt",
    "Forgotten rows behind a trained prompt",
    "A few vectors in front of the question are trained to bring out some forgotten rows; the others are tested.",
)
