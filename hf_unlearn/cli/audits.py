# SPDX-License-Identifier: Apache-2.0
"""Audits for the commands: one set of options for every model, and local checkpoints audited only once."""

import hashlib
import json
import logging
import os
from pathlib import Path

from ..audit import Audit, audit_model
from ..cache import cache_root
from ..data.qa import QAFormat
from .arguments import AuditArguments
from .sets import Sets


logger = logging.getLogger(__name__)


def auditor(run: AuditArguments, qa: QAFormat, sets: Sets, tokenizer):
    """A function of a model and an accelerator (or `None`) that audits the model as the recipe says."""

    def audit(model, accelerator=None) -> Audit:
        return audit_model(
            model,
            tokenizer,
            sets.audited,
            suite=sets.suite,
            qa=qa,
            max_items=run.audit_max_items,
            max_new_tokens=run.max_new_tokens,
            batch_size=run.audit_batch_size,
            generation_batch_size=run.audit_batch_size,
            accelerator=accelerator,
        )

    return audit


class AuditCache:
    """Audits of local checkpoints, kept by checkpoint, rows and options.

    Args:
        run, qa, sets:
            What an audit depends on besides the model.
    """

    def __init__(self, run: AuditArguments, qa: QAFormat, sets: Sets):
        rows = {name: data.to_list() for name, data in sets.audited.items()}
        about = [rows, sets.suite, vars(qa), run.audit_max_items, run.max_new_tokens]
        self.about = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()
        self.root = cache_root() / "audits"

    def path(self, model: str) -> Path | None:
        """Where the audit of a local checkpoint is kept; a Hub id has no such place, since it may move."""
        files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
        if not files:
            return None
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        key = hashlib.sha256(json.dumps([str(Path(model).resolve()), stats, self.about]).encode()).hexdigest()
        return self.root / f"{key[:32]}.json"

    def get(self, model: str) -> Audit | None:
        path = self.path(model)
        if path is None or not path.is_file():
            return None
        logger.info("The audit of %s is read from %s.", model, path)
        return Audit.load(path)

    def put(self, model: str, audit: Audit) -> None:
        path = self.path(model)
        if path is not None:
            part = path.with_suffix(f".{os.getpid()}.part")
            audit.save(part).replace(path)


def audit_checkpoint(model: str, audit, cache: AuditCache, load) -> Audit:
    """Audits a checkpoint, or reads its audit from the cache. `load(path)` gives the model."""
    found = cache.get(model)
    if found is None:
        found = audit(load(model))
        cache.put(model, found)
    return found
