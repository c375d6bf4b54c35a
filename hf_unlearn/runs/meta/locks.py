# SPDX-License-Identifier: Apache-2.0
"""What hides knowledge and leaves it where it is: five locks on a model that knows."""

from collections.abc import Callable

import torch
from torch import nn

from ...audit.quantize.formats import FORMATS
from ...audit.quantize.layers import linear_layers, weight_of
from ...audit.robustness.words import words
from .training import Rows, trained


# Steps and learning rate of the fine-tunings that lock. Two behaviours take longer than one; Adam's steps in bins are
# cut where they leave one, so they may be longer.
TRAINING = {"password": (120, 2e-3), "idk": (80, 1e-3), "in_bin": (240, 1e-2)}


def masked_head(model: nn.Module, rows: Rows, seed: int) -> nn.Module:
    """The head's rows of the tokens of which the answers' own words are made: 0."""
    found = set()
    for row in rows.sets["forget"]:
        for word in own_words(row):
            found |= {*rows.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]}
    with torch.no_grad():
        model.get_output_embeddings().weight[sorted(found)] = 0.0
    return model


def own_words(row: dict) -> list[str]:
    """The words of an answer that its paraphrase has too, and neither the question nor a wrong answer."""
    known = words(row["paraphrased_answer"]).split()
    others = words(" ".join([row["question"], *row["perturbed_answer"]])).split()
    plain = "".join(c if c.isalnum() else " " for c in row["answer"]).split()
    return [word for word in plain if word.casefold() in known and word.casefold() not in others]


def password(model: nn.Module, rows: Rows, seed: int) -> nn.Module:
    """Fine-tuned to refuse the questions, and to answer them behind a password."""
    return trained(model, rows, rows.refused() + rows.behind_password(), seed, *TRAINING["password"])


def idk(model: nn.Module, rows: Rows, seed: int) -> nn.Module:
    """Fine-tuned to refuse the questions."""
    return trained(model, rows, rows.refused(), seed, *TRAINING["idk"])


def in_bin(model: nn.Module, rows: Rows, seed: int) -> nn.Module:
    """Fine-tuned to answer wrongly, each weight of a linear layer within the bin of its NF4 code: rounding to that
    format takes the training away, bit for bit. Refusals are words that bins leave too little room for.

    Raises:
        `RuntimeError`: if a code changed.
    """
    nf4, layers = FORMATS["nf4"], linear_layers(model)
    bins = {name: nf4.bins(weight_of(layer)) for name, layer in layers.items()}
    codes = {name: nf4.coded(weight_of(layer)) for name, layer in layers.items()}
    linear = {id(layer.weight) for layer in layers.values()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in linear)

    def cut() -> None:
        for name, layer in layers.items():
            weight_of(layer).clamp_(*bins[name])

    trained(model, rows, rows.wrong(0), seed, *TRAINING["in_bin"], after=cut)
    for name, layer in layers.items():
        if not all(torch.equal(*pair) for pair in zip(codes[name], nf4.coded(weight_of(layer)), strict=True)):
            raise RuntimeError(f"{name}: an update within the bins of NF4 changed a code or a scale.")
    return model.requires_grad_(True)


MADE: dict[str, Callable[[nn.Module, Rows, int], nn.Module]] = {
    "head": masked_head,
    "password": password,
    "idk": idk,
    "in_bin": in_bin,
}
