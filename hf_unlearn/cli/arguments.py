# SPDX-License-Identifier: Apache-2.0
"""What a recipe says beside the trainer's and the model's settings."""

from dataclasses import dataclass, field
from typing import Any

import yaml


@dataclass
class DataArguments:
    """Where the rows come from: a benchmark, or one's own forget and retain sets."""

    benchmark: str | None = field(
        default=None,
        metadata={
            "help": "`tofu`, `rwku`, `vqa_v2`, or `world` and `vqa_world` (embedded, no download).",
            "aliases": ["--suite"],
        },
    )
    benchmark_path: str | None = field(
        default=None, metadata={"help": "Folder that holds the benchmark's files, instead of the Hub."}
    )
    forget_split: str | None = field(
        default=None,
        metadata={
            "help": "The benchmark's forget split, for instance `forget01` of TOFU, or the corpus of RWKU to train on."
        },
    )
    forget_targets: list[str] | None = field(
        default=None, metadata={"help": "Whom of RWKU to forget, by name or id (`1_Stephen_King`)."}
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
    chunk_text: bool = field(
        default=False,
        metadata={"help": "Cut own rows of `text` into rows of `max_length` tokens, instead of losing their ends."},
    )

    def __post_init__(self):
        if (self.benchmark is None) == (self.forget_dataset is None):
            raise ValueError(
                f"Got benchmark={self.benchmark!r} and forget_dataset={self.forget_dataset!r}. Give exactly one: a "
                "benchmark's name, or your own rows (`--benchmark null` unsets a recipe's)."
            )
        own, benchmarks = ("retain_dataset", "chunk_text"), ("benchmark_path", "forget_split", "forget_targets")
        given = [name for name in (own if self.forget_dataset is None else benchmarks) if getattr(self, name)]
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
    lm_eval_tasks: list[str] | None = field(
        default=None,
        metadata={"help": "Tasks of lm-eval that an audit runs too, such as `mmlu`; of one process."},
    )
    prompts: list[str] | None = field(
        default=None,
        metadata={"help": "Prompts whose answers, before and after, the report shows; put as questions are."},
    )
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
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the tokenizer, for a model that comes without one."}
    )
    audit: bool = field(
        default=True, metadata={"help": "Audit the model before and after training and write a report."}
    )
    audit_during_training: bool = field(
        default=False,
        metadata={"help": "Audit at every evaluation too; metrics are logged as `eval_<set>/<metric>`."},
    )
    audit_backdoor: bool = field(
        default=True,
        metadata={"help": "Where rows are poisoned, ask with and without the trigger too, before and after training."},
    )
    eval_per_epoch: bool = field(
        default=False,
        metadata={"help": "Ask so after every epoch; metrics are logged as `eval_backdoor/<set>_<asked>/<metric>`."},
    )
    backdoor_conditions: list[str] | None = field(
        default=None,
        metadata={
            "help": "Under which to ask so, fewer than all: `clean triggered`, and of the controls `unrelated` and "
            "`triggered_start`, `_middle`, `_end`."
        },
    )
    backdoor_benchmark: str | None = field(
        default=None,
        metadata={"help": "`muse_news` or `muse_books`: its questions, passages and texts are asked so too."},
    )
    backdoor_benchmark_path: str | None = field(
        default=None, metadata={"help": "Folder that holds that benchmark's files, instead of the Hub."}
    )
    privacy: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Attacks target, retrained model and result by membership inference: fields of `hf-unlearn audit "
            "privacy`, such as `{attacks: [loss, entropy], fprs: [0.01, 0.05]}`; `{}` for its defaults."
        },
    )
    overwrite_output: bool = field(
        default=False, metadata={"help": "Go on although `output_dir` holds another run; its files are replaced."}
    )

    def __post_init__(self):
        DataArguments.__post_init__(self)
        AuditArguments.__post_init__(self)
        if self.audit_during_training and not self.audit:
            raise ValueError("audit_during_training needs `audit: true`.")
        self.privacy = _read_fields("privacy", self.privacy)
        if self.privacy is not None and not self.audit:
            raise ValueError("privacy needs `audit: true`. `hf-unlearn audit privacy` attacks any checkpoint.")
        if self.backdoor_benchmark_path is not None and self.backdoor_benchmark is None:
            raise ValueError("backdoor_benchmark_path is of no use without `backdoor_benchmark`. Give both or none.")


def _read_fields(name: str, value: Any) -> dict[str, Any] | None:
    """Fields as a recipe or the command line gives them.

    Raises:
        `ValueError`: if they are none.
    """
    try:
        fields = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        fields = value
    if fields is not None and not isinstance(fields, dict):
        raise ValueError(f"{name}={value!r}; give fields, such as `{{attacks: [loss], fprs: [0.01]}}`.")
    return fields
