# SPDX-License-Identifier: Apache-2.0
"""What a model does, found by trying it on a few tokens before the first step; called by all ranks."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fused.head import unwrapped
from ..losses import at_least_float32
from ..modeling import evaluating, vocabulary_size


logger = logging.getLogger(__name__)

# Tokens of a row that are tried, and of padding.
LENGTH, PADDING = 16, 3
# A relative difference of logits that half precision may make.
ROUNDED = 0.3


def try_model(trainer, row: list[int]) -> None:
    """Checks that a language model reads neither later tokens nor padding, and whether it computes in training what
    it computes in evaluation; three or four short forwards.

    Args:
        trainer ([`UnlearnTrainer`]): the run.
        row (`list[int]`): any token ids, two or more.

    Raises:
        `ValueError`: if a later token, or padding, changes an earlier prediction.
    """
    model, args = trainer.model_wrapped, trainer.args
    name = _name(model)
    limit = tolerance(trainer.accelerator, trainer.model)
    row = row[:LENGTH]
    other = [*row[:-1], row[0] if row[0] != row[-1] else (row[-1] + 1) % vocabulary_size(trainer.model)]
    ids = torch.tensor([row, other], device=args.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pad = trainer.processing_class.pad_token_id
    padded = {key: F.pad(inputs[key], (0, PADDING), value=value) for key, value in zip(inputs, (pad, 0), strict=True)}
    with evaluating(model), torch.no_grad():
        seen, seen_padded = logits_of(model, inputs), logits_of(model, padded)[:, : len(row)]
    check_left_to_right(model, seen, limit)
    error = relative_difference(seen_padded, seen)
    if limit < error <= ROUNDED and computes_in_half(trainer.accelerator, trainer.model):
        # Another shape alone rounds so much (0.02 to 0.06 in 30 layers). Other tokens as padding have the same shape.
        padded["input_ids"][:, len(row) :] = row[0] if row[0] != pad else other[-1]
        with evaluating(model), torch.no_grad():
            error = relative_difference(logits_of(model, padded)[:, : len(row)], seen_padded)
    if error > limit:
        raise ValueError(
            f"{name} reads padding: it predicts something else for a row that padding follows, although the attention "
            f"mask leaves it out (relative difference {error:.2g}), so rows of a batch would change each other. Give "
            "another model, or another `attn_implementation`."
        )
    # What was asked for is no surprise.
    if not args.disable_dropout or args.neftune_noise_alpha is not None:
        return
    with as_in_training(model, args.device), torch.no_grad():
        error = relative_difference(logits_of(model, inputs), seen)
    if error > limit:
        logger.warning(
            "%s computes other logits in training than in evaluation (relative difference %.2g), and no dropout is "
            "left that explains it. The policy is then not its reference before the first update.",
            name,
            error,
        )


def check_left_to_right(model: nn.Module, seen: Tensor, limit: float) -> None:
    """Refuses a model that reads later tokens, by its logits `[2, T, V]` of two rows that differ in their last token.

    Raises:
        `ValueError`: if what it predicts before that differs by more than `limit`.
    """
    if (error := relative_difference(seen[0, :-1], seen[1, :-1])) > limit:
        raise ValueError(
            f"{_name(model)} reads later tokens: another last token changes what it predicts before it (relative "
            f"difference {error:.2g}). Give a causal language model; BERT and its kin are one only with `is_decoder: "
            "true` in their config (`model_init_kwargs`), and only if they were trained so."
        )


def _name(model: nn.Module) -> str:
    core = unwrapped(model)
    return type(getattr(core, "get_base_model", lambda: core)()).__name__


def check_packing(trainer) -> None:
    """Compares packed with padded rows on one batch.

    Raises:
        `ValueError`: if the model's attention does not keep packed rows apart.
    """
    count = min(2, len(trainer.train_dataset))
    rows = [trainer.train_dataset[position] for position in range(count)]
    batch = trainer._prepare_inputs(trainer.data_collator(rows))
    with evaluating(trainer.model_wrapped):
        trainer.forward_path.check_packing(
            trainer.model_wrapped, trainer.parts_of(batch), computes_in_half(trainer.accelerator, trainer.model)
        )


def logits_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits `[B, T, V]`, at least float32."""
    return at_least_float32(model(**inputs, use_cache=False).logits)


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Mean distance of logits over the mean spread of a position's; NaN where one of them is."""
    spread = (wanted - wanted.mean(-1, keepdim=True)).abs().mean().clamp(min=1e-12)
    return ((found - wanted).abs().mean() / spread).item()


def tolerance(accelerator, model: nn.Module) -> float:
    """How far logits may differ that are the same but for rounding."""
    return 2e-2 if computes_in_half(accelerator, model) else 1e-4


def computes_in_half(accelerator, model: nn.Module) -> bool:
    """Whether the model computes in less than float32, by itself or, if one is given, under an accelerator."""
    mixed = accelerator is not None and accelerator.mixed_precision != "no"
    return mixed or model.dtype not in (torch.float32, torch.float64)


@contextmanager
def as_in_training(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model in training mode, without checkpoints that hide its graph; afterwards every module, and what is drawn
    next, is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    checkpointing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    model.train()
    for module in checkpointing:
        module.gradient_checkpointing = False
    try:
        with own_draws(device):
            yield
    finally:
        for module in checkpointing:
            module.gradient_checkpointing = True
        for module, mode in modes:
            module.training = mode


def own_draws(device: torch.device) -> AbstractContextManager:
    """What is drawn inside, as by dropout, changes nothing of what is drawn afterwards."""
    on_processor = device.type == "cpu"
    return torch.random.fork_rng([] if on_processor else [device], device_type="cuda" if on_processor else device.type)
