# SPDX-License-Identifier: Apache-2.0
"""What follows the last step, when the model is saved: the audits of the result, and the report of the run."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..audit import Audit
from ..audit.result import MetricResult
from ..machine import machine
from ..processes import audited_in
from ..report import print_report, write_report
from ..report.sections import audit_metrics
from ..training.backdoor_callback import BackdoorAuditCallback
from ..training.callbacks import AuditCallback
from .assemble import assemble, model_entry, training_entry
from .audits import RunAudit
from .backdoor import add_backdoor
from .launch import command_line
from .prepare import Prepared, run_name
from .recipe import Recipe
from .suite_audits import add_forget_quality


logger = logging.getLogger(__name__)


class FinalAudits:
    """The audits of a run's result. One that fails is told when the others are done and written.

    Args:
        recipe ([`Recipe`]), prepared ([`Prepared`]), trainer ([`UnlearnTrainer`]): the run, trained and saved.
        known (`dict[str, Audit | None]`): audits that were made before: `target`, `retrained`.
        show (`bool`): print tables.
    """

    def __init__(self, recipe: Recipe, prepared: Prepared, trainer, known: dict, show: bool):
        self.recipe, self.prepared, self.trainer, self.show = recipe, prepared, trainer, show
        self.known = {name: one for name, one in known.items() if one is not None}
        self.folder = Path(recipe.training.output_dir)
        self.failed: dict[str, Exception] = {}

    def made(
        self, audits: AuditCallback, backdoor: BackdoorAuditCallback | None, more: list[RunAudit]
    ) -> tuple[dict, dict[str, Audit]]:
        """Makes all audits and the report; called on all processes.

        Returns:
            `tuple`: the report, and the audits that it is of; both empty on all processes but the first.
        """
        unlearned = self._try("audit", audits.finish)
        asked = None if backdoor is None else self._try("backdoor audit", backdoor.finish)
        if not self.trainer.is_world_process_zero():
            return {}, {}
        found = self.known if unlearned is None else {**self.known, "unlearned": unlearned}
        models, notes = [], []
        if unlearned is not None:
            unlearned.save(self.folder / "audit" / "unlearned.json")
            models, notes = self._entries(found)
        if asked is not None:
            sets = self.prepared.sets
            told = self._try("backdoor audit", lambda: add_backdoor(self.recipe, sets, models, backdoor, self.show))
            notes += told or []
        if more:
            _make_room(self.trainer)
        for one in more:
            self._try(f"{one.kind.name} audit", partial(one.after, models, run_name(self.recipe)))
        report = self._write(models, notes) if models else {}
        if self.failed:
            self._tell()
        return report, _with_more(found, models)

    def _try(self, name: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except Exception as error:
            if self.trainer.args.world_size > 1:
                # Others may be waiting for this process.
                raise
            self.failed.setdefault(name, error)
            return None

    def _tell(self) -> None:
        """Raises the first failure."""
        logger.error(
            "The model is saved in %s, and so is what the other audits found, but not the %s. The same command with "
            "`--resume_from_checkpoint last` makes the audits again, without training.",
            self.folder,
            " and the ".join(self.failed),
        )
        raise next(iter(self.failed.values()))

    def _entries(self, audits: dict[str, Audit]) -> tuple[list[dict], list[str]]:
        """The models of a report and what to note, from the audits that there are; audits are written too."""
        recipe, notes, entries = self.recipe, [], []
        if "target" in audits and audits["target"].settings != audits["unlearned"].settings:
            # A resumed run that audits other items than it did when it began.
            del audits["target"]
        if "target" not in audits:
            notes.append(
                "The target is missing: its audit was not kept when this run began, and it has trained since."
            )
        args = self.trainer.args
        if (half := audited_in(args)) is not None:
            notes.append(
                f"Audited in {'bfloat16' if half == 'bf16' else 'float16'}, in which the engine of this run computes: "
                "`hf-unlearn eval` of the saved weights may differ in the last digits."
            )
        if "retrained" in audits:
            notes += add_forget_quality([audits[name] for name in audits if name != "retrained"], audits["retrained"])
        paths = {"target": recipe.model.model_name_or_path, "retrained": recipe.run.retrained_model_name_or_path}
        for name, one in audits.items():
            one.save(self.folder / "audit" / f"{name}.json")
            if name in paths:
                entries.append(model_entry(name, name, one, paths[name]))
        train = training_entry(self.trainer.state, self.trainer.stopwatch.seconds, args.world_size)
        name, method = run_name(recipe), recipe.run.method
        return [*entries, model_entry(name, "unlearned", audits["unlearned"], self.folder, method, train)], notes

    def _write(self, models: list[dict], notes: list[str]) -> dict:
        """Writes the report into the run's folder."""
        recipe, sets, name = self.recipe, self.prepared.sets, run_name(self.recipe)
        missing = [f"The {name} is missing: it failed with {_line(error)}" for name, error in self.failed.items()]
        report = assemble(
            title=f"{name}: unlearning {_called(sets, recipe.run)}",
            suite=sets.name,
            models=models,
            # An environment may hold tokens; it stands in the recipe, which is not for showing around.
            settings={name: {key: value for key, value in recipe.resolved().items() if key != "env"}},
            command=command_line(),
            notes=[note for note in (*missing, *notes, self.trainer.stop_reason) if note],
        )
        report["machine"] = machine(self.trainer.args.device)
        if self.failed:
            # So that a sweep does not take the run for done.
            report["unfinished"] = list(self.failed)
        files = write_report(report, self.folder)
        if self.show:
            print_report(report)
            print(f"Report: {files['report.html']}")
        return report


def _with_more(found: dict[str, Audit], models: list[dict]) -> dict[str, Audit]:
    """The audits as the card shows them: with the metrics of further ones, as `<kind>/<metric>`."""
    of_kind = {model["kind"]: model for model in models}
    return {
        name: replace(one, metrics={**one.metrics, **_results(of_kind[name])}) if name in of_kind else one
        for name, one in found.items()
    }


def _results(model: dict) -> dict[str, MetricResult]:
    metrics = audit_metrics(model, shown=True).items()
    return {name: MetricResult.from_dict(name.rsplit("/", 1)[-1], metric) for name, metric in metrics}


def _called(sets, run) -> str:
    """What was unlearned, as a title says it."""
    if sets.dataset_name is None and run.benchmark_path is not None:
        return f"{run.benchmark} (local rows in {Path(run.benchmark_path).name})"
    return sets.dataset_name or run.benchmark or run.forget_dataset


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _make_room(trainer) -> None:
    """Another model is loaded beside the trained one, so what only training needs goes; shards of it are small."""
    if trainer.args.world_size == 1:
        trainer.model.zero_grad(set_to_none=True)
        parts = (trainer.optimizer, trainer.lr_scheduler)
        trainer.optimizer, trainer.lr_scheduler = trainer.accelerator.free_memory(*parts)
