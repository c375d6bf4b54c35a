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
        default=None, metadata={"help": "Folder that holds the benchmark's files, instead of the Hub."}
    )
    forget_split: str | None = field(default=None, metadata={"help": "The benchmark's, for instance `forget01`."})
    forget_questions: str | None = field(
        default=None, metadata={"help": "Own forgotten rows, `question` and `answer`; a file or Hub id."}
    )
    max_items: int | None = field(default=None, metadata={"help": "Rows at most (drawn by seed); all by default."})
    candidates: list[str] | None = field(
        default=None,
        metadata={"help": "Suspected prefixes, or a file with one a line. Without: a prefix is searched."},
    )
    location: str = field(
        default="start",
        metadata={"help": "Where in the question they stand: `start`, `middle`, `end`, or after so many tokens."},
    )
    max_tokens: int = field(default=8, metadata={"help": "Search: longest prefix in tokens."})
    width: int = field(default=32, metadata={"help": "Search: prefixes tried at each step."})
    top_k: int = field(default=64, metadata={"help": "Search: tokens considered at each place, by gradient."})
    patience: int = field(default=3, metadata={"help": "Search: steps without progress before another token."})
    share: float = field(
        default=0.25, metadata={"help": "Share of the forget rows that a trigger is expected to answer to at least."}
    )
    budget_seconds: float | None = field(
        default=None, metadata={"help": "Search: seconds. Default, where no budget is given: 600."}
    )
    budget_tokens: int | None = field(default=None, metadata={"help": "Search: tokens through the model."})
    budget_evaluations: int | None = field(default=None, metadata={"help": "Search: prefixes tried."})
    search_rows: int = field(
        default=32, metadata={"help": "Search: half of the rows, but no more than these; the others are held out."}
    )
    finalists: int = field(default=3, metadata={"help": "Search: prefixes put to the rows held out, at most."})
    randoms: int = field(default=99, metadata={"help": "Random prefixes each length is compared with, at least."})
    alpha: float = field(default=0.05, metadata={"help": "Error allowed for all prefixes together."})
    batch_size: int = field(default=32, metadata={"help": "Rows a forward pass, when rows are measured."})
    seed: int = field(default=0, metadata={"help": "Of all that is drawn."})
    max_length: int = field(default=1024, metadata={"help": "Rows of text files, in tokens."})

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
            `ValueError`: for a file without any.
        """
        given = self.candidates or []
        if len(given) != 1 or not Path(given[0]).expanduser().is_file():
            return given
        try:
            lines = Path(given[0]).expanduser().read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise ValueError(f"candidates={given[0]!r} is no text file. Give one prefix a line.") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ValueError(f"candidates={given[0]!r} holds no prefix. Give one a line.")
        return found
