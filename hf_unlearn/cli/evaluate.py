# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn eval`: audits any checkpoint, ours or not, full weights or an adapter."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..audit.arguments import AuditArguments, CheckpointArguments
from ..data.arguments import DataArguments


@dataclass
class EvalArguments(DataArguments, AuditArguments, CheckpointArguments):
    """What `hf-unlearn eval` takes beside the form of questions."""

    max_length: int = field(default=1024, metadata={"help": "Text files are split into rows of this many tokens."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Output folder of audit and report. Default: `runs/eval/<model>`."}
    )
    run_name: str | None = field(default=None, metadata={"help": "Name of the model in the report."})

    def __post_init__(self):
        DataArguments.__post_init__(self)
        AuditArguments.__post_init__(self)
        if self.model_name_or_path is None:
            raise ValueError("No model is named. Give `--model_name_or_path`: a folder or a Hub id.")
        self.run_name = self.run_name or Path(self.model_name_or_path).resolve().name
        if self.run_name == "retrained" and self.retrained_model_name_or_path is not None:
            raise ValueError("The report has a model called 'retrained' already. Give another `--run_name`.")


def main(argv: list[str]) -> None:
    """Audits `--model_name_or_path` on a benchmark or on own rows, and reports."""
    from ..runs.launch import launch, take_launch_options

    argv = list(argv)
    accelerate_config, options = take_launch_options(argv)

    from ..data.qa import QAFormat
    from ..runs.parser import StrictParser

    (args, qa), _ = StrictParser((EvalArguments, QAFormat), prog="hf-unlearn eval").parse(argv)
    if accelerate_config is None:
        evaluate(args, qa)
    else:
        prepare(args, qa)  # A mistake is told once, before any process starts.
        launch("hf_unlearn.cli.evaluate", accelerate_config, argv, options)


def prepare(args: EvalArguments, qa) -> tuple:
    """Finds and checks what an audit needs besides models: model path, tokenizer, sets, retrained path."""
    from ..audit.checkpoints import (
        check_checkpoint_path,
        check_embeddings,
        check_fits,
        check_is_another,
        tokenizer_of,
    )
    from ..data.benchmarks import resolve_model
    from ..data.sets import load_sets
    from ..places import check_folder
    from ..runs.suite_audits import check_audited

    check_folder("output_dir", args.output_dir)
    model, retrained = resolve_model(args.model_name_or_path), args.retrained_model_name_or_path
    check_checkpoint_path(model)
    if retrained is not None:
        retrained = resolve_model(retrained)
        check_checkpoint_path(retrained)
        check_is_another(retrained, model, args.model_revision)
    tokenizer = tokenizer_of(model, args.trust_remote_code, args.model_revision)
    for path in filter(None, (model, retrained)):
        check_embeddings(path, tokenizer, args.trust_remote_code, args.model_revision if path == model else None)
    sets = load_sets(args, qa, tokenizer, args.max_length)
    check_audited(sets, args.audit_max_items)
    for path in filter(None, (model, retrained)):
        check_fits(path, sets.suite, args.trust_remote_code, args.model_revision if path == model else None)
    return model, tokenizer, sets, retrained


def evaluate(args: EvalArguments, qa) -> dict:
    """Audits a checkpoint (and the retrained one, if named) and writes the report; returns the report."""
    from accelerate import Accelerator

    from ..audit.checkpoints import audited_checkpoint
    from ..report import print_report, write_report
    from ..runs.assemble import assemble, model_entry
    from ..runs.launch import command_line
    from ..runs.suite_audits import AuditCache, add_forget_quality, audit_checkpoint, auditor

    accelerator = Accelerator()
    model, tokenizer, sets, retrained = prepare(args, qa)
    run_audit = auditor(args, qa, sets, tokenizer)
    cache = AuditCache(args, qa, sets, tokenizer, {**args.loading(), "device": accelerator.device.type})

    def audited(path: str, **kwargs):
        def load(path):
            loading = args.loading() | kwargs
            return audited_checkpoint(path, accelerator.device, args.trust_remote_code, tokenizer, **loading)

        return audit_checkpoint(path, lambda model: run_audit(model, accelerator), cache, load, together=True)

    name = args.run_name
    result = audited(model, **({} if args.model_revision is None else {"revision": args.model_revision}))
    models, notes = [], []
    if retrained is not None:
        gold = audited(retrained)
        notes = add_forget_quality([result], gold)
        models.append(model_entry("retrained", "retrained", gold, args.retrained_model_name_or_path))
    models.append(model_entry(name, "unlearned", result, model))
    report = assemble(
        title=f"Audit of {name}",
        suite=sets.name,
        models=models,
        settings={name: {key: value for key, value in vars(args).items() if value is not None}},
        command=command_line(),
        notes=notes,
    )
    if accelerator.is_main_process:
        folder = Path(args.output_dir or f"runs/eval/{name}")
        result.save(folder / "audit" / f"{name}.json")
        files = write_report(report, folder)
        print_report(report)
        print(f"Report: {files['report.html']}")
    accelerator.end_training()
    return report


if __name__ == "__main__":
    from .main import run_guarded

    sys.exit(run_guarded(main, sys.argv[1:]))
