# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn audit privacy`: membership-inference attacks on any checkpoints."""

import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .privacy_arguments import PrivacyArguments


NOTES = (
    "Thresholds are set by some of the non-members and tested on the others.",
    (
        "`unresolved`: a rate of one in n needs about n non-members to set a threshold, and there are fewer. It does "
        "not mean 0."
    ),
    (
        "Chance is what scores without meaning reach. Its 95 % range and p include the luck of the threshold; for the "
        "best of all attacks also that many were tried."
    ),
    (
        "A model that forgot too much gives forgotten rows away as well: they score below unseen ones. That shows in "
        "the lower tail and as an AUC below the retrained model's."
    ),
    (
        "If an attack does not find retain rows either (AUC near 0.5), it is too weak here to say anything of the "
        "forget rows."
    ),
    (
        "Intervals cover the choice of rows, not of seeds. An attack that fails bounds what these attacks find, not "
        "what all attacks could."
    ),
)
NO_RETRAINED = (
    "No retrained model was given. If forget rows differ from non-members in kind, attacks find that difference in "
    "every model, also in one that never saw them."
)


@dataclass
class Prepared:
    """What an audit needs besides models. `qa` is for language models only."""

    tokenizer: Any
    qa: Any
    forget: list[dict]
    retain: list[dict] | None
    nonmembers: list[dict]


def main(argv: list[str]) -> None:
    """Attacks `--models` and reports."""
    from ..data.qa import QAFormat
    from .parser import StrictParser

    (args, qa), _ = StrictParser((PrivacyArguments, QAFormat), prog="hf-unlearn audit privacy").parse(list(argv))
    audit(args, qa)


def prepare(args: PrivacyArguments, qa) -> Prepared:
    """Finds and checks models' paths, tokenizer and rows, before any model is loaded."""
    from ..audit.privacy.checks import as_rows
    from ..data.benchmarks import resolve_model
    from ..data.sources import load_rows
    from ..families.base import CAUSAL_LM
    from ..families.choose import family_of
    from .models import check_checkpoint_path, check_embeddings, tokenizer_of
    from .places import check_folder
    from .sets import load_sets

    check_folder("output_dir", args.output_dir)
    for name in _paths(args):
        check_checkpoint_path(resolve_model(name))
    tokenizer = tokenizer_of(resolve_model(args.models[0]), args.trust_remote_code)
    for name in _paths(args):
        check_embeddings(resolve_model(name), tokenizer, args.trust_remote_code)
    sets = load_sets(args, qa, tokenizer, args.max_length, audit=args.benchmark is not None)
    if args.nonmember_dataset is None:
        nonmembers = sets.audited["holdout"]
    else:
        config, split = args.nonmember_dataset_config, args.nonmember_dataset_split
        nonmembers = load_rows(args.nonmember_dataset, config, split, tokenizer, args.max_length)
    family = family_of(resolve_model(args.models[0]), trust_remote_code=args.trust_remote_code)
    return Prepared(
        tokenizer,
        qa if family.name == CAUSAL_LM else None,
        as_rows(sets.forget, "forget"),
        None if sets.retain is None else as_rows(sets.retain, "retain"),
        as_rows(qa.dataset(nonmembers, tokenizer), "nonmember_data"),
    )


def audit(args: PrivacyArguments, qa) -> dict:
    """Attacks every model (and the retrained one, if named), writes and prints the report; returns it."""
    from ..report.privacy import print_privacy_report, write_privacy_report

    attacked = attacker(args, prepare(args, qa))
    gold = None if args.retrained_model_name_or_path is None else attacked(args.retrained_model_name_or_path)
    models = [] if gold is None else [entry("retrained", "retrained", args.retrained_model_name_or_path, gold)]
    for name, label in zip(args.models, _labels(args.models), strict=True):
        models.append(entry(label, "attacked", name, attacked(name, gold)))
    report = described(args, models)
    files = write_privacy_report(report, args.output_dir)
    print_privacy_report(report)
    print(f"Report: {files['privacy.md']}")
    return report


def attacker(args: PrivacyArguments, prepared: Prepared, progress: bool = True):
    """A function of a model's name and of what was found in the retrained model: what attacks find in it."""
    from accelerate import PartialState

    from ..audit.privacy import as_subject, evaluate_privacy
    from ..audit.privacy.cache import SignalCache
    from ..cache import cache_root
    from ..data.benchmarks import resolve_model
    from .models import checkpoint_of

    device = PartialState().device
    cache = SignalCache(cache_root() / "privacy") if args.cache else None

    def subject(name: str):
        model = checkpoint_of(resolve_model(name), args.trust_remote_code, prepared.tokenizer, **args.loading())
        model = model.to(device)
        how = {"max_length": args.max_length, "batch_size": args.audit_batch_size, "qa": prepared.qa, "cache": cache}
        how["progress"] = progress
        return as_subject(model, processing_class=prepared.tokenizer, **how)

    shadows = _shadows(args, prepared)
    reference = None if args.reference_model_name_or_path is None else subject(args.reference_model_name_or_path)

    def attacked(name: str, retrained=None):
        return evaluate_privacy(
            subject(name),
            prepared.forget,
            retain=prepared.retain,
            nonmember_data=prepared.nonmembers,
            attacks=args.attacks,
            fprs=args.fprs,
            retrained=retrained,
            reference_model=reference,
            shadows=shadows,
            calibration_share=args.calibration_share,
            seed=args.seed,
        )

    return attacked


def _shadows(args: PrivacyArguments, prepared: Prepared):
    if args.shadow_model_name_or_path is None:
        return None
    from .shadow_training import train_shadow_models

    return train_shadow_models(args, prepared)


def _paths(args: PrivacyArguments) -> list[str]:
    others = (args.retrained_model_name_or_path, args.reference_model_name_or_path, args.shadow_model_name_or_path)
    return [*args.models, *(name for name in others if name is not None)]


def _labels(models: list[str]) -> list[str]:
    """Short names, or whole paths where short ones are not each other's difference."""
    short = [Path(name).name for name in models]
    return short if len({*short, "retrained"}) == len(short) + 1 else models


def entry(label: str, kind: str, path: str, found) -> dict:
    """One model of `privacy.json`."""
    return {"name": label, "kind": kind, "path": path, **found.to_dict()}


def described(args: PrivacyArguments, models: list[dict]) -> dict:
    """The content of `privacy.json`."""
    from ..report.privacy import PRIVACY_SCHEMA
    from ..versions import versions
    from .launch import command_line

    return {
        "schema_version": PRIVACY_SCHEMA,
        "title": f"Membership inference: {', '.join(m['name'] for m in models if m['kind'] == 'attacked')}",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command_line(),
        "settings": {name: value for name, value in vars(args).items() if value is not None},
        "versions": versions(),
        "models": models,
        "notes": [*NOTES, *([] if args.retrained_model_name_or_path is not None else [NO_RETRAINED])],
    }


if __name__ == "__main__":
    from .main import run_guarded

    sys.exit(run_guarded(main, sys.argv[1:]))
