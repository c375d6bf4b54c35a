# SPDX-License-Identifier: Apache-2.0
"""What the models of a world of pictures are trained on, and what they know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...vqa.targets import target_weights
from .config import VQAWorldConfig
from .pictures import SIZE
from .processor import MAX_LENGTH, PATCH
from .splits import WorldRows


if TYPE_CHECKING:
    import torch
    from transformers import ViltForQuestionAnswering, ViltProcessor


@dataclass
class Encoded:
    """A set as tensors: `inputs` of the text, `picture` (number of each row's), `labels` `[n, K]`."""

    inputs: dict[str, torch.Tensor]
    picture: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.picture)

    def at(self, index: torch.Tensor) -> Encoded:
        """The rows at these places."""
        inputs = {name: tensor[index] for name, tensor in self.inputs.items()}
        return Encoded(inputs, self.picture[index], self.labels[index])


def initial_model(processor: ViltProcessor, labels: Sequence[str], seed: int, config: VQAWorldConfig):
    """The model before training.

    ViLT's embeddings of places start at zero. From there these models, whose training is short, hardly learn to tell
    places apart, so they are drawn at random here.

    Returns:
        `ViltForQuestionAnswering`
    """
    import torch
    from transformers import ViltConfig, ViltForQuestionAnswering

    vilt = ViltConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=4 * config.hidden_size,
        max_position_embeddings=MAX_LENGTH,
        image_size=SIZE,
        patch_size=PATCH,
        # Any other value lets the model drop patches at random, also in evaluation
        max_image_length=-1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.15,
        pad_token_id=processor.tokenizer.pad_token_id,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
    )
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = ViltForQuestionAnswering(vilt)
        embeddings = model.vilt.embeddings
        embeddings.cls_token.normal_()
        embeddings.position_embeddings.normal_()
        embeddings.patch_embeddings.projection.weight.mul_(0.5)
    return model.eval()


def encode_world(rows: WorldRows, processor: ViltProcessor) -> tuple[torch.Tensor, dict[str, Encoded]]:
    """All pictures as `pixel_values` `[pictures, 3, 32, 32]`, and the sets as tensors."""
    import io

    import torch
    from PIL import Image

    number = {image_id: i for i, image_id in enumerate(rows.pictures)}
    images = [Image.open(io.BytesIO(picture.png())) for picture in rows.pictures.values()]
    pixels = processor.image_processor(images, return_tensors="pt")["pixel_values"]
    classes = {label: i for i, label in enumerate(rows.labels)}
    sets = {}
    for name, of_set in rows.sets.items():
        labels = torch.zeros(len(of_set), len(classes))
        for i, row in enumerate(of_set):
            for answer, weight in target_weights(row["answers"]).items():
                labels[i, classes[answer]] = weight
        questions = [row["question"] for row in of_set]
        text = processor.tokenizer(questions, padding=True, return_tensors="pt")
        sets[name] = Encoded(dict(text), torch.tensor([number[row["image_id"]] for row in of_set]), labels)
    return pixels, sets


def logits_of(model: ViltForQuestionAnswering, pixels: torch.Tensor, rows: Encoded) -> torch.Tensor:
    """Logits `[n, K]`, as `model(**processor(...))` gives them, in two thirds of the time.

    ViLT embeds the pictures of a batch one by one, since they may differ in size. These do not, so they are embedded
    together and given as `image_embeds`.
    """
    import torch

    embeddings = model.vilt.embeddings
    patches = embeddings.patch_embeddings(pixels[rows.picture]).flatten(2).transpose(1, 2)
    first = embeddings.cls_token.expand(len(patches), -1, -1)
    image = torch.cat([first, patches], dim=1) + embeddings.position_embeddings
    mask = torch.ones(image.shape[:2], dtype=torch.long)
    return model(**rows.inputs, image_embeds=image, pixel_mask=mask).logits


def measure(
    model: ViltForQuestionAnswering, pixels: torch.Tensor, sets: dict[str, Encoded], seed: int
) -> dict[str, float]:
    """
    Soft accuracy: the weight that the annotators' answers give to the most likely class, mean over rows.

    Returns:
        `dict[str, float]`: by set; `test_shuffled` are the test rows with each other's pictures.
    """
    import torch

    test = sets["test"]
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    shuffled = Encoded(test.inputs, test.picture[order], test.labels)
    return {
        name: round(_accuracy(model, pixels, rows), 4) for name, rows in {**sets, "test_shuffled": shuffled}.items()
    }


def joined(parts: list[Encoded]) -> Encoded:
    """The rows of some sets as one."""
    import torch

    # Questions of the longest set decide its width; `0` is the padding of all three tensors
    width = max(part.inputs["input_ids"].shape[1] for part in parts)
    inputs = {
        name: torch.cat(
            [torch.nn.functional.pad(part.inputs[name], (0, width - part.inputs[name].shape[1])) for part in parts]
        )
        for name in parts[0].inputs
    }
    return Encoded(inputs, torch.cat([p.picture for p in parts]), torch.cat([p.labels for p in parts]))


def losses(
    model: ViltForQuestionAnswering, pixels: torch.Tensor, rows: Encoded, seed: int, config: VQAWorldConfig
) -> Iterator[torch.Tensor]:
    """Endless epochs over rows, each in a new order: the losses of its batches."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < config.batch_size:
            queue = torch.cat([queue, torch.randperm(len(rows), generator=generator)])
        batch, queue = rows.at(queue[: config.batch_size]), queue[config.batch_size :]
        # ViLT's own loss: the mean over classes times their number, here as the sum over classes
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits_of(model, pixels, batch), batch.labels, reduction="sum"
        )
        yield loss / len(batch)


def _accuracy(model, pixels, rows: Encoded) -> float:
    import torch

    right = []
    with torch.no_grad():
        for part in torch.arange(len(rows)).split(256):
            batch = rows.at(part)
            best = logits_of(model, pixels, batch).argmax(-1, keepdim=True)
            right.append(batch.labels.gather(1, best))
    return torch.cat(right).mean().item()
