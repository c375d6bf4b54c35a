# SPDX-License-Identifier: Apache-2.0
"""A small processor in the form of ViLT's: WordPiece for questions, pixels for pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .pictures import SIZE


if TYPE_CHECKING:
    from transformers import ViltProcessor

PATCH = SIZE // 2
MAX_LENGTH = 40


def build_processor(questions: Iterable[str]) -> ViltProcessor:
    """
    Build the processor.

    Args:
        questions (`Iterable[str]`):
            Their words become tokens; any other word of ASCII letters and digits falls into its characters.

    Returns:
        `ViltProcessor`: `processor(images=[...], text=[...], padding=True, return_tensors="pt")` gives `input_ids`,
        `token_type_ids`, `attention_mask`, `pixel_values` of 3x32x32 and `pixel_mask`.
    """
    # The form without torchvision by name: it is what runs without it, and the numbers are then the same everywhere
    from transformers import BertTokenizerFast, ViltImageProcessorPil, ViltProcessor

    characters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = {word for question in questions for word in question.replace("?", " ?").split()}
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    vocab = dict.fromkeys([*pieces, *sorted(words)])
    tokenizer = BertTokenizerFast(
        vocab={piece: number for number, piece in enumerate(vocab)}, model_max_length=MAX_LENGTH
    )
    image_processor = ViltImageProcessorPil(size={"shortest_edge": SIZE}, size_divisor=PATCH)
    return ViltProcessor(image_processor, tokenizer)
