# SPDX-License-Identifier: Apache-2.0
"""How the audit of quantised weights reads."""

from ..robustness.view import RobustnessView


VIEW = RobustnessView(
    "quantize",
    "Forgotten rows in quantised weights",
    "Every linear layer but the head is rounded to the format and back; small updates of unlearning can fall away.",
)
