# SPDX-License-Identifier: Apache-2.0
"""MU-ALIGN in one call, with the Trainer inside."""

import tempfile
from pathlib import Path

from torch import nn

from .trainer import MUAlignConfig, MUAlignTrainer


class MUAlign:
    """Short form of [`MUAlignTrainer`].

    ```python
    from hf_unlearn import MUAlign

    model = MUAlign("owner/model", alpha=1.0, beta=0.5).unlearn(forget, retain, epochs=5)
    ```

    Args:
        model (`str`, [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to unlearn from; a loaded model is changed in place.
        alpha, beta, temperature, top_k:
            See [`MUAlignConfig`].
        processing_class (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer; loaded with the model if left out.
        settings:
            Any other field of [`MUAlignConfig`].
    """

    def __init__(
        self,
        model: str | nn.Module,
        alpha: float | None = None,
        beta: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        processing_class=None,
        **settings,
    ):
        self.model, self.processing_class = model, processing_class
        self.settings = {"alpha": alpha, "beta": beta, "temperature": temperature, "top_k": top_k} | settings
        self.trainer: MUAlignTrainer | None = None
        # What is wrong with a setting is told now.
        MUAlignConfig(**{"output_dir": "unused", "report_to": "none"} | self.settings)

    def unlearn(self, forget, retain, epochs: float | None = None) -> nn.Module:
        """Trains and returns the model; the trainer, with its log, is then in `trainer`.

        Args:
            forget, retain (`datasets.Dataset`, `list[dict]` or `torch.utils.data.DataLoader`):
                Rows of any type that [`~hf_unlearn.UnlearnTrainer`] takes. Of a loader, which must go through all of
                a dataset or a subset, its rows are taken, and the forget loader's batch size; they are shuffled and
                padded here, without its `collate_fn`.
            epochs (`float`, *optional*):
                Passes over the forget rows, the preset's if left out.
        """
        settings = {"save_strategy": "no", "report_to": "none"} | self.settings
        if epochs is not None:
            settings["num_train_epochs"] = epochs
        if (batch_size := getattr(forget, "batch_size", None)) is not None:
            settings.setdefault("per_device_train_batch_size", batch_size)
        with tempfile.TemporaryDirectory() as folder:
            self.trainer = MUAlignTrainer(
                model=self.model,
                args=MUAlignConfig(**{"output_dir": str(Path(folder) / "run")} | settings),
                forget_dataset=_rows(forget),
                retain_dataset=_rows(retain),
                processing_class=self.processing_class,
            )
            self.trainer.train()
        self.model = self.trainer.model
        return self.model


def _rows(data):
    """The rows behind a loader: those that every pass of its sampler gives once.

    Raises:
        `ValueError`: if the loader draws them in a way that does not say which they are.
    """
    from torch.utils.data import (
        BatchSampler,
        DataLoader,
        IterableDataset,
        RandomSampler,
        SequentialSampler,
        Subset,
        SubsetRandomSampler,
    )

    if not isinstance(data, DataLoader):
        return data
    if isinstance(data.dataset, IterableDataset):
        raise ValueError(
            "The loader's dataset is an IterableDataset, but pairing rows needs random access. Give its rows as a "
            "`datasets.Dataset` or a list of dicts."
        )
    sampler, batches = data.sampler, data.batch_sampler
    if batches is None or type(batches) is BatchSampler:
        if isinstance(sampler, SubsetRandomSampler):
            return Subset(data.dataset, sorted(sampler.indices))
        goes_through = isinstance(sampler, (RandomSampler, SequentialSampler)) and len(sampler) == len(data.dataset)
        if goes_through and not getattr(sampler, "replacement", False):
            return data.dataset
    drawing = sampler if type(batches) is BatchSampler else batches
    raise ValueError(
        f"The loader draws its rows with a {type(drawing).__name__} that need not go through each of them once, and "
        "batches are made here. Give the rows themselves, or a loader that goes through all of a dataset or a subset."
    )
