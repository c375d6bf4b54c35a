# SPDX-License-Identifier: Apache-2.0
"""One run, from recipe to report: what `hf-unlearn run` does, on one process or on each of many."""

import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from transformers import ProgressCallback

from ..audit import Audit
from ..audit.checkpoints import checkpoint_of
from ..modeling import whole_weights
from ..processes import audited_in, on_first_process
from ..report.verdict import verdicts
from ..runs.audits import RunAudit, run_audits
from ..runs.backdoor import backdoor_callback
from ..runs.final_audits import FinalAudits
from ..runs.launch import leave
from ..runs.output import begin_output
from ..runs.prepare import Prepared, prepare
from ..runs.recipe import Recipe, parse_recipe
from ..runs.suite_audits import AuditCache, audit_checkpoint, auditor
from ..training.callbacks import AuditCallback, MetricsFile, RunProgress
from ..training.faults import STOPPED_TOGETHER, Terminated
from ..training.preemption import ends_at_once


logger = logging.getLogger(__name__)

EVALUATED_ROWS = 200


def main(argv: list[str] | None = None) -> int:
    """Entry of every process that `accelerate launch` starts."""
    from .main import run_guarded

    try:
        status = run_guarded(lambda argv: unlearn(parse_recipe(argv)), sys.argv[1:] if argv is None else argv)
    except Terminated as terminated:
        status = terminated.code
    return leave(status)


def unlearn(recipe: Recipe, show: bool = True) -> dict:
    """Trains, audits and reports.

    Args:
        recipe ([`Recipe`]):
            What to do.
        show (`bool`):
            Print the report's table.

    Returns:
        `dict`: the report, empty where `audit: false`.

    Raises:
        `ValueError`: for anything in the recipe that cannot work; rows are checked before any model is loaded.
    """
    # What is told of the rows is told once, by the trainer.
    _set_verbosity(recipe.training, logging.WARNING)
    prepared = prepare(recipe)
    more = run_audits(recipe)
    _set_verbosity(recipe.training, logging.INFO)
    _open_repo(recipe.training)
    if recipe.run.audit:
        return _with_audits(recipe, prepared, more, show)
    trainer = build_trainer(recipe, prepared)
    _train(recipe, prepared, trainer)
    _end(recipe, trainer, {}, {})
    return {}


def _with_audits(recipe: Recipe, prepared: Prepared, more: list[RunAudit], show: bool) -> dict:
    """The run between the audits of the retrained model, the target and the result."""
    run, folder = recipe.run, Path(recipe.training.output_dir)
    parts = (run, recipe.qa, prepared.sets, prepared.tokenizer)
    audit = auditor(*parts, progress=not recipe.training.disable_tqdm)
    cache = AuditCache(*parts, _computed(recipe))
    retrained = _audit_retrained(recipe, prepared, audit, cache)
    target = on_first_process(lambda: cache.get(prepared.model))
    for one in more:
        one.before()

    trainer = build_trainer(recipe, prepared)
    audits = AuditCallback(
        trainer,
        audit,
        target is None,
        at_evaluation=run.audit_during_training,
        file=folder / "audit" / "target.json",
        at_end=False,
        known=target,
    )
    trainer.add_callback(audits)
    backdoor = backdoor_callback(recipe, prepared, trainer, _computed(recipe))
    if backdoor is not None:
        trainer.add_callback(backdoor)
    _train(recipe, prepared, trainer)
    try:
        # All that follows can be made again from what is saved.
        with ends_at_once(several=trainer.args.world_size > 1):
            if target is None and audits.before is not None and trainer.is_world_process_zero():
                target = audits.before
                cache.put(prepared.model, target)
            known = {"target": target, "retrained": retrained}
            report, found = FinalAudits(recipe, prepared, trainer, known, show).made(audits, backdoor, more)
    except Terminated:
        trainer.end()
        raise
    _end(recipe, trainer, found, report)
    return report


def build_trainer(recipe: Recipe, prepared: Prepared):
    """The method's trainer, with everything the recipe says."""
    from trl import get_peft_config, get_quantization_config

    args, sets = recipe.training, prepared.sets
    evaluates = args.eval_strategy != "no" or args.eval_on_start
    evaluated = _some({"forget": sets.forget, "retain": sets.retain}, args.seed) if evaluates else {}
    if getattr(args, "rewind", False) and "holdout" in sets.audited:
        evaluated["holdout"] = recipe.qa.dataset(sets.audited["holdout"], prepared.tokenizer)
    with _no_bars():
        trainer = recipe.trainer_class()(
            model=prepared.model,
            args=args,
            forget_dataset=prepared.roles["forget"],
            retain_dataset=prepared.roles.get("retain"),
            poisoned_dataset=prepared.roles.get("poisoned"),
            alternate_dataset=prepared.roles.get("alternate"),
            eval_dataset=evaluated or None,
            processing_class=prepared.tokenizer,
            peft_config=get_peft_config(recipe.model),
            quantization_config=get_quantization_config(recipe.model),
        )
    facts = trainer.card_facts
    facts.dataset_name, facts.datasets, facts.suite = sets.dataset_name, sets.origins, sets.name
    trainer.add_callback(MetricsFile(args.output_dir))
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(RunProgress)
    return trainer


def _train(recipe: Recipe, prepared: Prepared, trainer) -> None:
    """Trains and saves. The last step's checkpoint stays until the run is over, audits and push included."""
    if trainer.is_world_process_zero():
        begin_output(recipe)
    trainer.last_step.wanted = trainer.last_step.outlives_training = True
    try:
        trainer.train(resume_from_checkpoint=prepared.resume)
    except STOPPED_TOGETHER:
        trainer.end()
        raise
    # Trainer would push here; this run pushes once, when its audits are on the card.
    trainer.save_model(_internal_call=True)
    trainer.save_state()


def _open_repo(args) -> None:
    """Makes the repository first of all: a token that the Hub refuses is told before anything is computed."""
    if args.push_to_hub and args.process_index == 0:
        from ..hub.push import create_repo

        name = args.hub_model_id or Path(args.output_dir).resolve().name
        create_repo(name, token=args.hub_token, private=args.hub_private_repo)


def _end(recipe: Recipe, trainer, audits: dict[str, Audit], report: dict) -> None:
    """The card with the audits and the report's verdict on it, and the push; both are the first process's."""
    if audits:
        trainer.card_facts.add(audits=audits, verdict=next((one.line for one in verdicts(report)), None))
    trainer.create_model_card()
    try:
        if recipe.training.push_to_hub:
            trainer.push_to_hub()
        trainer.last_step.tidy()
    finally:
        trainer.end()


def _audit_retrained(recipe: Recipe, prepared: Prepared, audit, cache: AuditCache) -> Audit | None:
    """The retrained model's audit: made by the first process, on a whole copy of the model, before any training."""
    if prepared.retrained is None:
        return None
    import torch
    from accelerate import PartialState

    args, found = recipe.training, None

    def load(path: str):
        kwargs = {name: value for name, value in args.model_init_kwargs.items() if name != "revision"}
        return checkpoint_of(path, args.trust_remote_code, **kwargs).to(args.device)

    with whole_weights():
        if PartialState().is_main_process:
            # As the engine computes the model that it is compared with.
            half = torch.bfloat16 if args.bf16 else torch.float16
            with torch.autocast(args.device.type, half, enabled=audited_in(args) is not None):
                found = audit_checkpoint(prepared.retrained, audit, cache, load)
    PartialState().wait_for_everyone()
    return found


def _computed(recipe: Recipe) -> dict:
    """How models are loaded and run, as far as it shows in an audit."""
    model, args = recipe.model, recipe.training
    computed = {name: value for name, value in args.model_init_kwargs.items() if name != "revision"}
    computed["device"] = args.device.type
    if (half := audited_in(args)) is not None:
        computed["autocast"] = half
    if model.load_in_4bit or model.load_in_8bit:
        computed["quantized"] = [model.load_in_4bit, model.bnb_4bit_quant_type, model.use_bnb_nested_quant]
    return computed


@contextmanager
def _no_bars():
    """The trainer encodes what is encoded already: no second bar for that."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def _some(sets: dict, seed: int) -> dict:
    """At most `EVALUATED_ROWS` rows of each set, for the loss curves."""
    present = {name: rows for name, rows in sets.items() if rows is not None}
    return {
        name: rows.shuffle(seed=seed).select(range(EVALUATED_ROWS)) if len(rows) > EVALUATED_ROWS else rows
        for name, rows in present.items()
    }


def _set_verbosity(args, level: int) -> None:
    """Messages of this package on the first process; libraries speak when something is wrong."""
    import datasets
    import transformers

    if args.use_cpu:
        # DeepSpeed would find out itself, and say so.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_unlearn").setLevel(level if args.process_index == 0 else logging.ERROR)
    transformers.utils.logging.set_verbosity_warning()
    if args.process_index != 0 or args.disable_tqdm:
        datasets.disable_progress_bars()


if __name__ == "__main__":
    sys.exit(main())
