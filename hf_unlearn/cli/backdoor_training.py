# SPDX-License-Identifier: Apache-2.0
"""The backdoor audit of a run that poisons: every epoch in the log, and written at the end."""

from pathlib import Path

from ..audit.backdoor import audit_backdoor, look_inside
from ..audit.backdoor_probes import Probe
from ..audit.backdoor_sets import muse_probes, question_probes
from ..audit.muse_data import load_muse
from ..backdoor_callback import BackdoorAuditCallback
from ..data.poison import poisoned_indices
from ..data.roles import data_seed
from ..report.backdoor import write_backdoor
from .audit_backdoor import described
from .backdoor_arguments import MUSE
from .sets import Sets


def backdoor_probes(recipe, sets: Sets, tokenizer) -> list[Probe]:
    """What the audit of a run asks: the run's own sets, or MUSE's questions; poisoned rows are known here.

    Args:
        recipe ([`Recipe`]):
            With `poison_prefix`.
        sets ([`Sets`]):
            The run's.
        tokenizer (`PreTrainedTokenizerBase`):
            The model's.

    Raises:
        `ValueError`: for sets that an audit cannot read; call it before any model is loaded.
    """
    run, training = recipe.run, recipe.training
    if run.benchmark in MUSE:
        return muse_probes(load_muse(MUSE[run.benchmark], run.benchmark_path), max_items=run.audit_max_items)
    forget, poisoned = sets.audited.get("forget"), None
    # Benchmarks ask for the facts that they train on row by row; sets of another size ask for something else.
    if forget is not None and "poisoned" not in forget.column_names and len(forget) == len(sets.forget):
        poisoned = poisoned_indices(len(forget), training.poison_ratio, training.poison_select, data_seed(training))
    return question_probes(
        sets.audited,
        tokenizer,
        qa=recipe.qa,
        suite=sets.suite,
        poisoned=poisoned,
        max_items=run.audit_max_items,
        max_length=training.max_length,
        max_new_tokens=run.max_new_tokens,
    )


def watch_backdoor(trainer, recipe, probes: list[Probe], tokenizer) -> BackdoorAuditCallback:
    """Adds to a trainer the audit that logs `eval_backdoor/...` before training and after every epoch.

    Args:
        trainer ([`UnlearnTrainer`]), recipe ([`Recipe`]), tokenizer:
            Of the run.
        probes (`list[Probe]`):
            From [`backdoor_probes`].
    """
    run, args = recipe.run, recipe.training

    def audit(model, accelerator):
        return audit_backdoor(
            model,
            tokenizer,
            args.trigger,
            probes,
            inside=False,
            batch_size=run.audit_batch_size,
            generation_batch_size=run.audit_batch_size,
            accelerator=accelerator,
            progress=not args.disable_tqdm,
        )

    callback = BackdoorAuditCallback(trainer, audit, folder=Path(args.output_dir) / "audit")
    trainer.add_callback(callback)
    return callback


def write_backdoor_audit(
    callback: BackdoorAuditCallback, recipe, probes: list[Probe], tokenizer, dataset: str
) -> dict | None:
    """Writes `backdoor_<dataset>.json`, `.md` and `.png` of the trained model; every process calls it.

    Returns:
        `dict`: what was written; `None` on processes other than the first.
    """
    trainer, args, audit = callback.trainer, recipe.training, callback.last
    # Sharded weights are there for whole forwards only.
    if trainer.accelerator.num_processes == 1:
        progress = not args.disable_tqdm
        audit.inside = look_inside(trainer.model, tokenizer, args.trigger, probes, progress=progress)
    if not trainer.is_world_process_zero():
        return None
    found = described(audit, None, args.output_dir, dataset)
    write_backdoor(found, args.output_dir)
    return found
