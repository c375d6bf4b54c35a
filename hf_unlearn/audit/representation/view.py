# SPDX-License-Identifier: Apache-2.0
"""How the audit of what is inside a model reads."""

from ..robustness.view import RobustnessView


VIEW = RobustnessView(
    "representation",
    "Forgotten rows inside the model",
    "Nothing is changed: answers are read from every layer (`lens`), in the original model that is given this one's "
    "states (`erasure`), and with one direction of each layer taken away (`directions`).",
)
