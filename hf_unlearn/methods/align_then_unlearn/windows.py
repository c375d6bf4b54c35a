# SPDX-License-Identifier: Apache-2.0
"""Which tokens of a text encoder follow each token of a language model, by the characters that both stand for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...data.token_ends import text_and_ends


NONE = -1


@dataclass
class Windows:
    """The next tokens at every position of every row, each distinct window once.

    Args:
        distinct (`np.ndarray`):
            int64 `[D, k]`, encoder tokens.
        numbers (`dict[str, list[np.ndarray]]`):
            Role to, for each row, int64 `[T]`: which window follows each token, or `NONE` where less than k encoder
            tokens are left.
        texts (`dict[str, list[str]]`):
            Role to the rows' texts, without special tokens.
    """

    distinct: np.ndarray
    numbers: dict[str, list[np.ndarray]]
    texts: dict[str, list[str]] = field(repr=False)

    def of_rows(self, role: str, indices: Sequence[int]) -> np.ndarray:
        """The windows of rows' tokens, one row after the other."""
        return np.concatenate([self.numbers[role][i] for i in indices])


def find_windows(roles: Mapping, tokenizer, encoder_tokenizer, size: int) -> Windows:
    """Aligns encoded rows with a text encoder's tokens.

    The window of a token begins with the first encoder token that ends after it, so it lies in what the model has not
    read yet, or reaches into it.

    Args:
        roles (`Mapping[str, datasets.Dataset]`):
            Role to encoded rows.
        tokenizer, encoder_tokenizer (`PreTrainedTokenizerBase`):
            The model's and the encoder's; the latter must give offsets.
        size (`int`):
            Encoder tokens of a window, k.

    Raises:
        `ValueError`: if no forget row is long enough for a window.
    """
    texts: dict[str, list[str]] = {}
    found = []
    longest = dict.fromkeys(roles, 0)
    for role, rows in roles.items():
        texts[role] = []
        for ids in rows["input_ids"]:
            text, ends = text_and_ends(tokenizer, ids)
            texts[role].append(text)
            encoded = encoder_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            longest[role] = max(longest[role], len(encoded["input_ids"]))
            found.append(_of_row(ends, encoded["input_ids"], encoded["offset_mapping"], size))
    distinct, number_of = np.unique(np.concatenate([windows for windows, _ in found]), axis=0, return_inverse=True)
    numbers = _by_role(found, number_of.reshape(-1), texts)
    if all((row == NONE).all() for row in numbers["forget"]):
        raise ValueError(
            f"window_tokens={size}: no forget row has a token that so many encoder tokens follow; the longest of "
            f"them has {longest['forget']}. Give a smaller one, or longer rows."
        )
    return Windows(distinct, numbers, texts)


def window_starts(token_ends: np.ndarray, encoder_ends: np.ndarray) -> np.ndarray:
    """For each token the first encoder token that ends after it, int64 `[T]`; the number of encoder tokens where none
    does."""
    return np.searchsorted(encoder_ends, token_ends, side="right")


def _of_row(ends: np.ndarray, encoder_ids: Sequence[int], offsets, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A row's distinct windows `[n, k]`, and for each token its place among them or `NONE`."""
    starts = window_starts(ends, np.array([end for _, end in offsets], dtype=np.int64))
    full = starts + size <= len(encoder_ids)
    places = np.full(len(ends), NONE, dtype=np.int64)
    if not full.any():
        return np.empty((0, size), dtype=np.int64), places
    begins, places[full] = np.unique(starts[full], return_inverse=True)
    every = np.lib.stride_tricks.sliding_window_view(np.asarray(encoder_ids, dtype=np.int64), size)
    return every[begins], places


def _by_role(found, number_of: np.ndarray, texts: Mapping[str, list[str]]) -> dict[str, list[np.ndarray]]:
    """From places among a row's own windows to numbers of distinct ones."""
    rows, begin = [], 0
    for windows, places in found:
        own = np.append(number_of[begin : begin + len(windows)], NONE)
        # Place -1 is the last of `own`.
        rows.append(own[places])
        begin += len(windows)
    numbers, begin = {}, 0
    for role, its_texts in texts.items():
        numbers[role] = rows[begin : begin + len(its_texts)]
        begin += len(its_texts)
    return numbers
