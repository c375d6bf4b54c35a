# SPDX-License-Identifier: Apache-2.0
"""Fields that audits share: which model, how it is loaded, and what is asked of it."""

from dataclasses import dataclass, field


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

    def __post_init__(self):
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
