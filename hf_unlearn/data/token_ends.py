# SPDX-License-Identifier: Apache-2.0
"""The text of encoded rows, and where in it each of their tokens ends."""

from collections.abc import Sequence

import numpy as np


def text_and_ends(tokenizer, ids: Sequence[int]) -> tuple[str, np.ndarray]:
    """The text of a row without its special tokens, and where in it each token ends, in characters, int64 `[T]`;
    special tokens end where the token before them does."""
    special = special_ids(tokenizer)
    plain = np.array([i not in special for i in ids], dtype=bool)
    kept = [i for i in ids if i not in special]
    text = _decode(tokenizer, kept)
    ends = np.zeros(len(ids), dtype=np.int64)
    ends[plain] = _ends(tokenizer, kept, text)
    return text, np.maximum.accumulate(ends)


def special_ids(tokenizer) -> set[int]:
    """Tokens that stand for no text."""
    return {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {*tokenizer.all_special_ids}


def _ends(tokenizer, kept: list[int], text: str) -> np.ndarray:
    if tokenizer.is_fast:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        if list(encoded["input_ids"]) == kept:
            ends = np.array([end for _, end in encoded["offset_mapping"]], dtype=np.int64)
            # Of a lone "▁" in front of the text, offsets say that it is the first character.
            if kept and not _decode(tokenizer, kept[:1]):
                ends[0] = 0
            return ends
    # Rows cut amid a word, or tokens that merge over a turn's end, are not what the tokenizer makes of their text.
    lengths = [len(_decode(tokenizer, kept[: t + 1])) for t in range(len(kept))]
    # Bytes of an unfinished character may count as one each, until it is whole.
    lengths = np.minimum.accumulate(np.array(lengths, dtype=np.int64)[::-1])[::-1]
    return np.minimum(lengths, len(text))


def _decode(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)
