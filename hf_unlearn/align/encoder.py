# SPDX-License-Identifier: Apache-2.0
"""A frozen text encoder: token windows and texts to vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm


POOLINGS = ("mean", "first")


class TextEncoder:
    """An encoder from transformers, as plain `AutoModel`.

    Args:
        name (`str`):
            A folder or Hub id; `world/encoder` is the embedded world's.
        pooling (`str`):
            A text's vector: the `mean` of its tokens' last states, or the `first` token's, as BGE and other encoders
            with a CLS token want it; windows then carry the encoder's special tokens.
        trust_remote_code (`bool`):
            Run code that comes with its repository.

    Raises:
        `ValueError`: if it cannot be loaded, its tokenizer gives no offsets or has no pad token.
    """

    def __init__(self, name: str, pooling: str = "mean", trust_remote_code: bool = False):
        from transformers import AutoModel, AutoTokenizer

        from ..data.benchmarks import resolve_model

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
        self.model.eval().requires_grad_(False)
        self._check(name)

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

    def check_window(self, size: int) -> None:
        """Raises `ValueError` for windows longer than the encoder reads."""
        longest = getattr(self.model.config, "max_position_embeddings", None)
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
        """Vectors of texts, with the encoder's special tokens, float32 `[N, d]` on the CPU."""
        encoded = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self._pooled(encoded["input_ids"], encoded["attention_mask"]).cpu()

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
