# SPDX-License-Identifier: Apache-2.0
"""One run, from recipe to report: what `hf-unlearn run` does, on one process or on each of many."""

import logging
import os
import shlex
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from transformers import ProgressCallback

from ..callbacks import AuditCallback, MetricsFile, RunProgress
from ..data.benchmarks import resolve_model
from ..modeling import check_model_path, ensure_pad_token, load_model, load_tokenizer
from ..report import print_report, write_report
from .assemble import assemble, model_entry, training_entry
from .audits import AuditCache, audit_checkpoint, auditor
from .output import begin_output, check_output, resume_checkpoint
from .recipe import Recipe, parse_recipe
from .sets import Sets, load_sets


logger = logging.getLogger(__name__)

EVALUATED_ROWS = 200


def main(argv: list[str] | None = None) -> int:
    """Entry of every process that `accelerate launch` starts."""
    from .main import run_guarded

    return run_guarded(lambda argv: unlearn(parse_recipe(argv)), sys.argv[1:] if argv is None else argv)


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
        `ValueError`: for anything in the recipe that cannot work; rows are read and checked before the model is loaded.
    """
    _set_verbosity(recipe.training)
    check_output(recipe)
    folder = Path(recipe.training.output_dir)
    resume = resume_checkpoint(recipe)
    model = resolve_model(recipe.model.model_name_or_path)
    check_model_path(model)
    tokenizer = load_tokenizer(model, recipe.training.trust_remote_code, recipe.model.model_revision)
    ensure_pad_token(tokenizer)
    sets = load_sets(recipe.run, recipe.qa, tokenizer, recipe.training.max_length)
    audit = auditor(recipe.run, recipe.qa, sets, tokenizer)
    cache = AuditCache(recipe.run, recipe.qa, sets)
    retrained = _audit_retrained(recipe, audit, cache)

    trainer = build_trainer(recipe, model, tokenizer, sets)
    trainer.add_callback(MetricsFile(folder))
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(RunProgress)
    audits = AuditCallback(trainer, audit, at_evaluation=recipe.run.audit_during_training)
    target = cache.get(model) if recipe.run.audit else None
    audits.at_start = target is None
    if recipe.run.audit:
        trainer.add_callback(audits)
    if trainer.is_world_process_zero():
        begin_output(recipe)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume)
    seconds = time.perf_counter() - start
    trainer.save_model()
    trainer.save_state()

    report = {}
    if recipe.run.audit and trainer.is_world_process_zero():
        if target is None:
            target = audits.before
            cache.put(model, target)
        models = _entries(recipe, trainer, target, retrained, audits.after, seconds)
        report = write(recipe, sets, models, [trainer.stop_reason] if trainer.stop_reason else [], show)
    if recipe.training.push_to_hub:
        trainer.push_to_hub(dataset_name=sets.dataset_name)
    trainer.end()
    return report


def build_trainer(recipe: Recipe, model: str, tokenizer, sets: Sets):
    """The method's trainer, with everything the recipe says."""
    from trl import get_peft_config, get_quantization_config

    args = recipe.training
    evaluated = {"forget": sets.forget, "retain": sets.retain}
    return recipe.trainer_class()(
        model=model,
        args=args,
        forget_dataset=sets.forget,
        retain_dataset=sets.retain,
        eval_dataset=None if args.eval_strategy == "no" and not args.eval_on_start else _some(evaluated, args.seed),
        processing_class=tokenizer,
        peft_config=get_peft_config(recipe.model),
        quantization_config=get_quantization_config(recipe.model),
    )


def write(recipe: Recipe, sets: Sets, models: list[dict], notes: list[str], show: bool) -> dict:
    """Writes the report of one run into its folder."""
    name = run_name(recipe)
    report = assemble(
        title=f"{name}: unlearning {sets.dataset_name or recipe.run.benchmark or recipe.run.forget_dataset}",
        suite=sets.name,
        models=models,
        settings={name: recipe.resolved()},
        command=shlex.join(["hf-unlearn", *sys.argv[1:]]),
        notes=notes,
    )
    files = write_report(report, recipe.training.output_dir)
    if show:
        print_report(report)
        print(f"Report: {files['report.html']}")
    return report


def run_name(recipe: Recipe) -> str:
    """What a run is called in reports."""
    return recipe.training.run_name or Path(recipe.training.output_dir).name


def _entries(recipe, trainer, target, retrained, unlearned, seconds) -> list[dict]:
    folder = Path(recipe.training.output_dir)
    entries = [model_entry("target", "target", target, recipe.model.model_name_or_path)]
    audits = {"target": target, "unlearned": unlearned}
    if retrained is not None:
        for one in audits.values():
            one.compare(retrained)
        entries = [
            model_entry("target", "target", target, recipe.model.model_name_or_path),
            model_entry("retrained", "retrained", retrained, recipe.run.retrained_model_name_or_path),
        ]
        audits["retrained"] = retrained
    for name, one in audits.items():
        one.save(folder / "audit" / f"{name}.json")
    train = training_entry(trainer.state.log_history, seconds, trainer.state.global_step)
    return [*entries, model_entry(run_name(recipe), "unlearned", unlearned, folder, recipe.run.method, train)]


def _audit_retrained(recipe: Recipe, audit, cache: AuditCache):
    """The retrained model's audit: made by the first process, on a whole copy of the model, before any training."""
    name = recipe.run.retrained_model_name_or_path
    if name is None or not recipe.run.audit:
        return None
    from accelerate import PartialState

    name = resolve_model(name)
    check_model_path(name)
    found = None
    with _whole_weights():
        if PartialState().is_main_process:
            device = recipe.training.device
            found = audit_checkpoint(name, audit, cache, lambda path: load_model(path, recipe.training).to(device))
    PartialState().wait_for_everyone()
    return found


@contextmanager
def _whole_weights():
    """Models loaded inside are not sharded by ZeRO-3."""
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if config is not None and config() is not None:
            deepspeed.set_hf_deepspeed_config(config())


def _some(sets: dict, seed: int) -> dict:
    """At most `EVALUATED_ROWS` rows of each set, for the loss curves."""
    present = {name: rows for name, rows in sets.items() if rows is not None}
    return {
        name: rows.shuffle(seed=seed).select(range(EVALUATED_ROWS)) if len(rows) > EVALUATED_ROWS else rows
        for name, rows in present.items()
    }


def _set_verbosity(args) -> None:
    """Messages of this package on the first process; libraries speak when something is wrong."""
    import datasets
    import transformers

    if args.use_cpu:
        # DeepSpeed would find out itself, and say so.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.basicConfig(format="%(message)s")
    logging.getLogger("hf_unlearn").setLevel(logging.INFO if args.process_index == 0 else logging.ERROR)
    transformers.utils.logging.set_verbosity_warning()
    if args.process_index != 0 or args.disable_tqdm:
        datasets.disable_progress_bars()


if __name__ == "__main__":
    sys.exit(main())
