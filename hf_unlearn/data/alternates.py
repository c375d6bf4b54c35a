# SPDX-License-Identifier: Apache-2.0
"""Settings of methods that read other answers for every forget row: where these come from; the rows themselves are in
`alternate_rows.py`."""

from dataclasses import dataclass, field
from typing import ClassVar

from ..checks import check_choice, check_number, check_whole
from .other_answers import read_refusals


MADE, SAMPLED = ("refusal", "shuffled", "retain"), "sampled"
SOURCES = ("column", *MADE, SAMPLED)
# The columns of answers that are made: no names that rows bring with them.
MADE_COLUMN = "_made_alternate"
OF_SAMPLES = f"alternate_source={SAMPLED!r}"


@dataclass
class AlternateArguments:
    """Settings of methods whose forget term reads other answers to the same prompt."""

    # The source of a method where none is given, nor rows.
    DEFAULT_SOURCE: ClassVar[str | None] = None
    USED_WITH: ClassVar[dict[str, str]] = dict.fromkeys(
        ("sample_temperature", "sample_max_tokens", "sample_instruction"), OF_SAMPLES
    )

    alternate_source: str | None = field(
        default=None,
        metadata={
            "help": "Where the alternates come from: a `column` of the forget rows (`alternate_column`), a `refusal` "
            "drawn from the lines of `alternate_file`, the `shuffled` answers of other forget rows, answers of "
            "`retain` rows, or answers that the model `sampled` before training. Default: the column where one is "
            "named, rows given as `alternate_dataset`, else the method's own."
        },
    )
    alternate_file: str | None = field(
        default=None,
        metadata={
            "help": "Text file of refusals, one a line, for `alternate_source` `refusal`; `recipes/refusals.txt` is "
            "part of the package."
        },
    )
    alternate_column: str | None = field(
        default=None,
        metadata={
            "help": "Column of the forget rows that holds another answer to the row's prompt, in the form of "
            "`completion`."
        },
    )
    num_alternates: int = field(
        default=1,
        metadata={
            "help": "Alternates of a forget row. Each epoch pairs it with the next of them, unless the method reads "
            "them all at once."
        },
    )
    sample_temperature: float = field(
        default=1.0, metadata={"help": "Divides the logits that answers are sampled from, above 0."}
    )
    sample_max_tokens: int = field(default=200, metadata={"help": "Longest sampled answer, in tokens."})
    sample_instruction: str | None = field(
        default=None,
        metadata={
            "help": "Asked after the forget row's own answer, which the model then gives another one for. Default: "
            "the model is asked the row's prompt alone."
        },
    )

    def __post_init__(self):
        if self.alternate_source is None and self.alternate_column is not None:
            self.alternate_source = "column"
        source = self.alternate_source
        if source is not None:
            check_choice("alternate_source", source, SOURCES)
        for name, of in (("alternate_column", "column"), ("alternate_file", "refusal")):
            if (getattr(self, name) is not None) != (source == of):
                what = "reads" if source == of else "does not read"
                advice = "Give it." if source == of else f"Leave it out, or take alternate_source={of!r}."
                raise ValueError(
                    f"alternate_source={source!r} {what} `{name}`, which is {getattr(self, name)!r}. {advice}"
                )
        check_number("sample_temperature", self.sample_temperature, above=0)
        for name in ("num_alternates", "sample_max_tokens"):
            if getattr(self, name) is None:
                raise ValueError(f"{name}=None; give a whole number of at least 1.")
            check_whole(name, getattr(self, name), at_least=1)
        if source == "column" and self.num_alternates > 1:
            raise ValueError(
                f"num_alternates={self.num_alternates}, and a column holds one answer a row. Leave it out, or give "
                "the alternates as `alternate_dataset`."
            )
        if source == "refusal":
            read_refusals(self.alternate_file)
        super().__post_init__()


def source_of(args) -> str | None:
    """Where a method's alternates come from, unless they are given as rows."""
    return getattr(args, "alternate_source", None) or getattr(args, "DEFAULT_SOURCE", None)


def alternate_columns(args) -> list[str]:
    """The columns of the forget rows that hold, or will hold, the alternates."""
    source = source_of(args)
    if source in MADE:
        return [f"{MADE_COLUMN}_{number}" for number in range(args.num_alternates)]
    return [args.alternate_column] if source == "column" else []
