# SPDX-License-Identifier: Apache-2.0
"""Audits of every kind in `AUDITS`: as a command, as part of a run, and as sections of a report."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator, PartialState

from ..audit.base import AuditKind, Context, Prepared, SavedResult
from ..audit.checkpoints import audited_checkpoint
from ..audit.registry import AUDITS
from ..audit.sets import rows_digest
from ..audit.view import SCHEMA
from ..data.benchmarks import resolve_model
from ..data.qa import QAFormat
from ..modeling import whole_weights
from ..stored.key import hash_processor
from ..versions import versions
from .audit_cache import METRICS, ResultCache, weights_of
from .launch import command_line
from .parser import StrictParser


ORIGINAL = "original_model_name_or_path"


class Measuring:
    """One kind of audit with its settings, and what it finds in models that are named.

    Args:
        kind ([`AuditKind`]), args, qa ([`QAFormat`]), prepared ([`Prepared`]): what is measured, and how.
        progress (`bool`): progress bars.
        accelerator (`Accelerator`, *optional*): its processes share the work.
    """

    def __init__(
        self, kind: AuditKind, args: Any, qa: QAFormat, prepared: Prepared, progress: bool = True, accelerator=None
    ):
        self.kind, self.args, self.prepared, self.progress = kind, args, prepared, progress
        self.accelerator, self.device = accelerator, PartialState().device
        self.original_revision: str | None = None
        self.cache = _cache(kind, args, qa, prepared, self.device.type) if kind.kept else None

    def load(self, name: str, revision: str | None = None) -> Any:
        """A model by its folder or Hub id, on this process's device."""
        how = self.args.loading() | ({} if revision is None else {"revision": revision})
        trust, tokenizer = self.args.trust_remote_code, self.prepared.tokenizer
        return audited_checkpoint(resolve_model(name), self.device, trust, tokenizer, **how)

    def retrained(self) -> SavedResult | None:
        """The retrained model's result; `None` where none is named, or it is not measured itself."""
        name = self.args.retrained_model_name_or_path
        return None if name is None or not self.kind.retrained_is_measured else self._measured(name, is_retrained=True)

    def original(self, revision: str | None = None) -> SavedResult | None:
        """The result of the model before unlearning; `None` where none is named, or the kind does not measure it."""
        self.original_revision = revision
        name = getattr(self.args, ORIGINAL, None) if self.kind.original_is_measured else None
        return None if name is None else self._measured(name, revision)

    def found(
        self,
        name: str,
        gold: SavedResult | None = None,
        revision: str | None = None,
        original: SavedResult | None = None,
    ) -> SavedResult:
        """What is found in a model, compared with the results of the retrained and the original model that are
        given."""
        result = self._measured(name, revision)
        if self.kind.original_is_measured:
            result.compare(gold, original)
        elif gold is not None:
            result.compare(gold)
        return result

    def _measured(self, name: str, revision: str | None = None, is_retrained: bool = False) -> SavedResult:
        path, result = resolve_model(name), None
        if self.cache is not None:
            result = self.cache.get(path)
        if result is None:
            context = Context(
                self.load, accelerator=self.accelerator, progress=self.progress, is_retrained=is_retrained
            )
            retrained, before = self.args.retrained_model_name_or_path, getattr(self.args, ORIGINAL, None)
            reads = self.kind.reads_others
            if retrained is not None and (reads or not self.kind.retrained_is_measured):
                context.retrained = partial(self.load, retrained)
            if before is not None and reads:
                context.original = partial(self.load, before, self.original_revision)
            result = self.kind.measure(self.load(name, revision), self.args, self.prepared, context)
            if self.cache is not None:
                self.cache.put(path, result)
        return result

    def entry(self, label: str, kind: str, path: str, found: SavedResult) -> dict[str, Any]:
        """One model of the kind's file."""
        return {"name": label, "kind": kind, "path": path, **found.to_dict()}

    def entries(
        self,
        gold: SavedResult | None,
        models: Iterable[tuple[str, str, SavedResult]],
        original: SavedResult | None = None,
    ) -> list[dict[str, Any]]:
        """The models of the kind's file: the retrained and the original one first, if they were measured, then label,
        path and result of each other."""
        firsts = [("retrained", self.args.retrained_model_name_or_path, gold)]
        firsts += [("original", getattr(self.args, ORIGINAL, None), original)]
        found = [self.entry(label, label, name, result) for label, name, result in firsts if result is not None]
        return found + [self.entry(label, self.kind.called, path, result) for label, path, result in models]

    def described(self, models: list[dict[str, Any]]) -> dict[str, Any]:
        """The content of the kind's file."""
        names = ", ".join(model["name"] for model in models if model["kind"] != "retrained")
        return self.kind.view.shaped({
            "schema_version": SCHEMA,
            "title": f"{self.kind.view.about}: {names}",
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": command_line(),
            "settings": {name: value for name, value in vars(self.args).items() if value is not None},
            "versions": versions(),
            "models": models,
            "notes": self.kind.notes(self.args),
        })  # fmt: skip


def audit(
    kind: AuditKind, args: Any, qa: QAFormat, prepared: Prepared | None = None
) -> tuple[dict[str, Any], dict[str, Path]]:
    """Audits the models that the arguments name; `prepared` is what the kind prepared of them, if it did.

    Returns:
        `tuple`: the content of the kind's file, and the files that were written, by ending; none on all processes
        but the first.
    """
    prepared = prepared or kind.prepare(args, qa)
    accelerator = Accelerator() if kind.shares_work else None
    measuring = Measuring(kind, args, qa, prepared, accelerator=accelerator)
    gold, original = measuring.retrained(), measuring.original()
    names, revision = kind.models(args), getattr(args, "model_revision", None)
    labelled = zip(_labels(names), names, strict=True)
    models = [(label, name, measuring.found(name, gold, revision, original=original)) for label, name in labelled]
    found, files = measuring.described(measuring.entries(gold, models, original)), {}
    if PartialState().is_main_process:
        files = kind.view.write(found, args.output_dir or kind.default_folder(args))
    if accelerator is not None:
        accelerator.end_training()
    return found, files


class RunAudit:
    """One kind of audit in a run: the retrained model and the target before training, the result after. The first
    process measures, the others wait.

    Args:
        measuring ([`Measuring`]): the audit, of the run's target.
        target (`str`), folder (`str`): the model before, and the run's folder.
        revision (`str`, *optional*): the target's.
    """

    def __init__(self, measuring: Measuring, target: str, folder: str, revision: str | None = None):
        self.measuring, self.target, self.folder, self.revision = measuring, target, folder, revision
        self.kind = measuring.kind
        self._gold = self._before = self._original = None

    def before(self) -> None:
        """Measures the models that are there before training: what an audit refuses is told now, not after hours."""
        if PartialState().is_main_process:
            with whole_weights():
                self._gold = self.measuring.retrained()
                self._original = self.measuring.original(self.revision)
                if "before" in self.kind.when:
                    self._before = self.measuring.found(self.target, self._gold, self.revision)
        PartialState().wait_for_everyone()

    def after(self, report_models: list[dict[str, Any]], name: str) -> None:
        """Measures the run's result; writes `<kind>/` into its folder and adds to the models of its report.

        Args:
            report_models (`list[dict]`): of a `report.json`.
            name (`str`): what the run is called.
        """
        with whole_weights():
            found = self.measuring.found(self.folder, self._gold, original=self._original)
        models = [] if self._before is None else [("target", self.target, self._before)]
        entries = self.measuring.entries(self._gold, [*models, (name, self.folder, found)], self._original)
        self.kind.view.write(self.measuring.described(entries), self.measuring.args.output_dir)
        self.kind.view.add(report_models, {"models": entries})


def run_audits(recipe) -> list[RunAudit]:
    """The audits that a recipe's `audits` (and `privacy`, the older key of one of them) asks for.

    Raises:
        `ValueError`: for settings, rows or models that cannot work; no model is loaded for that.
    """
    return [_run_audit(recipe, *read) for read in read_blocks(recipe)]


def read_blocks(recipe) -> list[tuple[AuditKind, Any, QAFormat]]:
    """The audits that a recipe asks for, with their fields as their commands would read them.

    Raises:
        `ValueError`: for what they would refuse.
    """
    folder, resolved = recipe.training.output_dir, recipe.resolved()
    asked = ((AUDITS[name], fields) for name, fields in recipe.run.blocks().items())
    return [(kind, *read_block(kind, block_fields(kind, resolved, fields, folder))) for kind, fields in asked]


def _run_audit(recipe, kind: AuditKind, args: Any, qa: QAFormat) -> RunAudit:
    folder, resolved = Path(recipe.training.output_dir), recipe.resolved()
    target, revision = resolved["model_name_or_path"], recipe.model.model_revision
    if revision not in (None, "main") and "model_revision" not in {field.name for field in fields(kind.arguments)}:
        raise ValueError(
            f"{kind.name}: models are audited as they are in their main revision, not {revision!r}. Give "
            "`model_name_or_path` a folder with that one."
        )
    try:
        # The result is not there yet.
        prepared = kind.prepare(kind.of_target(copy.copy(args)), qa)
    except ValueError as error:
        raise ValueError(f"{kind.name}: {error}") from error
    measuring = Measuring(kind, args, qa, prepared, progress=not recipe.training.disable_tqdm)
    return RunAudit(measuring, target, str(folder), revision)


def block_fields(kind: AuditKind, recipe: Mapping[str, Any], asked: Mapping[str, Any], folder: Any) -> dict[str, Any]:
    """All fields of an audit of a run.

    Args:
        kind ([`AuditKind`]): the audit.
        recipe (`dict`): the run's fields; what rows there are and how they are put is as in training.
        asked (`dict`): what the recipe's block holds.
        folder (`str` or `Path`): the run's.

    Raises:
        `ValueError`: if `asked` holds what is the run's own.
    """
    if refused := sorted({*kind.own} & asked.keys()):
        raise ValueError(f"{kind.name}: {', '.join(refused)} cannot be given: they are each run's own.")
    known = {part.name for part in fields(kind.arguments)}
    if recipe.get("forget_where") is not None and "forget_split" in known and "forget_where" not in known:
        raise ValueError(
            f"{kind.name}: reads all forget rows of a benchmark, and forget_where leaves some out. Write those that "
            "are meant to a file and name it as forget_dataset."
        )
    return {**kind.taken_over(recipe), **asked, **kind.of_run(recipe, str(folder))}


def read_block(kind: AuditKind, content: dict[str, Any]) -> tuple[Any, QAFormat]:
    """The fields as the command would read them.

    Raises:
        `ValueError`: for what it would refuse.
    """
    parser = StrictParser((kind.arguments, QAFormat), prog=f"hf-unlearn audit {kind.name}")
    try:
        return parser.read(content, kind.name)
    except ValueError as error:
        raise ValueError(f"{kind.name}: {error}") from error


def sections_of(models: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The sections of a report on these models, a kind each."""
    found = (AUDITS[name].view.section(models) for name in AUDITS)
    return [section for section in found if section is not None]


def _labels(models: list[str]) -> list[str]:
    """Short names, or whole paths where short ones are not each other's difference."""
    short = [Path(name).name for name in models]
    return short if len({*short, "retrained"}) == len(short) + 1 else models


def _cache(kind: AuditKind, args: Any, qa: QAFormat, prepared: Prepared, device: str) -> ResultCache:
    """Where results of local checkpoints are kept."""
    idle = {*kind.own, *(() if kind.reads_others else ("retrained_model_name_or_path", ORIGINAL))}
    about = {name: value for name, value in vars(args).items() if name not in idle}
    about |= {"metrics": METRICS, **vars(qa), "tokenizer": hash_processor(prepared.tokenizer), "device": device}
    about |= {f"rows of {name}": rows_digest(rows) for name, rows in prepared.rows.items()}
    about |= prepared.beside
    if kind.reads_others:
        names = [getattr(args, name, None) for name in ("retrained_model_name_or_path", ORIGINAL)]
        names += kind.read_too(args)
        about["others"] = [name and (weights_of(resolve_model(name)) or name) for name in names]
    about |= {f"version of {name}": value for name, value in versions().items()}
    return ResultCache(about, about, kind.result, f"{kind.name}_audits")
