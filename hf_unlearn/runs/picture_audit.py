# SPDX-License-Identifier: Apache-2.0
"""Audits of classifiers for the commands."""

from functools import cache

from ..audit import Audit
from ..audit.checkpoints import checkpoint_of
from ..data.benchmarks import resolve_model


def picture_auditor(run, sets, processor, progress: bool):
    """A function of a model and an accelerator (or `None`) that audits a classifier as the recipe says; beside the
    retrained model, row by row, where one is named.

    Raises:
        `ValueError`: for options that only language models have.
    """
    from ..audit.vqa.measure import audit_classifier

    if asked := [name for name in ("prompts", "lm_eval_tasks") if getattr(run, name)]:
        raise ValueError(f"{', '.join(asked)}: for language models, and this benchmark asks about pictures.")
    name = run.retrained_model_name_or_path
    path = None if name is None else resolve_model(name)
    gold = cache(lambda: checkpoint_of(path))
    rows = {name: _some(found, run.audit_max_items) for name, found in sets.audited.items()}

    def audit(model, accelerator=None) -> Audit:
        bare = model if accelerator is None else accelerator.unwrap_model(model)
        beside = None
        if path is not None and bare.config._name_or_path != path:
            beside = gold().to(next(bare.parameters()).device)
        return audit_classifier(
            bare, processor, rows, retrained=beside, batch_size=run.audit_batch_size, progress=progress
        )

    return audit


def _some(rows, count: int | None):
    return rows if count is None or count >= len(rows) else rows.shuffle(seed=0).select(range(count))
