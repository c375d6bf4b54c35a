# SPDX-License-Identifier: Apache-2.0
"""Who is attacked, behind one small protocol: a language model here, a classifier in `classifiers.py`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any, TypeVar

import numpy as np
import torch

from hf_unlearn.data.formats import IGNORE_INDEX, encode, tokenizer_of
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.forward.head_input import inputs_of
from hf_unlearn.models.wrappers import beside_weights
from hf_unlearn.stored.key import IRRELEVANT, hash_tensors, hash_tokenizer

from ..batching import device_of
from ..model_checks import check_sound
from ..scoring import score_rows
from .cache import SignalCache, digest
from .signals import SOFTMAX_COLUMNS, Signals, token_signals


T = TypeVar("T")


class Subject(ABC):
    """A model under attack. Attacks read [`~Subject.observe`]; what was computed once for a set is kept.

    Args:
        model (`torch.nn.Module`):
            Left in the mode it was found in.
        batch_size (`int`):
            Rows a forward pass.
        cache (`SignalCache`, *optional*):
            Keeps signals on disk; the key holds the weights, the rows and the versions.
        progress (`bool`):
            Progress bars.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        batch_size: int = 16,
        cache: SignalCache | None = None,
        progress: bool = True,
    ):
        self.model, self.batch_size, self.cache, self.progress = model, batch_size, cache, progress
        self._kept: dict[tuple[str, int], tuple[Any, Any]] = {}

    def once(self, what: str, data: Sequence[Mapping[str, Any]], compute: Callable[[Any], T]) -> T:
        """`compute(data)`, which is `what` of these rows; computed the first time."""
        if (what, id(data)) not in self._kept:
            # The rows are held as well, so that no other object gets their id.
            self._kept[what, id(data)] = data, compute(data)
        return self._kept[what, id(data)][1]

    def observe(self, data: Sequence[Mapping[str, Any]]) -> Signals:
        """Signals of every row's predictions."""
        return self.once("signals", data, self._cached)

    @abstractmethod
    def row_ids(self, data: Sequence[Mapping[str, Any]]) -> list[str]:
        """Which row it is: a hash of what the model is given, whatever it is to say to it."""

    @abstractmethod
    def row_keys(self, data: Sequence[Mapping[str, Any]]) -> list[str]:
        """What is read of a row: a hash of what the model is given and is to say."""

    def head_of(self, data: Sequence[Mapping[str, Any]]) -> str:
        """How logits become probabilities: `"softmax"`, or what a classifier's labels ask for."""
        return "softmax"

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What signals depend on besides weights and rows."""

    def states(self, data: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """What the last layer reads of each row, float64 `[n, d]`; of a language model the mean over the positions
        that predict a labelled token, NaN for a row without any."""
        return self.once("states", data, self._states)

    @abstractmethod
    def _compute(self, data: Sequence[Mapping[str, Any]]) -> Signals: ...

    def _states(self, data: Sequence[Mapping[str, Any]]) -> np.ndarray:
        raise ValueError(
            f"A {type(self).__name__} gives no representations, which 'probe', 'knn' and 'centroid' read. Take other "
            "attacks."
        )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights, and of what adapters and a wrapper do with theirs."""
        weights = hash_tensors(self.model.state_dict().items(), self.progress)
        beside = beside_weights(self.model)
        return digest([weights, beside]) if beside else weights

    def _cached(self, data) -> Signals:
        if self.cache is None:
            return self._compute(data)
        config = self.model.config.to_dict() if hasattr(self.model, "config") else {}
        about = {
            "weights": self.fingerprint,
            "model": type(self.model).__name__,
            "config": {name: str(value) for name, value in config.items() if name not in IRRELEVANT},
            "rows": self.row_keys(data),
            "settings": self.settings(),
            "device": device_of(self.model).type,
            "versions": [version(name) for name in ("torch", "transformers")],
        }
        return self.cache.get(digest(about), lambda: self._compute(data))


class LanguageModel(Subject):
    """A causal language model and rows of any TRL type, or with `question` and `answer`.

    Args:
        model (`torch.nn.Module`):
            Causal language model, with or without an adapter.
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Its tokenizer; needed for all rows but tokenised ones.
        max_length (`int`, *optional*):
            Where rows are cut, in tokens.
        qa (`QAFormat`, *optional*):
            The words around questions and answers.
        kwargs:
            As in [`Subject`].
    """

    def __init__(self, model, processing_class=None, max_length: int | None = None, qa=None, **kwargs):
        super().__init__(model, **kwargs)
        self.tokenizer, self.max_length, self.qa = tokenizer_of(processing_class), max_length, qa or QAFormat()

    def encode(self, data: Sequence[Mapping[str, Any]]) -> list[dict[str, list[int]]]:
        """`input_ids` and `labels` of each row.

        Raises:
            `ValueError`: if rows are text and there is no tokenizer, or have pictures.
        """
        return self.once("encoded", data, lambda rows: [self._encode(row) for row in rows])

    def texts(self, data: Sequence[Mapping[str, Any]]) -> list[str]:
        """What each row's labelled tokens say."""
        if self.tokenizer is None:
            raise ValueError("The texts of rows are asked for (zlib), and there is no tokenizer: `processing_class`.")
        labels = [[i for i in row["labels"][1:] if i != IGNORE_INDEX] for row in self.encode(data)]
        return self.tokenizer.batch_decode(labels, skip_special_tokens=True)

    def row_ids(self, data):
        return self.once("ids", data, lambda rows: [digest(row["input_ids"]) for row in self.encode(rows)])

    def row_keys(self, data):
        return [digest([row["input_ids"], row["labels"]]) for row in self.encode(data)]

    def settings(self):
        return {"tokenizer": None if self.tokenizer is None else hash_tokenizer(self.tokenizer)}

    def _states(self, data):
        def means(logits: torch.Tensor, labels: torch.Tensor) -> list[np.ndarray]:
            mask = (labels[:, 1:] != IGNORE_INDEX).double()
            hidden = seen.pop()[:, :-1].double().to(mask.device)
            weights = mask / mask.sum(1, keepdim=True)
            return list((hidden * weights[..., None]).sum(1).cpu().numpy())

        options = {"batch_size": self.batch_size, "progress": self.progress, "desc": "States"}
        with inputs_of(self.model.get_output_embeddings()) as seen:
            states = np.stack(score_rows(self.model, self.encode(data), scores_of=means, **options))
        labelled = [any(i != IGNORE_INDEX for i in row["labels"][1:]) for row in self.encode(data)]
        check_sound(self.model, np.isfinite(states).all(1)[labelled].tolist())
        return states

    def _encode(self, row: Mapping[str, Any]) -> dict[str, list[int]]:
        pictures = [name for name in ("image", "images") if row.get(name) is not None]
        if pictures:
            raise ValueError(
                f"Rows have `{pictures[0]}`, and as a language model {type(self.model).__name__} reads no pictures "
                "here. Leave the column out to attack the texts alone."
            )
        if self.tokenizer is None and "input_ids" not in row:
            raise ValueError(
                f"Rows with the columns {sorted(row)} need the model's tokenizer: give `processing_class`."
            )
        if "question" in row and "answer" in row and "input_ids" not in row:
            row = self.qa.example(row["question"], row["answer"], self.tokenizer)
        return encode(row, self.tokenizer, self.max_length)

    def _compute(self, data):
        rows = score_rows(
            self.model,
            self.encode(data),
            batch_size=self.batch_size,
            progress=self.progress,
            scores_of=token_signals,
        )
        check_sound(self.model, [np.isfinite(row[0]).any() for row in rows if len(row[0])])
        return Signals.of_rows(rows, SOFTMAX_COLUMNS)
