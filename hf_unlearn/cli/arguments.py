# SPDX-License-Identifier: Apache-2.0
"""What a recipe says beside the trainer's and the model's settings."""

from dataclasses import dataclass, field


@dataclass
class DataArguments:
    """Where the rows come from: a benchmark, or one's own forget and retain sets."""

    benchmark: str | None = field(
        default=None, metadata={"help": "`tofu` or `world` (embedded, no download); trained on and audited."}
    )
    benchmark_path: str | None = field(
        default=None, metadata={"help": "Folder that holds the benchmark's files, instead of the Hub."}
    )
    forget_split: str | None = field(
        default=None, metadata={"help": "The benchmark's forget split, for instance `forget01` of TOFU."}
    )
    forget_dataset: str | None = field(
        default=None, metadata={"help": "Own rows to forget: a file, a folder or a Hub id."}
    )
    forget_dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the Hub."})
    forget_dataset_split: str = field(default="train", metadata={"help": "Its split on the Hub."})
    retain_dataset: str | None = field(
        default=None, metadata={"help": "Own rows to keep: a file, a folder or a Hub id."}
    )
    retain_dataset_config: str | None = field(default=None, metadata={"help": "Its configuration on the Hub."})
    retain_dataset_split: str = field(default="train", metadata={"help": "Its split on the Hub."})

    def __post_init__(self):
        if (self.benchmark is None) == (self.forget_dataset is None):
            raise ValueError(
                f"Got benchmark={self.benchmark!r} and forget_dataset={self.forget_dataset!r}. Give exactly one: a "
                "benchmark's name, or your own rows (`--benchmark null` unsets a recipe's)."
            )
        unused = ("retain_dataset",) if self.forget_dataset is None else ("benchmark_path", "forget_split")
        given = [name for name in unused if getattr(self, name) is not None]
        if given:
            raise ValueError(
                f"{' and '.join(given)} would be ignored with "
                f"{'benchmark' if self.forget_dataset is None else 'forget_dataset'}. Leave out one or the other."
            )


@dataclass
class AuditArguments:
    """What is measured, and against what."""

    audit_max_items: int | None = field(
        default=None, metadata={"help": "Items a set at most (drawn by seed); all by default."}
    )
    audit_batch_size: int = field(default=32, metadata={"help": "Rows a forward pass of the audit."})
    max_new_tokens: int = field(default=200, metadata={"help": "Longest generated answer in tokens."})
    retrained_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model trained without the forget rows: what forgetting is judged against."},
    )

    def __post_init__(self):
        for name in ("audit_max_items", "audit_batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; give at least 1.")


@dataclass
class RunArguments(DataArguments, AuditArguments):
    """A recipe's own keys."""

    method: str | None = field(default=None, metadata={"help": "Which objective; `hf-unlearn methods` lists them."})
    audit: bool = field(
        default=True, metadata={"help": "Audit the model before and after training and write a report."}
    )
    audit_during_training: bool = field(
        default=False,
        metadata={"help": "Audit at every evaluation too; metrics are logged as `eval_<set>/<metric>`."},
    )
    overwrite_output: bool = field(
        default=False, metadata={"help": "Go on although `output_dir` holds another run; its files are replaced."}
    )

    def __post_init__(self):
        DataArguments.__post_init__(self)
        AuditArguments.__post_init__(self)
        if self.audit_during_training and not self.audit:
            raise ValueError("audit_during_training needs `audit: true`.")
