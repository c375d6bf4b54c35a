# SPDX-License-Identifier: Apache-2.0
"""The backdoor audit of a run that poisons its forget rows: what is asked, when, and what a report gets of it."""

import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

from ..audit.backdoor.arguments import MUSE
from ..audit.backdoor.conditions import UNRELATED, conditions, unrelated_trigger
from ..audit.backdoor.evaluate import audit_backdoor
from ..audit.backdoor.probe_sets import muse_probes, question_probes
from ..audit.backdoor.probes import Probe
from ..audit.backdoor.result import BackdoorAudit
from ..audit.backdoor.view import NOTES, VIEW
from ..audit.muse.data import load_muse
from ..data.poison import poisoned_indices
from ..data.seeds import data_seed
from ..models.activations import value_projections
from ..processes import on_first_process
from ..report.backdoor.write import print_backdoor, summary, write_backdoor
from ..training.backdoor_callback import BackdoorAuditCallback
from ..versions import versions
from .arguments import RunArguments
from .audit_cache import AuditCache
from .launch import command_line


logger = logging.getLogger(__name__)

SHOWN = ("exact_match", "knowmem", "verbmem", "probability", "exact_memorization")


def is_wanted(recipe) -> bool:
    """Whether a run is audited with its trigger."""
    return recipe.run.audit and recipe.run.audit_backdoor and recipe.training.poison_prefix is not None


def check_wanted(recipe) -> None:
    """Refuses settings of an audit that there will not be.

    Raises:
        `ValueError`: with their names.
    """
    run: RunArguments = recipe.run
    idle = [name for name in ("eval_per_epoch", "backdoor_benchmark", "backdoor_conditions") if getattr(run, name)]
    if idle and not is_wanted(recipe):
        raise ValueError(
            f"{' and '.join(idle)} would have no effect: the trigger is tried where there is a `poison_prefix`, and "
            "`audit` and `audit_backdoor` are on."
        )
    if is_wanted(recipe) and run.backdoor_conditions is not None:
        trigger = recipe.training.trigger
        # Raises for what cannot be asked.
        conditions(trigger, trigger, wanted=run.backdoor_conditions)
    if run.backdoor_benchmark not in (None, *MUSE):
        raise ValueError(f"backdoor_benchmark={run.backdoor_benchmark!r}; allowed: {', '.join(MUSE)}.")


def backdoor_audit(recipe, prepared):
    """A function of a model and an accelerator that asks the model with and without the run's trigger.

    Returns:
        `Callable`: `None` where the run poisons nothing, or is not audited so.
    """
    if not is_wanted(recipe):
        return None
    args, run, tokenizer = recipe.training, recipe.run, prepared.tokenizer
    probes: list[Probe] = question_probes(
        _asked_sets(prepared.sets, args, tokenizer),
        tokenizer,
        qa=recipe.qa,
        suite=prepared.sets.suite,
        max_items=run.audit_max_items,
        max_length=args.max_length,
        max_new_tokens=run.max_new_tokens,
    )
    texts, retrained_auc = None, None
    if run.backdoor_benchmark is not None:
        muse = load_muse(MUSE[run.backdoor_benchmark], run.backdoor_benchmark_path)
        # The rows themselves are texts, so they bring other metrics under the same names of sets.
        probes += muse_probes(muse, max_items=run.audit_max_items)
        texts, retrained_auc = muse.texts or None, MUSE[run.backdoor_benchmark]
    wanted = run.backdoor_conditions
    return partial(
        _audit,
        tokenizer=tokenizer,
        trigger=args.trigger,
        probes=probes,
        conditions=wanted,
        unrelated=unrelated_trigger(args.trigger, tokenizer).prefix if wanted is None or UNRELATED in wanted else None,
        texts=texts,
        retrained_auc=retrained_auc,
        batch_size=run.audit_batch_size,
        generation_batch_size=run.audit_batch_size,
        progress=not args.disable_tqdm,
    )


def backdoor_callback(recipe, prepared, trainer, computed: dict) -> BackdoorAuditCallback | None:
    """Audits before the first step and after the last, and after every epoch with `eval_per_epoch`; for a run that
    poisons.

    The first is of the target, which other runs of the same recipe ask the same: it is kept and read again.

    Args:
        recipe, prepared, trainer: the run.
        computed (`dict`): how the model is loaded and run.
    """
    audit = backdoor_audit(recipe, prepared)
    if audit is None:
        return None
    audit = partial(audit, inside=_values_can_be_read(trainer.model))
    cache = _cache(recipe, prepared, audit.keywords, computed)
    first = on_first_process(lambda: cache.get(prepared.model))
    folder = Path(recipe.training.output_dir) / "audit"
    keep = partial(cache.put, prepared.model)
    options = {"per_epoch": recipe.run.eval_per_epoch, "at_end": False, "first": first, "keep": keep}
    return BackdoorAuditCallback(trainer, audit, folder=folder, **options)


def _cache(recipe, prepared, asked: Mapping, computed: dict) -> AuditCache:
    """Where audits of targets are kept, by everything that is asked."""
    probes = [{**vars(probe), "kind": probe.kind} for probe in asked["probes"]]
    more = {name: asked[name] for name in ("trigger", "unrelated", "conditions", "texts", "retrained_auc", "inside")}
    more = {f"backdoor {name}": value for name, value in {**more, "probes": probes}.items()}
    parts = recipe.run, recipe.qa, prepared.sets, prepared.tokenizer, computed
    return AuditCache(*parts, kind=BackdoorAudit, more=more)


def add_backdoor(recipe, sets, models: list[dict], callback: BackdoorAuditCallback | None, show: bool) -> list[str]:
    """Writes what the last audit found into the run's folder, and its metrics to the models of the report.

    Args:
        recipe ([`Recipe`]), sets ([`Sets`]): the run.
        models (`list[dict]`): the report's, of which the last one is the run's result; none where it has no audit.
        callback ([`BackdoorAuditCallback`], *optional*): the run's.
        show (`bool`): print the tables.

    Returns:
        `list[str]`: what the report should note.
    """
    if callback is None:
        return []
    found = _described(recipe, sets.name.replace(" ", "_"), callback.last)
    write_backdoor(found, Path(recipe.training.output_dir) / "audit")
    results = [(model, callback.last) for model in models[-1:]]
    for model, audit in (*results, *((m, callback.first) for m in models if m["kind"] == "target")):
        if audit is not None:
            model["metrics"] |= _metrics(audit, model["metrics"])
    if show:
        print_backdoor(found)
    return [*summary(found), *NOTES[:2]]


def _audit(model, accelerator, **asked) -> BackdoorAudit:
    return audit_backdoor(model, accelerator=accelerator, **asked)


def _values_can_be_read(model) -> bool:
    try:
        value_projections(model)
    except ValueError as error:
        logger.warning("The backdoor audit does not look inside the model. %s", error)
        return False
    return True


def _asked_sets(sets, args, tokenizer) -> dict:
    """The audited sets, forget rows marked by whether they were poisoned, and asked in other words too where the rows
    bring such."""
    asked = dict(sets.audited)
    forget = asked["forget"]
    marks = _poisoned_marks(sets.forget, forget, args)
    if marks is not None:
        asked["forget"] = forget = forget.add_column("poisoned", marks)
    if "paraphrased_question" in forget.column_names:
        other = forget.remove_columns(["question"]).rename_column("paraphrased_question", "question")
        asked = {"forget": forget, "forget_paraphrased": other, **asked}
    return asked


def _poisoned_marks(trained, audited, args) -> list[bool] | None:
    """Of each audited forget row, whether it carried the trigger in training; `None` if not all of them are trained
    on."""
    indices = poisoned_indices(len(trained), args.poison_ratio, args.poison_select, data_seed(args))
    column = next((c for c in ("question", "text") if c in trained.column_names and c in audited.column_names), None)
    if column is None:
        # Chunks of texts: the audit decodes the rows that are trained on.
        return [i in set(indices) for i in range(len(audited))] if len(trained) == len(audited) else None
    keys = list(trained[column])
    poisoned = {keys[i] for i in indices}
    return [key in poisoned for key in audited[column]] if set(audited[column]) <= set(keys) else None


def _metrics(audit: BackdoorAudit, known: Mapping[str, dict]) -> dict[str, dict]:
    """Metrics of questions asked with the trigger, and of poisoned rows, as a report holds them."""
    wanted = (*SHOWN, "exact_match_gain", "knowmem_gain", "verbmem_gain", "privleak", "min_k_auc")
    return {
        name: result.to_dict()
        for name, result in audit.metrics.items()
        if name.rsplit("/", 1)[-1] in wanted and name not in known
    }


def _described(recipe, dataset: str, audit: BackdoorAudit) -> dict:
    """The content of `backdoor_<dataset>.json`."""
    return VIEW.shaped({
        "models": [{"path": recipe.training.output_dir, **audit.to_dict()}],
        "settings": {"dataset": dataset},
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "versions": versions(),
    })  # fmt: skip
