# SPDX-License-Identifier: Apache-2.0
"""Rows to evaluate: raw ones are encoded as the constructor encodes them, and none of them is left out."""

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import datasets
from transformers import Trainer


class EvaluationRows(Trainer):
    """A trainer whose `evaluate` and `predict` take what its constructor takes as `eval_dataset`."""

    def evaluate(self, eval_dataset=None, *args, **kwargs) -> dict[str, float]:
        """As [`~transformers.Trainer.evaluate`]; `eval_dataset` may be raw rows of any TRL type, or a dict of such."""
        if not isinstance(eval_dataset, str):
            eval_dataset = self.encode_eval(eval_dataset, self.processing_class, self.args.max_length)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def predict(self, test_dataset, *args, **kwargs):
        """As [`~transformers.Trainer.predict`]; `test_dataset` may hold raw rows of any TRL type."""
        return super().predict(self._encoded(test_dataset, "test"), *args, **kwargs)

    def get_eval_dataloader(self, eval_dataset=None):
        with self._keeping_last():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        with self._keeping_last():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _keeping_last(self) -> Iterator[None]:
        # Trainer drops the last rows of an evaluation too.
        before, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = before

    def encode_eval(self, eval_dataset, processor, max_length: int | None):
        """`eval_dataset` encoded, whether it is one set, several by name, or none."""
        if eval_dataset is None:
            return None
        if isinstance(eval_dataset, dict):
            return {
                name: self._encoded(rows, f"eval_{name}", processor, max_length) for name, rows in eval_dataset.items()
            }
        return self._encoded(eval_dataset, "eval", processor, max_length)

    def _encoded(self, rows, name: str, processor=None, max_length: int | None = None):
        known = self.__dict__.setdefault("_encoded_sets", WeakSet())
        if isinstance(rows, datasets.Dataset) and rows in known:
            # Trainer hands sets on one by one.
            return rows
        if processor is None:
            processor, max_length = self.processing_class, self.args.max_length
        encoded = self.family.encode(rows, processor, max_length, name)
        known.add(encoded)
        return encoded
