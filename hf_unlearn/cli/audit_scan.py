# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn audit scan`: is there a trigger in a checkpoint that nobody told us of?"""

import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .scan_arguments import ScanArguments


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
class Prepared:
    """What a scan needs besides weights."""

    model: str
    retrained: str | None
    tokenizer: Any
    rows: list[dict]
    candidates: list[str]
    search: Any
    budget: Any
    settings: Any


def main(argv: list[str]) -> None:
    """Scans `--model_name_or_path` and reports."""
    from ..data.qa import QAFormat
    from ..runs.parser import StrictParser

    (args, qa), _ = StrictParser((ScanArguments, QAFormat), prog="hf-unlearn audit scan").parse(list(argv))
    scan(args, qa)


def prepare(args: ScanArguments) -> Prepared:
    """Finds and checks paths, tokenizer, rows and settings, before any model is loaded."""
    from ..audit.backdoor_sets import some_rows
    from ..audit.checkpoints import check_checkpoint_path, check_embeddings, tokenizer_of
    from ..audit.scan import Budget, ScanSettings, SearchSettings
    from ..data.benchmarks import load_benchmark, resolve_model
    from ..data.sources import load_rows
    from ..places import check_folder

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
    model, retrained = resolve_model(args.model_name_or_path), args.retrained_model_name_or_path
    retrained = None if retrained is None else resolve_model(retrained)
    for path in (model, retrained):
        if path is not None:
            check_checkpoint_path(path)
    tokenizer = tokenizer_of(model, args.trust_remote_code, args.model_revision)
    for path in filter(None, (model, retrained)):
        check_embeddings(path, tokenizer, args.trust_remote_code, args.model_revision if path == model else None)
    if args.benchmark is not None:
        rows = load_benchmark(args.benchmark, args.benchmark_path, args.forget_split).forget
    else:
        rows = load_rows(args.forget_questions, tokenizer=tokenizer, max_length=args.max_length)
    rows = some_rows(rows.to_list(), args.max_items, args.seed)
    return Prepared(model, retrained, tokenizer, rows, candidates, search, budget, settings)


def scan(args: ScanArguments, qa) -> dict:
    """Scans a checkpoint and writes what was found; returns it."""
    from accelerate import PartialState

    from ..audit.checkpoints import checkpoint_of
    from ..audit.scan import scan_model
    from ..report.scan import print_scan, write_scan

    prepared, device = prepare(args), PartialState().device

    def load(path: str, **kwargs):
        return checkpoint_of(path, args.trust_remote_code, **args.loading(), **kwargs).to(device)

    retrained = prepared.retrained
    found = scan_model(
        load(prepared.model, **({} if args.model_revision is None else {"revision": args.model_revision})),
        prepared.tokenizer,
        prepared.rows,
        retrained=None if retrained is None else lambda: load(retrained),
        candidates=prepared.candidates,
        search=prepared.search,
        budget=prepared.budget,
        settings=prepared.settings,
        qa=qa,
    )
    described = _described(args, found)
    files = write_scan(described, args.output_dir or f"runs/scan/{Path(args.model_name_or_path).name}")
    print_scan(described)
    print(f"Scan: {files['md']}")
    return described


def _described(args: ScanArguments, found: dict) -> dict:
    """The content of `scan_<dataset>.json`."""
    from ..runs.launch import command_line
    from ..versions import versions

    return {
        "model": args.model_name_or_path,
        "retrained_model": args.retrained_model_name_or_path,
        "dataset": args.dataset,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        **found,
        "versions": versions(),
        "notes": [*NOTES, *([] if args.retrained_model_name_or_path is not None else [NO_RETRAINED])],
    }


if __name__ == "__main__":
    from .main import run_guarded

    sys.exit(run_guarded(main, sys.argv[1:]))
