# SPDX-License-Identifier: Apache-2.0
"""How the audit of prompts reads."""

from ..robustness.view import RobustnessView


VIEW = RobustnessView(
    "prompts",
    "Forgotten rows asked in other words",
    "Questions are put in other ways, in every model the same. `max` is the best of them in each row, in every model; "
    "ways in which the original model does not answer what is kept either are left out of it.",
)
