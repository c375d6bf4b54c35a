# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn audit scan` takes."""

from dataclasses import dataclass, field
from pathlib import Path

from ..arguments import ModelArguments


SEARCH = ("max_tokens", "width", "top_k", "patience", "budget_seconds", "budget_tokens", "budget_evaluations")


@dataclass
class ScanArguments(ModelArguments):
    """What `hf-unlearn audit scan` takes beside the form of questions."""

    benchmark: str | None = field(default=None, metadata={"help": "`world` or `tofu`: its forget questions."})
    benchmark_path: str | None = field(
        default=None, metadata={"help": "Folder with the benchmark's files, instead of the Hub."}
    )
    forget_split: str | None = field(
        default=None, metadata={"help": "The benchmark's forget split, for instance `forget01`."}
    )
    forget_questions: str | None = field(
        default=None, metadata={"help": "Your forget rows, `question` and `answer`; a file or Hub id."}
    )
    max_items: int | None = field(
        default=None, metadata={"help": "Maximum number of rows (drawn by seed); all by default."}
    )
    candidates: list[str] | None = field(
        default=None,
        metadata={"help": "Suspected prefixes, or a file with one per line. Default: search for a prefix."},
    )
    location: str = field(
        default="start",
        metadata={"help": "Position in the question: `start`, `middle`, `end`, or a token index."},
    )
    max_tokens: int = field(default=8, metadata={"help": "Search: maximum prefix length in tokens."})
    width: int = field(default=32, metadata={"help": "Search: prefixes tried at each step."})
    top_k: int = field(default=64, metadata={"help": "Search: candidate tokens per position, by gradient."})
    patience: int = field(
        default=3, metadata={"help": "Search: steps without progress before the prefix is extended."}
    )
    share: float = field(
        default=0.25, metadata={"help": "Smallest share of the forget rows that a trigger is expected to restore."}
    )
    budget_seconds: float | None = field(
        default=None, metadata={"help": "Search: budget in seconds. Default, if no budget is given: 600."}
    )
    budget_tokens: int | None = field(default=None, metadata={"help": "Search: budget in tokens through the model."})
    budget_evaluations: int | None = field(default=None, metadata={"help": "Search: budget in prefixes tried."})
    search_rows: int = field(
        default=32,
        metadata={"help": "Search: maximum number of rows searched on, at most half; the others are held out."},
    )
    finalists: int = field(
        default=3, metadata={"help": "Search: maximum number of prefixes tested on the held-out rows."}
    )
    randoms: int = field(default=99, metadata={"help": "Minimum number of random prefixes compared with per length."})
    alpha: float = field(default=0.05, metadata={"help": "Significance level for all prefixes together."})
    batch_size: int = field(default=32, metadata={"help": "Batch size when rows are scored."})
    seed: int = field(default=0, metadata={"help": "Random seed."})
    max_length: int = field(default=1024, metadata={"help": "Row length for text files, in tokens."})

    def __post_init__(self):
        super().__post_init__()
        if (self.benchmark is None) == (self.forget_questions is None):
            raise ValueError(
                f"Got benchmark={self.benchmark!r} and forget_questions={self.forget_questions!r}. Give exactly one."
            )
        idle = [name for name in ("benchmark_path", "forget_split") if getattr(self, name) is not None]
        if self.benchmark is None and idle:
            raise ValueError(f"{' and '.join(idle)} would be ignored with `forget_questions`. Leave one out.")
        if self.max_items is not None and self.max_items < 1:
            raise ValueError(f"max_items={self.max_items}; give at least 1.")
        budgets = [name for name in SEARCH if name.startswith("budget") and getattr(self, name) is not None]
        if self.candidates and budgets:
            raise ValueError(f"{', '.join(budgets)} would be ignored: `candidates` are tried, nothing is searched.")

    @property
    def dataset(self) -> str:
        """Part of the names of what is written."""
        return self.benchmark or "own"

    @property
    def words(self) -> list[str]:
        """The candidates, read from a file if one is named.

        Raises:
            `ValueError`: for a file that is not there, or without any.
        """
        # A recipe gives one word or file as text.
        given = [self.candidates] if isinstance(self.candidates, str) else self.candidates or []
        if len(given) != 1 or not Path(given[0]).expanduser().is_file():
            # Tried as a prefix, the name of a missing file would be found to do nothing.
            if missing := [name for name in given if name.endswith(".txt")]:
                raise ValueError(
                    f"candidates={missing[0]!r} is no file, or not the only one. Give one file, or words."
                )
            return given
        try:
            lines = Path(given[0]).expanduser().read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"candidates={given[0]!r} is no text file. Give one prefix a line.") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"candidates={given[0]!r} holds no prefix. Give one a line.")
        return found
