# SPDX-License-Identifier: Apache-2.0
"""Fields that audits share: which model, how it is loaded, and what is asked of it."""

from dataclasses import dataclass, field
from typing import Any

from ..yaml_file import read_fields
from .result import ROLES


@dataclass
class AuditArguments:
    """What is measured, and against what."""

    audit_max_items: int | None = field(
        default=None, metadata={"help": "Maximum number of items per set (drawn by seed); all by default."}
    )
    audit_batch_size: int = field(default=32, metadata={"help": "Batch size of the audit."})
    max_new_tokens: int = field(default=200, metadata={"help": "Maximum number of generated tokens per answer."})
    lm_eval_tasks: list[str] | None = field(
        default=None,
        metadata={"help": "lm-eval tasks that the audit also runs, such as `mmlu`; one process only."},
    )
    prompts: list[str] | None = field(
        default=None,
        metadata={
            "help": "Prompts whose answers before and after are shown in the report; formatted as questions are."
        },
    )
    retrained_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Model trained without the forget rows, with which the result is compared."},
    )
    audited_sets: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Further sets to audit, by a name that begins with `forget`, `retain` or `holdout`: "
            "`{forget_before: before.jsonl}`; files of questions and answers, or of texts."
        },
    )

    def __post_init__(self):
        self.audited_sets = read_set_files(self.audited_sets)
        for name in ("audit_max_items", "audit_batch_size", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}; give at least 1.")


@dataclass
class LoadingArguments:
    """How weights are loaded."""

    dtype: str = field(
        default="float32",
        metadata={"help": "Dtype of the loaded weights.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    attn_implementation: str | None = field(
        default=None, metadata={"help": "Attention implementation, such as `sdpa`."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code of a model repository. Only for code you have read."}
    )

    def loading(self) -> dict:
        """Arguments of `from_pretrained` that the fields say."""
        given = {"dtype": self.dtype, "attn_implementation": self.attn_implementation}
        return {name: value for name, value in given.items() if value is not None}


@dataclass
class CheckpointArguments(LoadingArguments):
    """Which model an audit looks at."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model to audit: a folder (full weights or an adapter) or a Hub id."}
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of a Hub id."})


@dataclass
class ModelArguments(CheckpointArguments):
    """Which model an audit looks at, what it is compared with, and where the result is written."""

    retrained_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Model trained without the forget rows, to compare with."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Output folder."})

    def __post_init__(self):
        if self.model_name_or_path is None:
            raise ValueError("`--model_name_or_path` is missing. Give a folder or a Hub id.")


def read_set_files(given: Any) -> dict[str, str] | None:
    """Names of sets and their files, as a recipe (a mapping) or the command line (its text) gives them.

    Raises:
        `ValueError`: for anything else, or a name that does not begin with a role.
    """
    example = "{forget_before: before.jsonl}"
    found = read_fields("audited_sets", given, example)
    if not all(isinstance(file, str) for file in (found or {}).values()):
        raise ValueError(f"audited_sets={given!r}; give each name a file, such as `{example}`.")
    for name in found or {}:
        if not str(name).startswith(ROLES) or not str(name).replace("-", "_").isidentifier():
            raise ValueError(
                f"audited_sets: {name!r}; give a name of letters, digits, `_` and `-` that begins with its role: "
                f"{', '.join(ROLES)}."
            )
    return found
