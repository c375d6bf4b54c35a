# SPDX-License-Identifier: Apache-2.0
"""Audits of local checkpoints, made once; and why one that was expected there is made anew."""

import hashlib
import json
import logging
from pathlib import Path

from ..audit import Audit, BackdoorAudit
from ..audit.suites import PICTURES
from ..cache import cache_root
from ..data.qa import QAFormat
from ..data.sets import Sets
from ..files import read_json, write_json
from ..models.checkpoint_files import ADAPTER_CONFIG
from ..models.checkpoint_paths import base_of, upper_folder
from ..models.wrapper_files import WRAPPER_CONFIG
from ..stored.key import hash_processor
from ..versions import versions


logger = logging.getLogger(__name__)

FOLDERS = {Audit: "audits", BackdoorAudit: "backdoor_audits"}
# Raised when an audit finds more, or otherwise, than those that are kept.
METRICS = 2


class ResultCache:
    """Results of local checkpoints, kept by checkpoint and by all else that they depend on.

    Beside each result stands what it depends on, so that one which has to be made anew says what differs.

    Args:
        about (JSON value):
            All that a result depends on besides the model.
        fields (`dict`):
            The same by name, to tell what differs.
        kind (`type`):
            What is kept: a [`~hf_unlearn.audit.base.SavedResult`].
        folder (`str`):
            Its place within the cache.
    """

    def __init__(self, about, fields: dict, kind: type, folder: str):
        self.about, self.fields = _digest(about), {name: _short(value) for name, value in fields.items()}
        self.kind, self.root = kind, cache_root() / folder

    def path(self, model: str) -> Path | None:
        """Where the audit of a local checkpoint is kept; a Hub id has no such place, since it may move."""
        stats = weights_of(model)
        if not stats:
            return None
        return self.root / f"{_digest([str(Path(model).resolve()), stats, self.about])[:32]}.json"

    def get(self, model: str):
        """The audit that was kept of a checkpoint; `None` where there is none, or a damaged one."""
        path = self.path(model)
        if path is None:
            return None
        if not path.is_file():
            self._tell_why(model)
            return None
        try:
            audit = self.kind.load(path)
        except ValueError as error:
            logger.warning("The kept audit of %s cannot be read and is made anew: %s", model, error)
            return None
        logger.info("The audit of %s is read from %s.", model, path)
        return audit

    def put(self, model: str, audit) -> None:
        """Keeps the audit of a checkpoint."""
        path = self.path(model)
        if path is not None:
            audit.save(path)
            write_json(self._fields_file(model, path.stem), self._fields_of(model))

    def _tell_why(self, model: str) -> None:
        """Says in which fields the most similar audit of this checkpoint differs, if one was kept."""
        mine, others = self._fields_of(model), []
        for file in self.root.glob(self._fields_file(model, "*").name):
            kept = read_json(file)
            differs = [name for name in {**kept, **mine} if kept.get(name) != mine.get(name)]
            others.append([f"{name} ({kept.get(name)} then, {mine.get(name)} now)" for name in differs])
        if others:
            nearest = ", ".join(min(others, key=len)) or "nothing: its file is gone"
            logger.info("The audit of %s is made anew. The kept one differs in %s.", model, nearest)

    def _fields_of(self, model: str) -> dict[str, str]:
        return {**self.fields, "weights": _short(weights_of(model))}

    def _fields_file(self, model: str, key: str) -> Path:
        return self.root / f"{_digest(str(Path(model).resolve()))[:16]}-{key}.fields.json"


class AuditCache(ResultCache):
    """Audits of question sets, and of what a trigger does to their answers.

    Args:
        run, qa, sets, tokenizer:
            What an audit depends on besides the model.
        computed (`dict`):
            How the model is loaded and run: dtype, attention, autocast, device.
        kind (`type`):
            What is kept: [`Audit`] or [`BackdoorAudit`].
        more (`dict`, *optional*):
            What an audit of another kind depends on beside that, by name.
    """

    def __init__(self, run, qa: QAFormat, sets: Sets, tokenizer, computed: dict, kind: type = Audit, more=None):
        rows = {name: _with_files(data).to_list() for name, data in sets.audited.items()}
        words = [hash_processor(tokenizer), tokenizer.chat_template]
        names = ["prompts", "audit_max_items", "max_new_tokens", "lm_eval_tasks"]
        names += ["retrained_model_name_or_path"] if sets.suite == PICTURES else []
        asked = [getattr(run, name) for name in names]
        about = [METRICS, rows, sets.suite, vars(qa), words, asked, computed, versions(), *([more] if more else [])]
        fields = {"metrics": METRICS, "suite": sets.suite, **vars(qa), "tokenizer": words, **computed, **(more or {})}
        fields |= zip(names, asked, strict=True)
        fields |= {f"rows of {name}": data for name, data in rows.items()}
        fields |= {f"version of {name}": value for name, value in versions().items()}
        super().__init__(about, fields, kind, FOLDERS[kind])


# What a model does with its weights.
_CONFIGS = ("config.json", "generation_config.json", ADAPTER_CONFIG, WRAPPER_CONFIG)


def weights_of(model: str) -> list:
    """Names, sizes and times of a local checkpoint's weights, what its configs hold, and the same of an adapter's or
    a wrapper's base."""
    upper = upper_folder(model)
    folder = upper or Path(model)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    # A wrapper may have no tensors.
    if not files and not (folder / WRAPPER_CONFIG).is_file():
        return []
    configs = {name: (folder / name).read_text("utf-8") for name in _CONFIGS if (folder / name).is_file()}
    base = base_of(upper) if upper else ()
    below = [base, weights_of(base[0])] if base else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files] + [configs, *below]


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _short(value) -> str:
    """A value as it is told, a long one by its hash."""
    text = json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 40 else f"#{_digest(value)[:8]}"


def _with_files(rows):
    """Rows with pictures as bytes and files."""
    import datasets

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    return rows
