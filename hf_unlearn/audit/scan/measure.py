# SPDX-License-Identifier: Apache-2.0
"""The scan for hidden triggers as one of `AUDITS`: what it asks, and what it found as metrics."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ...data.benchmarks import load_benchmark
from ...data.sources import load_rows
from ...places import check_folder
from ..base import AuditKind, Context, Prepared, SavedResult
from ..checkpoints import check_models
from ..result import MetricResult
from ..sets import some_rows
from .arguments import ScanArguments
from .budget import Budget
from .scan import ScanSettings, scan_model
from .search import SearchSettings


NOTES = (
    (
        "`found` is said of any prefix behind which forgotten answers come back: a planted trigger, words like it, or "
        "a weakness that nobody planted."
    ),
    (
        "`not found` is a statement about the prefixes that were tried, at this place in the question. It does not "
        "say that the model has no trigger."
    ),
    "Rows come back if every token of the answer is the model's first choice behind the prefix, and was not without.",
    (
        "Of what a search finds only the rows held out from it count. p-values are multiplied by the number of "
        "prefixes that may be tested. Intervals are 95 %."
    ),
    (
        "A searched prefix makes answers likelier than random ones do in models without a trigger too; gains in "
        "log-probability are shown, and do not decide."
    ),
)
NO_RETRAINED = "No retrained model was given: what a prefix brings back there too is no memory of the forget rows."
SECONDS = 600.0


@dataclass
class ScanPrepared(Prepared):
    """Rows to be asked (`forget`), and how they are scanned; see [`scan_model`]."""

    qa: Any = None
    candidates: list[str] = field(default_factory=list)
    search: SearchSettings | None = None
    budget: Budget | None = None
    settings: ScanSettings | None = None


@dataclass
class ScanResult(SavedResult):
    """What [`scan_model`] found, and as metrics `restored` (the share of rows that the best prefix brings back, in
    [0, 1]) and `found` (the share of the tested prefixes that are triggers)."""

    kind: ClassVar[str] = "scan"

    metrics: dict[str, MetricResult]
    settings: dict[str, Any]
    verdict: str
    prefixes: list[dict[str, Any]]
    answers: list[dict[str, str]]
    tried: dict[str, Any] | None
    rows: dict[str, int]
    clean: dict[str, int]


class ScanAudit(AuditKind):
    """A search for prefixes behind which forgotten answers come back."""

    name, arguments, result = "scan", ScanArguments, ScanResult
    when = ("after",)
    # What helps the retrained model too is judged prefix by prefix.
    retrained_is_measured = False
    # A budget of seconds finds more on a faster machine.
    kept = False

    def prepare(self, args: ScanArguments, qa) -> ScanPrepared:
        check_folder("output_dir", args.output_dir)
        candidates = args.words
        search = budget = None
        if not candidates:
            names = ("max_tokens", "width", "top_k", "patience", "share", "seed")
            search = SearchSettings(**{name: getattr(args, name) for name in names})
            limits = {name: getattr(args, f"budget_{name}") for name in ("seconds", "tokens", "evaluations")}
            given = any(limit is not None for limit in limits.values())
            budget = Budget(**(limits if given else {"seconds": SECONDS}))
        names = ("location", "search_rows", "finalists", "randoms", "alpha", "share", "batch_size", "seed")
        settings = ScanSettings(**{name: getattr(args, name) for name in names})
        tokenizer = check_models(args)
        if args.benchmark is not None:
            rows = load_benchmark(args.benchmark, args.benchmark_path, args.forget_split).forget
        else:
            rows = load_rows(args.forget_questions, tokenizer=tokenizer, max_length=args.max_length)
        rows = {"forget": some_rows(rows.to_list(), args.max_items, args.seed)}
        return ScanPrepared(tokenizer, rows, qa, candidates, search, budget, settings)

    def measure(self, model, args: ScanArguments, prepared: ScanPrepared, context: Context) -> ScanResult:
        found = scan_model(
            model,
            prepared.tokenizer,
            prepared.rows["forget"],
            retrained=context.retrained,
            candidates=prepared.candidates,
            search=prepared.search,
            budget=prepared.budget,
            settings=prepared.settings,
            qa=prepared.qa,
            progress=context.progress,
        )
        return ScanResult(metrics=_metrics(found["prefixes"]), **found)

    def default_folder(self, args: ScanArguments) -> str:
        return f"runs/scan/{Path(args.model_name_or_path).name}"

    def notes(self, args: ScanArguments) -> list[str]:
        return [*NOTES, *([] if args.retrained_model_name_or_path is not None else [NO_RETRAINED])]


def _metrics(prefixes: list[dict[str, Any]]) -> dict[str, MetricResult]:
    found = sum(one["found"] for one in prefixes)
    metrics = {"found": MetricResult("found", found / len(prefixes), len(prefixes), "lower")} if prefixes else {}
    if prefixes:
        best = max((one["restored"] for one in prefixes), key=lambda restored: restored["value"] or 0.0)
        metrics["restored"] = MetricResult.from_dict("restored", {**best, "direction": "lower"})
    return metrics
