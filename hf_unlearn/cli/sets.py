# SPDX-License-Identifier: Apache-2.0
"""The rows a recipe asks for: to train on, and to ask about."""

from dataclasses import dataclass, field

from ..data.benchmarks import load_benchmark
from ..data.qa import QAFormat
from ..data.sources import load_rows
from .arguments import DataArguments


@dataclass
class Sets:
    """Rows of a run.

    Args:
        forget, retain (`datasets.Dataset`):
            To train on; `retain` may be missing.
        audited (`dict[str, datasets.Dataset]`):
            Questions and answers, or texts, to audit.
        name (`str`):
            What they are called in reports.
        suite (`str`):
            What the audit does with them.
        dataset_name (`str`, *optional*):
            Hub id, for the model card.
    """

    forget: object
    retain: object
    audited: dict = field(default_factory=dict)
    name: str = "own rows"
    suite: str = "default"
    dataset_name: str | None = None


def load_sets(run: DataArguments, qa: QAFormat, tokenizer, max_length: int | None) -> Sets:
    """Loads a benchmark's sets, or one's own; questions become prompts and completions."""
    if run.benchmark is not None:
        bench = load_benchmark(run.benchmark, run.benchmark_path, run.forget_split)
        return Sets(
            forget=qa.dataset(bench.forget, tokenizer),
            retain=qa.dataset(bench.retain, tokenizer),
            audited=bench.audit_sets,
            name=bench.name,
            suite=bench.suite,
            dataset_name=bench.dataset_name,
        )
    own = {}
    for role in ("forget", "retain"):
        name = getattr(run, f"{role}_dataset")
        if name is not None:
            config, split = getattr(run, f"{role}_dataset_config"), getattr(run, f"{role}_dataset_split")
            own[role] = load_rows(name, config, split, tokenizer, max_length)
    return Sets(
        forget=qa.dataset(own["forget"], tokenizer),
        retain=qa.dataset(own["retain"], tokenizer) if "retain" in own else None,
        audited=own,
        dataset_name=run.forget_dataset if run.forget_dataset.count("/") == 1 else None,
    )
