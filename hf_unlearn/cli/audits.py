# SPDX-License-Identifier: Apache-2.0
"""Audits for the commands: one set of options for every model, and local checkpoints audited only once."""

import hashlib
import json
import logging
from pathlib import Path

from accelerate import PartialState

from ..audit import Audit, audit_model
from ..audit.harness import check_tasks, run_tasks
from ..audit.rwku import audit_rwku
from ..audit.sets import read_sets
from ..audit.suites import get_suite
from ..audit.vqa_rows import check_rows
from ..cache import cache_root
from ..data.qa import QAFormat
from ..families import CLASSIFIER, family_of
from ..files import read_json, write_json
from ..stored.key import hash_processor
from ..stored.store import on_first_process
from ..versions import versions
from .arguments import AuditArguments
from .picture_audit import PICTURES, picture_auditor
from .sets import Sets


logger = logging.getLogger(__name__)

# Raised when an audit finds more, or otherwise, than those that are kept.
METRICS = 2


def check_audited(sets: Sets, max_items: int | None) -> None:
    """Refuses sets that an audit cannot read."""
    if sets.suite == PICTURES:
        for name, rows in sets.audited.items():
            check_rows(name, rows)
        return
    read_sets(sets.audited, get_suite(sets.suite).roles_of(sets.audited), max_items)


def check_fits(model: str, suite: str, trust_remote_code: bool = False, revision: str | None = None) -> None:
    """Refuses a classifier for sets of questions in words, and a language model for those about pictures; nothing is
    loaded for that.

    Raises:
        `ValueError`: in one line.
    """
    family = family_of(model, trust_remote_code=trust_remote_code, revision=revision).name
    if (family == CLASSIFIER) != (suite == PICTURES):
        wanted = "a classifier, for questions about pictures" if suite == PICTURES else "a language model"
        raise ValueError(f"{model} is a {family.replace('_', ' ')}, and these sets are asked of {wanted}.")


def auditor(run: AuditArguments, qa: QAFormat, sets: Sets, tokenizer, progress: bool = True):
    """A function of a model and an accelerator (or `None`) that audits the model as the recipe says."""
    if sets.suite == PICTURES:
        return picture_auditor(run, sets, tokenizer, progress)
    measure = audit_rwku if sets.suite == "rwku" else audit_model
    if run.lm_eval_tasks:
        _check_harness(run.lm_eval_tasks)

    def audit(model, accelerator=None) -> Audit:
        found = measure(
            model,
            tokenizer,
            sets.audited,
            suite=sets.suite,
            qa=qa,
            max_items=run.audit_max_items,
            max_new_tokens=run.max_new_tokens,
            batch_size=run.audit_batch_size,
            generation_batch_size=run.audit_batch_size,
            prompts=run.prompts or (),
            accelerator=accelerator,
            progress=progress,
        )
        if run.lm_eval_tasks:
            bare = model if accelerator is None else accelerator.unwrap_model(model)
            known = _known_to_tasks(run, tokenizer)
            options = {"batch_size": run.audit_batch_size, "limit": run.audit_max_items, "metadata": known}
            chat = qa.settled(tokenizer).use_chat_template
            found.metrics.update(run_tasks(bare, tokenizer, run.lm_eval_tasks, chat=chat, **options))
        return found

    return audit


def _check_harness(tasks: list[str]) -> None:
    check_tasks(tasks)
    if PartialState().num_processes > 1:
        raise ValueError(
            "lm_eval_tasks are run by one process, and this run has several. Leave them out here, and give them to "
            "`hf-unlearn eval` of the result."
        )


def _known_to_tasks(run, tokenizer) -> dict:
    """What our own lm-eval tasks read of a run."""
    known = {"tokenizer": tokenizer.name_or_path, "rwku_targets": run.forget_targets}
    return known | ({} if run.benchmark_path is None else {f"{run.benchmark}_path": run.benchmark_path})


class AuditCache:
    """Audits of local checkpoints, kept by checkpoint, rows and options.

    Beside each audit stands what it depends on, so that an audit which has to be made anew says what differs.

    Args:
        run, qa, sets, tokenizer:
            What an audit depends on besides the model.
        computed (`dict`):
            How the model is loaded and run: dtype, attention, autocast, device.
    """

    def __init__(self, run: AuditArguments, qa: QAFormat, sets: Sets, tokenizer, computed: dict):
        rows = {name: _with_files(data).to_list() for name, data in sets.audited.items()}
        words = [hash_processor(tokenizer), tokenizer.chat_template]
        names = ["prompts", "audit_max_items", "max_new_tokens", "lm_eval_tasks"]
        names += ["retrained_model_name_or_path"] if sets.suite == PICTURES else []
        asked = [getattr(run, name) for name in names]
        about = [METRICS, rows, sets.suite, vars(qa), words, asked, computed, versions()]
        self.about = _digest(about)
        fields = {"metrics": METRICS, "suite": sets.suite, **vars(qa), "tokenizer": words, **computed}
        fields |= zip(names, asked, strict=True)
        fields |= {f"rows of {name}": data for name, data in rows.items()}
        fields |= {f"version of {name}": value for name, value in versions().items()}
        self.fields = {name: _short(value) for name, value in fields.items()}
        self.root = cache_root() / "audits"

    def path(self, model: str) -> Path | None:
        """Where the audit of a local checkpoint is kept; a Hub id has no such place, since it may move."""
        stats = _stats(model)
        if not stats:
            return None
        return self.root / f"{_digest([str(Path(model).resolve()), stats, self.about])[:32]}.json"

    def get(self, model: str) -> Audit | None:
        path = self.path(model)
        if path is None:
            return None
        if not path.is_file():
            self._tell_why(model)
            return None
        try:
            audit = Audit.load(path)
        except ValueError as error:
            logger.warning("The kept audit of %s cannot be read and is made anew: %s", model, error)
            return None
        logger.info("The audit of %s is read from %s.", model, path)
        return audit

    def put(self, model: str, audit: Audit) -> None:
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
        return {**self.fields, "weights": _short(_stats(model))}

    def _fields_file(self, model: str, key: str) -> Path:
        return self.root / f"{_digest(str(Path(model).resolve()))[:16]}-{key}.fields.json"


def _stats(model: str) -> list[tuple]:
    """Names, sizes and times of a local checkpoint's weights."""
    files = sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


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


def audit_checkpoint(model: str, audit, cache: AuditCache, load, together: bool = False) -> Audit:
    """Audits a checkpoint, or reads its audit from the cache.

    Args:
        model (`str`): a folder or Hub id.
        audit (`Callable[[Module], Audit]`): audits a model.
        cache ([`AuditCache`]): where audits are kept.
        load (`Callable[[str], Module]`): gives the model.
        together (`bool`): all processes are here and share the work; otherwise only one is.
    """
    # One process decides for all, so that none waits for another which found the audit.
    found = on_first_process(lambda: cache.get(model)) if together else cache.get(model)
    if found is None:
        found = audit(load(model))
        if PartialState().is_main_process:
            cache.put(model, found)
    return found


def add_forget_quality(audits: list[Audit], retrained: Audit) -> list[str]:
    """Holds audits against the retrained model's where that is possible; returns what a report should note."""
    if retrained.settings["suite"] == PICTURES:
        # Held against it row by row, when it was audited.
        return []
    forget = [about for about in retrained.settings["sets"].values() if about["role"] == "forget"]
    if not any(about["wrong_answers"] for about in forget):
        return ["Forget quality is missing: it needs wrong answers (`perturbed_answer`) to the forget questions."]
    for audit in audits:
        audit.compare(retrained)
    return []
