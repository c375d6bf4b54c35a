# SPDX-License-Identifier: Apache-2.0
"""What a recipe says beside the trainer's and the model's settings."""

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from ..audit.arguments import AuditArguments
from ..audit.registry import AUDITS
from ..data.arguments import DataArguments
from ..yaml_file import read_fields
from .blocks import attack_blocks


@dataclass
class RunArguments(DataArguments, AuditArguments):
    """A recipe's own keys."""

    method: str | None = field(default=None, metadata={"help": "Method; `hf-unlearn methods` lists them."})
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of the tokenizer, for a model without one."}
    )
    audit: bool = field(
        default=True, metadata={"help": "Audit the model before and after training and write a report."}
    )
    audit_during_training: bool = field(
        default=False,
        metadata={"help": "Also audit at every evaluation; metrics are logged as `eval_<set>/<metric>`."},
    )
    audit_backdoor: bool = field(
        default=True,
        metadata={"help": "With poisoned rows, run the backdoor audit before and after training."},
    )
    eval_per_epoch: bool = field(
        default=False,
        metadata={
            "help": "Run the backdoor audit after every epoch; metrics are logged as "
            "`eval_backdoor/<set>_<condition>/<metric>`."
        },
    )
    backdoor_conditions: list[str] | None = field(
        default=None,
        metadata={
            "help": "Conditions of the backdoor audit, if not all: `clean triggered`, and the controls `unrelated` "
            "and `triggered_start`, `_middle`, `_end`."
        },
    )
    backdoor_benchmark: str | None = field(
        default=None,
        metadata={
            "help": "`muse_news` or `muse_books`: adds its questions, passages and texts to the backdoor audit."
        },
    )
    backdoor_benchmark_path: str | None = field(
        default=None, metadata={"help": "Folder with that benchmark's files, instead of the Hub."}
    )
    privacy: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Run membership inference on target, retrained model and result: fields of `hf-unlearn audit "
            "privacy`, such as `{attacks: [loss, entropy], fprs: [0.01, 0.05]}`; `{}` for its defaults."
        },
    )
    audits: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Further audits of target, retrained model and result, each with fields of its command: "
            "`{perplexity: {dataset_name: wiki.txt}}`; `hf-unlearn audit --help` lists them."
        },
    )
    robustness: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Attacks that ask whether what was forgotten comes back: `audits` names them, fields of one stand "
            "under its name, all others are of each: `{audits: [quantize], group_by: person}`."
        },
    )
    overwrite_output: bool = field(
        default=False,
        metadata={"help": "Continue although `output_dir` contains another run; its files are replaced."},
    )

    def __post_init__(self):
        DataArguments.__post_init__(self)
        AuditArguments.__post_init__(self)
        if self.audit_during_training and not self.audit:
            raise ValueError("audit_during_training needs `audit: true`.")
        self.privacy = read_fields("privacy", self.privacy, "{attacks: [loss], fprs: [0.01]}")
        if self.privacy is not None and not self.audit:
            raise ValueError("privacy needs `audit: true`. `hf-unlearn audit privacy` attacks any checkpoint.")
        self.audits = read_fields("audits", self.audits, "{perplexity: {dataset_name: wiki.txt}}")
        self.robustness = read_fields("robustness", self.robustness, "{audits: [quantize]}")
        blocks = self.blocks()
        if blocks and not self.audit:
            raise ValueError("audits needs `audit: true`. `hf-unlearn audit` measures any checkpoint.")
        if self.backdoor_benchmark_path is not None and self.backdoor_benchmark is None:
            raise ValueError("backdoor_benchmark_path is of no use without `backdoor_benchmark`. Give both or none.")

    def blocks(self) -> dict[str, dict[str, Any]]:
        """Kind of audit to its fields, those of `privacy` and `robustness` among them.

        Raises:
            `ValueError`: for an unknown kind, what are no fields, or one that is given twice.
        """
        blocks = {} if self.privacy is None else {"privacy": self.privacy}
        for name, fields in (self.audits or {}).items():
            if name not in AUDITS:
                near = get_close_matches(str(name), AUDITS, n=1)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"audits: unknown audit {name!r}.{hint} Allowed: {', '.join(AUDITS)}.")
            if not isinstance(fields, (dict, type(None))):
                raise ValueError(f"audits: {name}: {fields!r}; give fields of `hf-unlearn audit {name}`.")
            if name in blocks:
                raise ValueError(f"`{name}` and `audits: {{{name}: ...}}` are given. Leave one out.")
            blocks[name] = fields or {}
        if self.robustness is not None:
            attacks = attack_blocks(self.robustness)
            if twice := [name for name in attacks if name in blocks]:
                raise ValueError(f"`robustness` and `audits` both ask for {twice[0]}. Leave one out.")
            blocks |= attacks
        return blocks
