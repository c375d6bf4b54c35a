# SPDX-License-Identifier: Apache-2.0
"""A tiny ViLT, its processor, and rows with pictures."""

import functools

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, ViltConfig, ViltForQuestionAnswering, ViltProcessor
from transformers.models.vilt.image_processing_pil_vilt import ViltImageProcessorPil


CLASSES = ["red", "green", "blue", "one", "two"]
WORDS = ["what", "colour", "is", "it", "how", "many", "?"]


@functools.cache
def make_processor() -> ViltProcessor:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", ends)
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, **special)
    return ViltProcessor(ViltImageProcessorPil(size={"shortest_edge": 16}, size_divisor=8), fast)


def make_vilt(seed: int = 0, dropout: float = 0.0, classes=CLASSES, **config) -> ViltForQuestionAnswering:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(make_processor().tokenizer),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 12,
        "image_size": 16,
        "patch_size": 8,
        "max_image_length": -1,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        # Far enough from 0 for predictions that differ.
        "initializer_range": 0.3,
        "id2label": dict(enumerate(classes)),
        "label2id": {name: i for i, name in enumerate(classes)},
    }
    return ViltForQuestionAnswering(ViltConfig(**settings | config))


def picture(number: int, size=(16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8))


def make_rows(count: int, first: int = 0) -> list[dict]:
    """Questions about pictures; the annotators agree more or less."""
    rows = []
    for number in range(first, first + count):
        question, pool = ("What colour is it?", CLASSES[:3]) if number % 2 else ("How many?", CLASSES[3:])
        most, other = pool[number % len(pool)], pool[(number + 1) % len(pool)]
        answers = [most] * (10 - number % 4) + [other] * (number % 4)
        image = picture(number)
        rows.append(
            {"example_id": f"q{number}", "image": image, "question": question, "answers": answers, "answer": most}
        )
    return rows
