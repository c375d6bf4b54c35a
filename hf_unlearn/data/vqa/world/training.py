# SPDX-License-Identifier: Apache-2.0
"""Training of the models of a world of pictures, and the proof that they know what they should."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..targets import target_weights
from .config import VQAWorldConfig
from .pictures import SIZE
from .processor import MAX_LENGTH, PATCH
from .rows import WorldRows


if TYPE_CHECKING:
    import torch
    from transformers import ViltForQuestionAnswering, ViltProcessor

# Which sets a model is trained on.
KINDS = {"target": ("forget", "retain"), "retrained": ("retain",)}


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


def train_models(
    start: ViltForQuestionAnswering,
    pixels: torch.Tensor,
    sets: dict[str, Encoded],
    seed: int,
    config: VQAWorldConfig,
    advance: Callable[[str], None],
) -> tuple[dict[str, ViltForQuestionAnswering], dict[str, float]]:
    """
    Train the target and the retrained model from the same start and for the same number of steps.

    Args:
        start (`ViltForQuestionAnswering`):
            Left as it is.
        pixels (`torch.Tensor`), sets (`dict[str, Encoded]`), seed (`int`), config (`VQAWorldConfig`):
            The world.
        advance (`Callable`):
            Called with the model's name after each step.

    Returns:
        `tuple[dict, dict]`: `target` and `retrained`; the wall seconds each took.
    """
    models, seconds = {}, {}
    for kind, names in KINDS.items():
        begin = time.monotonic()
        models[kind] = copy.deepcopy(start)
        rows = _joined([sets[name] for name in names])
        _train(models[kind], pixels, rows, seed, config, lambda kind=kind: advance(kind))
        seconds[kind] = round(time.monotonic() - begin, 1)
    return models, seconds


def measure(
    models: dict[str, ViltForQuestionAnswering], pixels: torch.Tensor, sets: dict[str, Encoded], seed: int
) -> dict[str, dict[str, float]]:
    """
    Soft accuracy: the weight that the annotators' answers give to the most likely class, mean over rows.

    Returns:
        `dict[str, dict[str, float]]`: by model, then by set; `test_shuffled` are the test rows with each other's
        pictures.
    """
    import torch

    test = sets["test"]
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(seed))
    shuffled = Encoded(test.inputs, test.picture[order], test.labels)
    measured = {**sets, "test_shuffled": shuffled}
    return {
        kind: {name: round(_accuracy(model, pixels, rows), 4) for name, rows in measured.items()}
        for kind, model in models.items()
    }


def check(accuracy: dict[str, dict[str, float]], config: VQAWorldConfig) -> None:
    """Raise `RuntimeError` if the models do not know what they should, or know what they should not."""
    bounds = [(kind, name, config.min_known, 1.0) for kind, names in KINDS.items() for name in names]
    bounds += [(kind, "test", config.min_seen, 1.0) for kind in KINDS]
    bounds += [(kind, "test_shuffled", 0.0, config.max_shuffled) for kind in KINDS]
    bounds += [("retrained", "forget", 0.0, config.max_unseen)]
    problems = [
        f"accuracy of the {kind} model on {name} is {accuracy[kind][name]:.1%} (allowed: {low:.1%} to {high:.1%})"
        for kind, name, low, high in bounds
        if not low <= accuracy[kind][name] <= high
    ]
    if problems:
        raise RuntimeError(
            f"The world of pictures is unusable and was not cached: {'; '.join(problems)}. "
            "Try another seed or a VQAWorldConfig with more steps."
        )


@contextmanager
def one_thread():
    """Same sums in the same order everywhere; and on a busy machine two threads are several times slower than one."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _joined(parts: list[Encoded]) -> Encoded:
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


def _train(model, pixels, rows: Encoded, seed: int, config: VQAWorldConfig, advance: Callable[[], None]) -> None:
    import torch
    from transformers import get_cosine_schedule_with_warmup

    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01, fused=True)
    scheduler = get_cosine_schedule_with_warmup(optimizer, config.steps // 10, config.steps)
    queue = torch.empty(0, dtype=torch.long)
    model.train()
    for _ in range(config.steps):
        while len(queue) < config.batch_size:
            queue = torch.cat([queue, torch.randperm(len(rows), generator=generator)])
        batch, queue = rows.at(queue[: config.batch_size]), queue[config.batch_size :]
        # ViLT's own loss: the mean over classes times their number, here as the sum over classes
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            logits_of(model, pixels, batch), batch.labels, reduction="sum"
        )
        (loss / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        advance()
    model.eval()


def _accuracy(model, pixels, rows: Encoded) -> float:
    import torch

    right = []
    with torch.no_grad():
        for part in torch.arange(len(rows)).split(256):
            batch = rows.at(part)
            best = logits_of(model, pixels, batch).argmax(-1, keepdim=True)
            right.append(batch.labels.gather(1, best))
    return torch.cat(right).mean().item()
