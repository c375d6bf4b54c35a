# SPDX-License-Identifier: Apache-2.0
"""The embedding-prediction head, and its files."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ...files import read_json, whole_file, write_text


HEAD_FOLDER = "align_head"
VARIANTS = ("causal", "published")


@dataclass(frozen=True)
class HeadShape:
    """Sizes of an [`AlignHead`].

    Args:
        input_size (`int`): width of the language model's states.
        output_size (`int`): width of the encoder's vectors.
        size, layers, heads (`int`): of the transformer between them; its inner layers are four times as wide.
        dropout (`float`): in training.
        variant (`str`): see [`AlignHead`].
    """

    input_size: int
    output_size: int
    size: int = 768
    layers: int = 6
    heads: int = 8
    dropout: float = 0.1
    variant: str = "causal"


class AlignHead(nn.Module):
    """Predicts, at every position, the vector of the text to come from the states up to there.

    A transformer decoder that attends to itself and to the states that it was given. In the `published` variant
    the latter attention is not masked: a prediction then sees the states of the very text that it is to predict. By
    default, `causal`, what comes later never changes a prediction. Both have the same parameters.

    Args:
        shape ([`HeadShape`]): sizes.
    """

    def __init__(self, shape: HeadShape):
        super().__init__()
        self.shape = shape
        layer = nn.TransformerDecoderLayer(
            shape.size, shape.heads, 4 * shape.size, dropout=shape.dropout, batch_first=True
        )
        self.read = nn.Linear(shape.input_size, shape.size)
        self.blocks = nn.TransformerDecoder(layer, shape.layers)
        self.write = nn.Linear(shape.size, shape.output_size)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """
        Args:
            states (`Tensor`): `[B, T, d]`, padded on the right.
            mask (`Tensor`): bool `[B, T]`, false on padding.

        Returns:
            `Tensor`: `[B, T, d_encoder]`; what stands on padding means nothing.
        """
        inputs = self.read(states.to(self.read.weight.dtype))
        width = inputs.shape[1]
        later = torch.ones(width, width, dtype=torch.bool, device=inputs.device).triu(1)
        causal = self.shape.variant == "causal"
        outputs = self.blocks(
            inputs,
            inputs,
            tgt_mask=later,
            memory_mask=later if causal else None,
            memory_key_padding_mask=None if causal else ~mask,
        )
        return self.write(outputs)


def save_head(head: AlignHead, folder: str | Path) -> Path:
    """Writes `align_head/model.safetensors` and `config.json` into a folder; returns theirs."""
    from safetensors.torch import save_file

    target = Path(folder) / HEAD_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    with whole_file(target / "model.safetensors") as part:
        save_file(tensors, part, metadata={"format": "pt"})
    write_text(target / "config.json", json.dumps(asdict(head.shape), indent=2) + "\n")
    return target


def load_head(folder: str | Path) -> AlignHead:
    """The head that [`save_head`] wrote into a folder, in evaluation mode.

    Raises:
        `ValueError`: if there is none.
    """
    from safetensors.torch import load_file

    source = Path(folder) / HEAD_FOLDER
    if not (source / "config.json").is_file():
        raise ValueError(f"{folder} holds no {HEAD_FOLDER}. Give a folder saved by AlignThenUnlearnTrainer.")
    head = AlignHead(HeadShape(**read_json(source / "config.json")))
    head.load_state_dict(load_file(source / "model.safetensors"))
    return head.eval()
