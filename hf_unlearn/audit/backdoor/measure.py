# SPDX-License-Identifier: Apache-2.0
"""The backdoor audit as one of `AUDITS`: what is asked with and without a trigger."""

from dataclasses import dataclass, field
from typing import Any

from ...data.benchmarks import BENCHMARKS, load_benchmark, resolve_model
from ...data.sources import load_rows
from ...data.triggers import Trigger
from ...places import check_folder
from ..base import AuditKind, Context, Prepared
from ..checkpoints import check_fits, check_models
from ..muse.data import load_muse
from ..sets import some_rows
from .arguments import MUSE, BackdoorArguments
from .conditions import UNRELATED, conditions, given_unrelated, unrelated_trigger
from .evaluate import audit_backdoor
from .probe_sets import muse_probes, question_probes
from .probes import FewShotProbe, PassageProbe, Probe
from .result import BackdoorAudit


@dataclass
class BackdoorPrepared(Prepared):
    """The trigger, its control, probes, texts for PrivLeak, and the AUC they are held against."""

    trigger: Trigger | None = None
    unrelated: str | None = None
    probes: list[Probe] = field(default_factory=list)
    texts: dict[str, list[str]] | None = None
    retrained_auc: float | str | None = None


class BackdoorKind(AuditKind):
    """Questions with and without a trigger."""

    name, arguments, result = "backdoor", BackdoorArguments, BackdoorAudit
    when = ("after",)
    shares_work = True
    kept = False

    def prepare(self, args: BackdoorArguments, qa) -> BackdoorPrepared:
        check_folder("output_dir", args.output_dir)
        trigger = Trigger(args.trigger, args.poison_location)
        conditions(trigger, trigger, args.places, args.conditions)
        names = [name for name in (args.model_name_or_path, args.retrained_model_name_or_path) if name is not None]
        tokenizer = check_models(args)
        for name in names:
            revision = args.model_revision if name == args.model_name_or_path else None
            check_fits(resolve_model(name), "questions", args.trust_remote_code, revision)
        unrelated = None
        if args.conditions is None or UNRELATED in args.conditions:
            given = args.unrelated_trigger
            control = unrelated_trigger(trigger, tokenizer, args.seed) if given is None else None
            unrelated = (control or given_unrelated(given, trigger, tokenizer)).prefix
        elif args.unrelated_trigger is not None:
            raise ValueError(f"unrelated_trigger would not be asked: conditions={args.conditions} leave it out.")
        return BackdoorPrepared(tokenizer, {}, trigger, unrelated, *_asked(args, qa, tokenizer))

    def measure(self, model, args: BackdoorArguments, prepared: BackdoorPrepared, context: Context) -> BackdoorAudit:
        return audit_backdoor(
            model,
            prepared.tokenizer,
            prepared.trigger,
            prepared.probes,
            unrelated=prepared.unrelated,
            positions=args.places,
            conditions=args.conditions,
            texts=prepared.texts,
            retrained_auc=prepared.retrained_auc,
            inside=args.inside and not context.is_retrained,
            batch_size=args.audit_batch_size,
            generation_batch_size=args.audit_batch_size,
            accelerator=context.accelerator,
            progress=context.progress,
        )

    def taken_over(self, recipe) -> dict[str, Any]:
        trigger = {} if recipe.get("poison_prefix") is None else {"trigger": recipe["poison_prefix"]}
        return {**super().taken_over(recipe), **trigger}


def _asked(args: BackdoorArguments, qa, tokenizer) -> tuple:
    """Probes, texts for PrivLeak, and the AUC they are held against: of a benchmark, or of one's own rows."""
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
        return probes, muse.texts or None, known
    if args.benchmark not in BENCHMARKS:
        raise ValueError(f"benchmark={args.benchmark!r}; allowed: {', '.join([*BENCHMARKS, *MUSE])}.")
    bench = load_benchmark(args.benchmark, args.benchmark_path, args.forget_split)
    return question_probes(bench.audit_sets, tokenizer, suite=bench.suite, **how), None, None


def _own(args: BackdoorArguments, how: dict, tokenizer) -> tuple:

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
    return probes, texts, args.retrained_auc


def _rows(name: str, tokenizer, max_length: int):
    """Rows of a file or of the Hub; chunks of text files are texts again."""
    rows = load_rows(name, tokenizer=tokenizer, max_length=max_length)
    if rows.column_names == ["input_ids"]:
        return rows.from_dict({"text": tokenizer.batch_decode(rows["input_ids"][:], skip_special_tokens=True)})
    return rows


def _text_column(rows, name: str):
    if "text" not in rows.column_names:
        raise ValueError(f"privleak_{name} has the columns {rows.column_names}; PrivLeak reads `text`.")
    return rows["text"]
