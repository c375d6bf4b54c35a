# SPDX-License-Identifier: Apache-2.0
"""A frozen text encoder: token windows and texts to vectors."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm


logger = logging.getLogger(__name__)

POOLINGS = ("mean", "first")


class TextEncoder:
    """An encoder from transformers, as plain `AutoModel`; of an encoder-decoder such as T5 the encoder.

    Args:
        name (`str`):
            A folder or Hub id; `world/encoder` is the embedded world's.
        pooling (`str`):
            A text's vector: the `mean` of its tokens' last states, or the `first` token's, as BGE and other encoders
            with a CLS token want it; windows then carry the encoder's special tokens.
        trust_remote_code (`bool`):
            Run code that comes with its repository.

    Attributes:
        width (`int`): of its vectors.

    Raises:
        `ValueError`: if it cannot be loaded or makes no vector of a text, its tokenizer gives no offsets or has no
            pad token.
    """

    def __init__(self, name: str, pooling: str = "mean", trust_remote_code: bool = False):
        from transformers import AutoModel, AutoTokenizer

        from ...data.benchmarks import resolve_model

        path = resolve_model(name)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
            self.model = AutoModel.from_pretrained(path, dtype="float32", trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"encoder_name_or_path={name!r} cannot be loaded: {' '.join(str(error).split())} Give the folder or "
                "Hub id of a text encoder of transformers."
            ) from error
        self.pooling = pooling
        if self.model.config.is_encoder_decoder:
            self.model = self.model.get_encoder()
        self.model.eval().requires_grad_(False)
        self._check(name)
        self.width = self._try(name)

    def _check(self, name: str) -> None:
        if not self.tokenizer.is_fast:
            raise ValueError(
                f"encoder_name_or_path={name!r}: its tokenizer does not tell where in the text its tokens are. Take "
                "an encoder with a fast tokenizer."
            )
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                f"encoder_name_or_path={name!r}: its tokenizer has no pad token, so texts of different lengths make "
                "no batch. Set one (`tokenizer.pad_token`) and save it beside the encoder, or take another encoder."
            )

    def _try(self, name: str) -> int:
        try:
            vector = self.embed_texts(["a"])
            finite = vector.dim() == 2 and bool(torch.isfinite(vector).all())
        # Whatever a model that is no text encoder makes of a text.
        except Exception as error:
            raise ValueError(
                f"encoder_name_or_path={name!r} ({type(self.model).__name__}) makes no vector of a text: "
                f"{' '.join(str(error).split())} Give a text encoder of transformers."
            ) from error
        if not finite:
            raise ValueError(f"encoder_name_or_path={name!r} makes no finite vector of a text. Take another encoder.")
        return vector.shape[1]

    @property
    def longest(self) -> int | None:
        """Tokens that it has positions for, its own included; `None` where there is no limit."""
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if positions is None:
            return None
        tables = [table for name, table in self.model.named_modules() if name.endswith("position_embeddings")]
        unused = [getattr(table, "padding_idx", None) for table in tables]
        # RoBERTa's and MPNet's positions begin behind the pad token's number.
        return positions - max((pad + 1 for pad in unused if pad is not None), default=0)

    def check_window(self, size: int) -> None:
        """Raises `ValueError` for windows longer than the encoder reads."""
        longest = self.longest
        if longest is not None and size + sum(map(len, self._frame())) > longest:
            raise ValueError(f"window_tokens={size}; the encoder reads at most {longest} tokens, its own included.")

    @torch.no_grad()
    def embed_windows(self, windows: Tensor, batch_size: int = 256, progress: bool = True) -> Tensor:
        """Vectors of windows without padding.

        Args:
            windows (`Tensor`): int64 `[D, k]`.
            batch_size (`int`): windows a forward pass.
            progress (`bool`): show a bar if it takes longer than 2 seconds.

        Returns:
            `Tensor`: float32 `[D, d]` on the CPU.
        """
        before, after = (torch.tensor(ids, dtype=torch.long) for ids in self._frame())
        found = []
        bar = tqdm(windows.split(batch_size), desc="Encoding windows", unit="batch", delay=2, disable=not progress)
        for batch in bar:
            framed = torch.cat([before.expand(len(batch), -1), batch, after.expand(len(batch), -1)], 1)
            found.append(self._pooled(framed, torch.ones_like(framed)).cpu())
        return torch.cat(found)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors of texts, with the encoder's special tokens, float32 `[N, d]` on the CPU; what is longer than the
        encoder reads is cut, and told."""
        whole = self.tokenizer(list(texts), verbose=False)["input_ids"]
        # Not every tokenizer names the maximum that its model has.
        longest = None if self.longest is None else min(self.longest, self.tokenizer.model_max_length)
        # Padded on the right, for `first` reads the first.
        encoded = self.tokenizer(
            list(texts),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=longest,
            return_tensors="pt",
            verbose=False,
        )
        mask = encoded["attention_mask"]
        for text, ids, length in zip(texts, whole, mask.sum(1).tolist(), strict=True):
            if length < len(ids):
                logger.warning("Of %r..., %d tokens, the encoder reads the first %d.", text[:60], len(ids), length)
        return self._pooled(encoded["input_ids"], mask).cpu()

    def _frame(self) -> tuple[list[int], list[int]]:
        """Special tokens around a window: those of a text where its first token is read, none otherwise."""
        if self.pooling == "mean":
            return [], []
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a")["input_ids"]
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]

    def _pooled(self, ids: Tensor, mask: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        ids, mask = ids.to(device), mask.to(device)
        states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if self.pooling == "first":
            return states[:, 0]
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
