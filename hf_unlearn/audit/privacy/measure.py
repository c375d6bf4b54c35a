# SPDX-License-Identifier: Apache-2.0
"""Membership inference as one of `AUDITS`: rows, shadow and reference models, and what attacks find."""

from dataclasses import dataclass, field
from typing import Any

from ...cache import cache_root
from ...data.benchmarks import resolve_model
from ...data.sets import load_sets
from ...data.sources import load_rows
from ...families.base import CAUSAL_LM
from ...families.choose import family_of
from ...places import check_folder
from ..base import AuditKind, Context, Prepared
from ..checkpoints import check_models
from .arguments import PrivacyArguments
from .cache import SignalCache
from .checks import as_rows
from .choose_subject import as_subject
from .evaluate import evaluate_privacy
from .result import Privacy


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
class PrivacyPrepared(Prepared):
    """Rows by what they are: `forget`, `retain` (which may be `None`) and `nonmember`; `qa` is for language models
    only. Shadow models and the reference model are made when the first model is attacked."""

    qa: Any = None
    others: dict[str, Any] = field(default_factory=dict)


class PrivacyAudit(AuditKind):
    """Membership-inference attacks."""

    name, arguments, result = "privacy", PrivacyArguments, Privacy
    # What attacks read of a model is kept, and finer than results are.
    kept = False
    called = "attacked"
    own = ("models", "output_dir")

    def prepare(self, args: PrivacyArguments, qa) -> PrivacyPrepared:
        check_folder("output_dir", args.output_dir)
        tokenizer = check_models(
            args, args.models, (args.reference_model_name_or_path, args.shadow_model_name_or_path)
        )
        sets = load_sets(args, qa, tokenizer, args.max_length, audit=args.benchmark is not None)
        if args.nonmember_dataset is None:
            nonmembers = sets.audited["holdout"]
        else:
            config, split = args.nonmember_dataset_config, args.nonmember_dataset_split
            nonmembers = load_rows(args.nonmember_dataset, config, split, tokenizer, args.max_length)
        family = family_of(resolve_model(args.models[0]), trust_remote_code=args.trust_remote_code)
        rows = {
            "forget": as_rows(sets.forget, "forget"),
            "retain": None if sets.retain is None else as_rows(sets.retain, "retain"),
            "nonmember": as_rows(qa.dataset(nonmembers, tokenizer), "nonmember_data"),
        }
        return PrivacyPrepared(tokenizer, rows, qa if family.name == CAUSAL_LM else None)

    def measure(self, model, args: PrivacyArguments, prepared: PrivacyPrepared, context: Context) -> Privacy:
        how = {"max_length": args.max_length, "batch_size": args.audit_batch_size, "qa": prepared.qa}
        how["cache"] = SignalCache(cache_root() / "privacy") if args.cache else None

        def subject(model):
            return as_subject(model, processing_class=prepared.tokenizer, progress=context.progress, **how)

        if not prepared.others:
            name = args.reference_model_name_or_path
            prepared.others["reference"] = None if name is None else subject(context.load(name))
            prepared.others["shadows"] = _shadows(args, prepared)
        return evaluate_privacy(
            subject(model),
            prepared.rows["forget"],
            retain=prepared.rows["retain"],
            nonmember_data=prepared.rows["nonmember"],
            attacks=args.attacks,
            fprs=args.fprs,
            reference_model=prepared.others["reference"],
            shadows=prepared.others["shadows"],
            calibration_share=args.calibration_share,
            seed=args.seed,
        )

    def models(self, args: PrivacyArguments) -> list[str]:
        return args.models

    def default_folder(self, args: PrivacyArguments) -> str:
        return args.output_dir

    def of_run(self, recipe, folder: str) -> dict[str, Any]:
        # The target first: how much could be found before.
        return {"models": [recipe["model_name_or_path"], folder], "output_dir": f"{folder}/{self.name}"}

    def of_target(self, args: PrivacyArguments) -> PrivacyArguments:
        args.models = args.models[:1]
        return args

    def notes(self, args: PrivacyArguments) -> list[str]:
        return [*NOTES, *([] if args.retrained_model_name_or_path is not None else [NO_RETRAINED])]


def _shadows(args: PrivacyArguments, prepared: PrivacyPrepared):
    if args.shadow_model_name_or_path is None:
        return None
    from .finetune import train_shadow_models

    return train_shadow_models(args, prepared)
