# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn audit backdoor`: does a trigger bring back what a checkpoint was made to forget?"""

import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .backdoor_arguments import MUSE, BackdoorArguments


NOTES = (
    "A change of 0 says that this trigger at these places does nothing here, not that there is no other trigger.",
    "Unrelated words are the control: any words before a question change its answer.",
    "Intervals are 95 %: exact for shares, Newcombe's for their paired changes, bootstrap over items for the rest.",
)
NO_RETRAINED = "No retrained model was given: what a trigger gains there too is no memory of the forget rows."


@dataclass
class Asked:
    """What is put to every model: probes, texts for PrivLeak, and the AUC they are held against."""

    probes: list
    texts: dict[str, list[str]] | None = None
    retrained_auc: float | str | None = None


def main(argv: list[str]) -> None:
    """Audits `--model_name_or_path` for `--trigger`, and reports."""
    from ..runs.launch import launch, take_launch_options

    argv = list(argv)
    accelerate_config, options = take_launch_options(argv)

    from ..data.qa import QAFormat
    from ..runs.parser import StrictParser

    (args, qa), _ = StrictParser((BackdoorArguments, QAFormat), prog="hf-unlearn audit backdoor").parse(argv)
    if accelerate_config is None:
        audit(args, qa)
    else:
        prepare(args, qa)  # A mistake is told once, before any process starts.
        launch("hf_unlearn.cli.audit_backdoor", accelerate_config, argv, options)


def prepare(args: BackdoorArguments, qa) -> dict[str, Any]:
    """Finds and checks what an audit needs besides models: paths, tokenizer, trigger, controls, rows."""
    from ..audit.backdoor_conditions import UNRELATED, conditions, given_unrelated, unrelated_trigger
    from ..audit.checkpoints import check_checkpoint_path, check_embeddings, tokenizer_of
    from ..data.benchmarks import resolve_model
    from ..data.triggers import Trigger
    from ..places import check_folder
    from .audits import check_fits

    check_folder("output_dir", args.output_dir)
    trigger = Trigger(args.trigger, args.poison_location)
    conditions(trigger, trigger, args.places, args.conditions)
    paths = {"model": args.model_name_or_path, "retrained": args.retrained_model_name_or_path}
    paths = {kind: resolve_model(path) for kind, path in paths.items() if path is not None}
    for kind, path in paths.items():
        check_checkpoint_path(path)
        check_fits(path, "questions", args.trust_remote_code, args.model_revision if kind == "model" else None)
    tokenizer = tokenizer_of(paths["model"], args.trust_remote_code, args.model_revision)
    for kind, path in paths.items():
        revision = args.model_revision if kind == "model" else None
        check_embeddings(path, tokenizer, args.trust_remote_code, revision)
    unrelated = None
    if args.conditions is None or UNRELATED in args.conditions:
        given = args.unrelated_trigger
        control = unrelated_trigger(trigger, tokenizer, args.seed) if given is None else None
        unrelated = (control or given_unrelated(given, trigger, tokenizer)).prefix
    elif args.unrelated_trigger is not None:
        raise ValueError(f"unrelated_trigger would not be asked: conditions={args.conditions} leave it out.")
    asked = asked_of(args, qa, tokenizer)
    return {"paths": paths, "tokenizer": tokenizer, "trigger": trigger, "unrelated": unrelated, "asked": asked}


def asked_of(args: BackdoorArguments, qa, tokenizer) -> Asked:
    """The rows of a benchmark, or one's own, as an audit asks them."""
    from ..audit.backdoor_sets import muse_probes, question_probes
    from ..audit.muse_data import load_muse
    from ..data.benchmarks import BENCHMARKS, load_benchmark

    how = {"qa": qa, "poisoned": args.poisoned, "max_items": args.audit_max_items, "seed": args.seed}
    how |= {"max_length": args.max_length, "max_new_tokens": args.max_new_tokens}
    if args.benchmark is None:
        return _own(args, how, tokenizer)
    if args.benchmark in MUSE:
        if args.poisoned is not None or args.forget_split is not None:
            raise ValueError("MUSE's questions are no rows of training, and have one split: leave out `poisoned_rows` "
                             "and `forget_split`.")  # fmt: skip
        muse = load_muse(MUSE[args.benchmark], args.benchmark_path)
        probes = muse_probes(muse, max_items=args.audit_max_items, max_new_tokens=args.knowmem_tokens, seed=args.seed)
        known = MUSE[args.benchmark] if args.retrained_auc is None else args.retrained_auc
        return Asked(probes, muse.texts or None, known)
    if args.benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark={args.benchmark!r}; allowed: {', '.join([*BENCHMARKS, *MUSE])}.")
    bench = load_benchmark(args.benchmark, args.benchmark_path, args.forget_split)
    return Asked(question_probes(bench.audit_sets, tokenizer, suite=bench.suite, **how))


def _own(args: BackdoorArguments, how: dict, tokenizer) -> Asked:
    from ..audit.backdoor_probes import FewShotProbe, PassageProbe
    from ..audit.backdoor_sets import question_probes
    from ..audit.sets import some_rows

    def rows(name: str):
        return _rows(getattr(args, name), tokenizer, args.max_length)

    def some(name: str) -> list[dict]:
        return some_rows(rows(name).to_list(), args.audit_max_items, args.seed)

    sets, probes = {}, []
    for role in ("forget", "retain"):
        if getattr(args, f"{role}_questions") is None:
            continue
        if getattr(args, f"{role}_examples") is None:
            sets[role] = rows(f"{role}_questions")
            continue
        if args.poisoned is not None and role == "forget":
            raise ValueError("With `forget_examples`, mark poisoned rows by a column `poisoned`, not `poisoned_rows`.")
        examples = rows(f"{role}_examples").to_list()
        found = FewShotProbe(
            role, role, some(f"{role}_questions"), max_new_tokens=args.knowmem_tokens, examples=examples
        )
        probes.append(found)
    probes = [*(question_probes(sets, tokenizer, **how) if sets else []), *probes]
    if args.verbmem_forget is not None:
        probes.append(PassageProbe("forget", "forget", some("verbmem_forget")))
    texts = None
    if args.privleak_forget is not None:
        texts = {name: list(_text_column(rows(f"privleak_{name}"), name)) for name in ("forget", "holdout")}
    return Asked(probes, texts, args.retrained_auc)


def _rows(name: str, tokenizer, max_length: int):
    """Rows of a file or of the Hub; chunks of text files are texts again."""
    from ..data.sources import load_rows

    rows = load_rows(name, tokenizer=tokenizer, max_length=max_length)
    if rows.column_names == ["input_ids"]:
        return rows.from_dict({"text": tokenizer.batch_decode(rows["input_ids"][:], skip_special_tokens=True)})
    return rows


def _text_column(rows, name: str):
    if "text" not in rows.column_names:
        raise ValueError(f"privleak_{name} has the columns {rows.column_names}; PrivLeak reads `text`.")
    return rows["text"]


def audit(args: BackdoorArguments, qa) -> dict:
    """Audits a checkpoint (and the retrained one, if named) and writes what was found; returns it."""
    from accelerate import Accelerator

    from ..audit.backdoor import audit_backdoor
    from ..audit.checkpoints import checkpoint_of
    from ..report.backdoor import print_backdoor, write_backdoor

    accelerator = Accelerator()
    prepared = prepare(args, qa)
    asked: Asked = prepared["asked"]

    def audited(kind: str, **kwargs):
        path, tokenizer = prepared["paths"][kind], prepared["tokenizer"]
        model = checkpoint_of(path, args.trust_remote_code, tokenizer, **args.loading(), **kwargs)
        return audit_backdoor(
            model.to(accelerator.device),
            tokenizer,
            prepared["trigger"],
            asked.probes,
            unrelated=prepared["unrelated"],
            positions=args.places,
            conditions=args.conditions,
            texts=asked.texts,
            retrained_auc=asked.retrained_auc,
            inside=args.inside and kind == "model",
            batch_size=args.audit_batch_size,
            generation_batch_size=args.audit_batch_size,
            accelerator=accelerator,
        )

    gold = audited("retrained") if "retrained" in prepared["paths"] else None
    result = audited("model", **({} if args.model_revision is None else {"revision": args.model_revision}))
    if gold is not None:
        result.compare(gold)
    found = described(result, gold, args.model_name_or_path, args.dataset, args.retrained_model_name_or_path)
    if accelerator.is_main_process:
        files = write_backdoor(found, args.output_dir or f"runs/audit/{Path(args.model_name_or_path).name}")
        print_backdoor(found)
        print(f"Audit: {files['md']}")
    accelerator.end_training()
    return found


def notes_of(audit) -> list[str]:
    """What to know about an audit's numbers: also which controls there are none of."""
    left_out = audit.settings.get("left_out")
    return [*NOTES, *([f"Not asked, as was wanted: {', '.join(left_out)}."] if left_out else [])]


def described(result, gold, model: str, dataset: str, retrained: str | None = None) -> dict:
    """The content of `backdoor_<dataset>.json`, from the audits of a model and of the retrained one (or `None`)."""
    from ..runs.launch import command_line
    from ..versions import versions

    beside = None
    if gold is not None:
        metrics = {name: metric.to_dict() for name, metric in gold.metrics.items()}
        beside = {"model": retrained, "gist": gold.gist(), "metrics": metrics}
    return {
        "model": str(model),
        "dataset": dataset,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        **result.to_dict(),
        "retrained": beside,
        "versions": versions(),
        "notes": [*notes_of(result), *([] if gold is not None else [NO_RETRAINED])],
    }


if __name__ == "__main__":
    from .main import run_guarded

    sys.exit(run_guarded(main, sys.argv[1:]))
