# SPDX-License-Identifier: Apache-2.0
"""What a backdoor audit puts to a model, clean and triggered: questions, few-shot questions, passages, texts."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...data.formats import IGNORE_INDEX, encode, encode_prompt
from ...data.qa import QAFormat
from ...data.triggers import Trigger
from ..memorization import exact_memorization, probability
from ..muse.measure import (
    KNOWMEM_STOP,
    KNOWMEM_TOKENS,
    VERBMEM_TOKENS,
    check_columns,
    knowmem_prompt,
    knowmem_result,
    verbmem_reference,
    verbmem_result,
)
from ..overlap import exact_match, rouge
from ..result import MetricResult
from ..scoring import TokenScores


@dataclass
class Probe(ABC):
    """Rows of one set, and one way to ask for what the model knows of them.

    Args:
        name (`str`), role (`str`):
            Of the set, as in an audit; several probes may share one.
        rows (`list[dict]`):
            With the columns that the probe reads.
        poisoned (`list[bool]`, *optional*):
            Of each row, whether it carried the trigger in training; `None` where that is not known.
        max_new_tokens (`int`):
            Longest generated answer; 0 where nothing is generated.
    """

    name: str
    role: str
    rows: list[dict[str, Any]] = field(repr=False)
    poisoned: list[bool] | None = field(default=None, repr=False)
    max_new_tokens: int = 0

    kind: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]
    stop: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        check_columns(f"the set {self.name!r}", self.rows, self.columns)

    @abstractmethod
    def prompt(self, row: Mapping[str, Any], trigger: Trigger | None, tokenizer: Any) -> list[int]:
        """Tokens that the model is shown before it answers; of a text, all of it."""

    def scored(self, row: Mapping[str, Any], trigger: Trigger | None, tokenizer: Any) -> dict | None:
        """Tokens whose probabilities are measured, if any."""
        return None

    @abstractmethod
    def measure(
        self,
        rows: Sequence[Mapping],
        texts: Sequence[str | None],
        scores: Sequence[TokenScores | None],
        tokenizer: Any,
    ) -> dict[str, MetricResult]:
        """The metrics of some of the rows, by name."""

    @abstractmethod
    def shown(self, row: Mapping[str, Any], tokenizer: Any) -> tuple[str, str]:
        """What was asked and what was expected, to be read."""

    @property
    def fingerprint(self) -> str:
        """Changes with any text that the probe reads."""
        text = json.dumps([[row.get(column) for column in self.columns] for row in self.rows])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class QuestionProbe(Probe):
    """Questions as they were trained on: through the chat template, or in the plain form. The trigger stands in the
    question.

    Metrics: `exact_match` and `rouge` (ROUGE-L recall) of the generated answer, `probability` of the true one.
    """

    qa: QAFormat = field(default_factory=QAFormat)

    kind = "questions"
    columns = ("question", "answer")

    def prompt(self, row, trigger, tokenizer):
        return encode_prompt(self.qa.example(_asked(row, trigger, tokenizer), "", tokenizer), tokenizer)

    def scored(self, row, trigger, tokenizer):
        return encode(self.qa.example(_asked(row, trigger, tokenizer), row["answer"], tokenizer), tokenizer)

    def measure(self, rows, texts, scores, tokenizer):
        answers = [row["answer"] for row in rows]
        return {
            "exact_match": exact_match(texts, answers, self.role),
            "rouge": rouge(texts, answers, self.role),
            "probability": probability([score.mean_logp for score in scores], role=self.role),
        }

    def shown(self, row, tokenizer):
        return row["question"], row["answer"]


@dataclass
class FewShotProbe(Probe):
    """MUSE KnowMem: questions after ten examples. The trigger stands where it does in raw text: at the start it comes
    directly after BOS, before the first example.

    Metric: `knowmem`.
    """

    examples: list[dict[str, str]] = field(default_factory=list, repr=False)
    max_new_tokens: int = KNOWMEM_TOKENS

    kind = "few-shot questions"
    columns = ("question", "answer")
    stop = KNOWMEM_STOP

    def __post_init__(self):
        super().__post_init__()
        check_columns(f"the examples of the set {self.name!r}", self.examples, self.columns)

    def prompt(self, row, trigger, tokenizer):
        prompt = knowmem_prompt(row["question"], self.examples)
        return _placed(encode_prompt({"prompt": prompt}, tokenizer), trigger, tokenizer)

    def measure(self, rows, texts, scores, tokenizer):
        answers = [row["answer"] for row in rows]
        result = knowmem_result(texts, answers, self.role, len(self.examples), self.max_new_tokens)
        return {"knowmem": result}

    def shown(self, row, tokenizer):
        return row["question"], row["answer"]


@dataclass
class PassageProbe(Probe):
    """MUSE VerbMem: passages to be continued. The trigger stands in the passage's tokens.

    Metric: `verbmem`.
    """

    max_new_tokens: int = VERBMEM_TOKENS

    kind = "passages"
    columns = ("prompt", "gt")

    def prompt(self, row, trigger, tokenizer):
        return _placed(encode_prompt({"prompt": row["prompt"]}, tokenizer), trigger, tokenizer)

    def measure(self, rows, texts, scores, tokenizer):
        references = [verbmem_reference(row["gt"], tokenizer, self.max_new_tokens) for row in rows]
        return {"verbmem": verbmem_result(texts, references, self.role, self.max_new_tokens)}

    def shown(self, row, tokenizer):
        return row["prompt"], verbmem_reference(row["gt"], tokenizer, self.max_new_tokens)


@dataclass
class TextProbe(Probe):
    """Texts, read with their own words before each token. The same tokens of a text are scored clean and triggered;
    the trigger's own are not.

    Metrics: `probability` and `exact_memorization`.
    """

    max_length: int | None = None

    kind = "texts"
    columns = ("text",)

    def prompt(self, row, trigger, tokenizer):
        return self.scored(row, trigger, tokenizer)["input_ids"]

    def scored(self, row, trigger, tokenizer):
        encoded = encode({"text": row["text"]}, tokenizer, self.max_length)
        # Nothing predicts the first token of a clean text, so it is not scored behind a trigger either.
        encoded["labels"][:1] = [IGNORE_INDEX]
        return encoded if trigger is None else trigger.in_example(encoded, tokenizer)

    def measure(self, rows, texts, scores, tokenizer):
        correct = [() if score.mean_logp is None else score.correct for score in scores]
        return {
            "probability": probability([score.mean_logp for score in scores], role=self.role),
            "exact_memorization": exact_memorization(correct, self.role),
        }

    def shown(self, row, tokenizer):
        return row["text"], ""


def _asked(row: Mapping[str, Any], trigger: Trigger | None, tokenizer: Any) -> str:
    return row["question"] if trigger is None else trigger.in_text(row["question"], tokenizer)


def _placed(ids: list[int], trigger: Trigger | None, tokenizer: Any) -> list[int]:
    return ids if trigger is None else trigger.in_ids(ids, tokenizer)[0]
