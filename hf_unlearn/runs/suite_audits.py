# SPDX-License-Identifier: Apache-2.0
"""Audits for the commands: one set of options for every model, and local checkpoints audited only once."""

from accelerate import PartialState

from ..audit import Audit, audit_model
from ..audit.arguments import AuditArguments
from ..audit.harness import check_tasks, run_tasks
from ..audit.rwku.measure import audit_rwku
from ..audit.sets import read_sets
from ..audit.suites import PICTURES, get_suite
from ..audit.vqa.predictions import check_rows
from ..data.qa import QAFormat
from ..data.sets import Sets
from ..processes import on_first_process
from .audit_cache import AuditCache
from .picture_audit import picture_auditor


def check_audited(sets: Sets, max_items: int | None) -> None:
    """Refuses sets that an audit cannot read."""
    if sets.suite == PICTURES:
        for name, rows in sets.audited.items():
            check_rows(name, rows)
        return
    read_sets(sets.audited, get_suite(sets.suite).roles_of(sets.audited), max_items)


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
