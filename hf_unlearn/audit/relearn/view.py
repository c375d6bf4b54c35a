# SPDX-License-Identifier: Apache-2.0
"""How the audit of relearning reads."""

from ..robustness.view import RobustnessView


VIEW = RobustnessView(
    "relearn",
    "Forgotten rows after a little training",
    "The attacker trains for some steps, by default on other forget rows than those that are asked about.",
)
