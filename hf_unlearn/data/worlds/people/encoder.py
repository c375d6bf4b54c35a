# SPDX-License-Identifier: Apache-2.0
"""A text encoder for the embedded world: texts are near each other as far as they share words."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders import cached_folder


if TYPE_CHECKING:
    from .world import World

# Raise it when the encoder changes.
VERSION = 1
SIZE = 64
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


def world_encoder(world: World) -> Path:
    """
    Make the encoder of a world, or find it; a second without training.

    It is a BERT without layers over random word vectors, so a text's mean vector is a bag of its words. Like a real
    sentence encoder it was never told who is who, but knows names when it reads them.

    Args:
        world (`World`):
            Whose words it knows.

    Returns:
        `Path`: a folder for `AutoModel` and `AutoTokenizer`.
    """
    from .world import SETS

    rows = [row for name in SETS for row in world.dataset(name)]
    columns = ("question", "answer", "paraphrased_question", "paraphrased_answer", "text")
    texts = [row[column] for row in rows for column in columns if column in row]
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    key = hashlib.sha256(json.dumps([VERSION, SIZE, words]).encode()).hexdigest()[:16]
    path = world.path.parent / f"encoder-{key}"
    cached_folder(path, lambda folder: _build(folder, words))
    return path


def _build(folder: Path, words: list[str]) -> dict:
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=SIZE,
        num_hidden_layers=0,
        num_attention_heads=1,
        intermediate_size=SIZE,
        max_position_embeddings=512,
    )
    model = BertModel(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.embeddings.parameters():
            # Positions and types; the norm's weights stay 1.
            if parameter.dim() == 2:
                parameter.zero_()
        drawn = torch.randn(len(vocabulary), SIZE, generator=generator)
        # Special tokens say nothing of a text.
        drawn[: len(SPECIAL)] = 0
        model.embeddings.word_embeddings.weight.copy_(drawn)
    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    fast.save_pretrained(folder)
    return {"words": len(words)}
