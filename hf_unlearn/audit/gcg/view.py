# SPDX-License-Identifier: Apache-2.0
"""How the audit with a searched prefix reads."""

from ..robustness.view import RobustnessView


VIEW = RobustnessView(
    "gcg",
    "Forgotten rows behind a searched prefix",
    "A text in the question is searched, token by token, to bring out some forgotten rows; the others are tested.",
)
