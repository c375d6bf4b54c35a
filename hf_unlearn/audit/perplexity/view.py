# SPDX-License-Identifier: Apache-2.0
"""How perplexity reads."""

from ..view import AuditView


VIEW = AuditView(
    "perplexity",
    title="Perplexity on general text",
    text="exp of the mean negative log-probability a token, with its 95% interval over the choice of rows; lower is "
    "better. What unlearning did to it is the difference from the target.",
    columns={"perplexity": "Perplexity ↓", "nll": "Nats a token ↓"},
)
