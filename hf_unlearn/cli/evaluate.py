# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn eval`: audits any checkpoint, ours or not, full weights or an adapter."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .arguments import AuditArguments, DataArguments


@dataclass
class EvalArguments(DataArguments, AuditArguments):
    """What `hf-unlearn eval` takes beside the model's fields."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Where audit and report are written. Default: `runs/eval/<model>`."}
    )
    run_name: str | None = field(default=None, metadata={"help": "What the model is called in the report."})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that comes with a model repository. Only for code you have read."}
    )

    def __post_init__(self):
        DataArguments.__post_init__(self)
        AuditArguments.__post_init__(self)


def main(argv: list[str]) -> None:
    """Audits `--model_name_or_path` on a benchmark or on own rows, and reports."""
    from .launch import launch, take_option

    argv = list(argv)
    accelerate_config = take_option(argv, "accelerate_config")
    options = {name: take_option(argv, name) for name in ("num_processes", "main_process_port")}
    if accelerate_config is not None:
        launch("hf_unlearn.cli.evaluate", accelerate_config, argv, options)
        return

    from trl import ModelConfig

    from ..data.qa import QAFormat
    from .recipe import StrictParser

    args, qa, model = StrictParser((EvalArguments, QAFormat, ModelConfig), prog="hf-unlearn eval").parse(argv)
    if model.model_name_or_path is None:
        raise ValueError("No model is named. Give `--model_name_or_path`: a folder or a Hub id.")
    evaluate(args, qa, model)


def evaluate(args: EvalArguments, qa, model_config) -> dict:
    """Audits a checkpoint (and the retrained one, if named) and writes the report; returns the report."""
    from accelerate import Accelerator

    from ..data.benchmarks import resolve_model
    from ..modeling import ensure_pad_token, load_checkpoint, load_tokenizer
    from ..report import print_report, write_report
    from .assemble import assemble, model_entry
    from .audits import AuditCache, audit_checkpoint, auditor
    from .sets import load_sets

    accelerator = Accelerator()
    kwargs = {"dtype": model_config.dtype, "attn_implementation": model_config.attn_implementation}

    def load(path: str):
        return load_checkpoint(path, args.trust_remote_code, **kwargs).to(accelerator.device)

    name = args.run_name or Path(model_config.model_name_or_path).name
    model = resolve_model(model_config.model_name_or_path)
    tokenizer = load_tokenizer(model, args.trust_remote_code, model_config.model_revision)
    ensure_pad_token(tokenizer)
    sets = load_sets(args, qa, tokenizer, max_length=None)
    run_audit, cache = auditor(args, qa, sets, tokenizer), AuditCache(args, qa, sets)

    def audit(model):
        return run_audit(model, accelerator)

    result = audit_checkpoint(model, audit, cache, load)
    models = [model_entry(name, "unlearned", result, model)]
    if args.retrained_model_name_or_path is not None:
        retrained = audit_checkpoint(resolve_model(args.retrained_model_name_or_path), audit, cache, load)
        result.compare(retrained)
        models = [
            model_entry("retrained", "retrained", retrained, args.retrained_model_name_or_path),
            model_entry(name, "unlearned", result, model),
        ]
    report = assemble(
        title=f"Audit of {name}",
        suite=sets.name,
        models=models,
        settings={name: {"model": model, **{k: v for k, v in vars(args).items() if v is not None}}},
        command=shlex.join(["hf-unlearn", *sys.argv[1:]]),
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
