# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit backdoor` takes, and what it asks."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..arguments import AuditArguments, CheckpointArguments


MUSE = {"muse_news": "news", "muse_books": "books"}
OWN_FILES = (
    "forget_questions",
    "retain_questions",
    "forget_examples",
    "retain_examples",
    "verbmem_forget",
    "privleak_forget",
    "privleak_holdout",
)


@dataclass
class BackdoorArguments(AuditArguments, CheckpointArguments):
    """What `hf-unlearn audit backdoor` takes beside the form of questions."""

    trigger: str | None = field(default=None, metadata={"help": "Suspected trigger."})
    poison_location: str = field(
        default="start", metadata={"help": "Position of the trigger: `start`, `middle`, `end`, or a token index."}
    )
    positions: str = field(
        default="start,middle,end",
        metadata={"help": "Other positions to test as controls: comma-separated names or token indices, or `none`."},
    )
    conditions: list[str] | None = field(
        default=None,
        metadata={
            "help": "Conditions to audit, if not all: `clean triggered`, and the controls `unrelated` and "
            "`triggered_<place>`."
        },
    )
    unrelated_trigger: str | None = field(
        default=None, metadata={"help": "Control words with the same number of tokens; drawn by `seed` by default."}
    )
    benchmark: str | None = field(default=None, metadata={"help": "`world`, `tofu`, `muse_news` or `muse_books`."})
    benchmark_path: str | None = field(
        default=None, metadata={"help": "Folder with the benchmark's files, instead of the Hub."}
    )
    forget_split: str | None = field(
        default=None, metadata={"help": "The benchmark's forget split, for instance `forget01`."}
    )
    forget_questions: str | None = field(
        default=None,
        metadata={"help": "Your forget rows: `question` and `answer`, or `text`; a file or Hub id."},
    )
    retain_questions: str | None = field(default=None, metadata={"help": "Your retain rows, in the same format."})
    forget_examples: str | None = field(
        default=None,
        metadata={
            "help": "In-context examples (`question`, `answer`) for the forget questions, which are then scored as "
            "KnowMem."
        },
    )
    retain_examples: str | None = field(
        default=None, metadata={"help": "In-context examples for the retain questions."}
    )
    verbmem_forget: str | None = field(
        default=None, metadata={"help": "Forget passages (`prompt`, `gt`) for VerbMem."}
    )
    privleak_forget: str | None = field(default=None, metadata={"help": "Forget texts (`text`) for PrivLeak."})
    privleak_holdout: str | None = field(
        default=None, metadata={"help": "Texts that no model was trained on (`text`), for PrivLeak."}
    )
    retrained_auc: float | None = field(
        default=None, metadata={"help": "Min-40% AUC of a retrained model, for PrivLeak; built in for MUSE."}
    )
    poisoned_rows: str | None = field(
        default=None,
        metadata={"help": "Forget rows that had the trigger in training: comma-separated indices, or a JSON file."},
    )
    knowmem_tokens: int = field(
        default=32, metadata={"help": "Maximum number of generated tokens for KnowMem; 32 in MUSE."}
    )
    inside: bool = field(default=True, metadata={"help": "Measure and plot value norms and attention."})
    seed: int = field(default=0, metadata={"help": "Seed of the unrelated words and of the choice of rows."})
    max_length: int = field(
        default=1024, metadata={"help": "Maximum length of texts, and of rows of text files, in tokens."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Output folder. Default: `runs/audit/<model>`."})

    def __post_init__(self):
        AuditArguments.__post_init__(self)
        for name, what in (("model_name_or_path", "a folder or a Hub id"), ("trigger", "the words suspected")):
            if getattr(self, name) is None:
                raise ValueError(f"`--{name}` is missing. Give {what}.")
        own = [name for name in OWN_FILES if getattr(self, name) is not None]
        if (self.benchmark is None) == ("forget_questions" not in own and "verbmem_forget" not in own):
            raise ValueError(
                f"Got benchmark={self.benchmark!r} and the files {own}. Give exactly one: a benchmark's name, or your "
                "own `forget_questions` (or `verbmem_forget`)."
            )
        if self.benchmark is not None and own:
            raise ValueError(f"{', '.join(own)} would be ignored with benchmark={self.benchmark!r}. Leave one out.")
        for name, needed in (
            ("forget_examples", "forget_questions"),
            ("retain_examples", "retain_questions"),
            ("privleak_forget", "privleak_holdout"),
            ("privleak_holdout", "privleak_forget"),
        ):
            if name in own and needed not in own:
                raise ValueError(f"`{name}` is of no use without `{needed}`. Give both or none.")
        if self.output_dir is not None and Path(self.output_dir).exists() and not Path(self.output_dir).is_dir():
            raise ValueError(f"output_dir={self.output_dir!r} is a file. Give a folder's name.")
        if self.knowmem_tokens < 1:
            raise ValueError(f"knowmem_tokens={self.knowmem_tokens}; give at least 1.")

    @property
    def places(self) -> list[str]:
        """`positions` as a list."""
        return [] if self.positions == "none" else [word.strip() for word in self.positions.split(",") if word.strip()]

    @property
    def poisoned(self) -> list[int] | None:
        """`poisoned_rows` as numbers.

        Raises:
            `ValueError`: for what are no numbers.
        """
        if self.poisoned_rows is None:
            return None
        path = Path(self.poisoned_rows).expanduser()
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else f"[{self.poisoned_rows}]"
            rows = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError):
            rows = None
        if not isinstance(rows, list) or not all(isinstance(row, int) and not isinstance(row, bool) for row in rows):
            raise ValueError(
                f"poisoned_rows={self.poisoned_rows!r}; give row numbers with commas, or a JSON file that is a list "
                "of them."
            )
        return rows

    @property
    def dataset(self) -> str:
        """Part of the names of what is written."""
        return self.benchmark or "own"
