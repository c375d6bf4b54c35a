# SPDX-License-Identifier: Apache-2.0
"""What a model answers: batched generation, greedy or drawn."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from hf_unlearn.data.collator import RoleCollator

from ..models.wrappers import reads_prompt
from .as_saved import as_saved
from .batching import device_of, map_batches
from .draws import Drawing
from .model_checks import check_answered, check_language_model
from .shared_prefix import for_rows, prefix_cache, shared_length


def generate_answers(
    model: torch.nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Sequence[str] = (),
    accelerator: Any = None,
    **how: Any,
) -> list[str]:
    """The texts of [`generate_tokens`], without special tokens and surrounding white space.

    Args:
        model, tokenizer, prompts, accelerator, how: as there.
        stop (`Sequence[str]`):
            Texts before which an answer ends.

    Returns:
        `list[str]`: one answer a prompt.

    Raises:
        `ValueError`: as there.
    """
    found = generate_tokens(model, tokenizer, prompts, stop=stop, accelerator=accelerator, **how)
    eos = eos_token_ids(model if accelerator is None else accelerator.unwrap_model(model), tokenizer)
    return [_decode(ids, eos, tokenizer, stop) for ids in found]


def generate_tokens(
    model: torch.nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 200,
    stop: Sequence[str] = (),
    batch_size: int = 32,
    accelerator: Any = None,
    progress: bool = True,
    desc: str = "Generating",
    seeds: Sequence[int] | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> list[list[int]]:
    """Continuations of tokenised prompts.

    The most likely token is taken at each step (or one is drawn, with `seeds`) whatever the checkpoint's own
    generation settings are (sampling, beams, repetition penalty), so that models are compared on the same terms.
    Generation of a row ends at the EOS of the tokenizer or at one that the checkpoint names. What many prompts share
    (examples in context) goes through the model once.

    Args:
        model (`transformers.PreTrainedModel` or `peft.PeftModel`):
            Left in the mode and with the generation settings it was found with.
        tokenizer (`PreTrainedTokenizerBase`):
            Decodes the answers.
        prompts (`Sequence[Sequence[int]]`):
            Token ids; padded on the left, masks from their lengths.
        max_new_tokens (`int`):
            Longest answer in tokens; the prompt does not count.
        stop (`Sequence[str]`):
            Texts after which a row ends.
        batch_size (`int`):
            Prompts at a time (and a process).
        accelerator (`accelerate.Accelerator`, *optional*):
            Shares the prompts among its processes; each gets all answers.
        progress (`bool`), desc (`str`):
            Progress bar.
        seeds (`Sequence[int]`, *optional*):
            One a prompt: answers are drawn, each by its seed alone; see [`~hf_unlearn.audit.draws.Drawing`].
        temperature (`float`), top_p (`float`):
            What is drawn from; unused without `seeds`.

    Returns:
        `list[list[int]]`: one a prompt, up to its end-of-text token, which is the last one where there is one.

    Raises:
        `ValueError`: for a model that is no causal language model, or whose logits are not finite: what it says then
            is no answer.
    """
    check_language_model(model)
    model = model if accelerator is None else accelerator.unwrap_model(model)
    eos = eos_token_ids(model, tokenizer)
    pad = pad_token_id(tokenizer)
    config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        eos_token_id=eos or None,
        pad_token_id=pad,
    )
    collate = RoleCollator(pad_token_id=pad, padding_side="left")
    device, synced = device_of(model), _needs_sync(accelerator)
    # A wrapper may look at the whole prompt; then nothing goes ahead of it.
    shared = 0 if reads_prompt(model) else shared_length(prompts)

    def compute(batch: list[int]) -> list[tuple[list[int], bool]]:
        inputs = collate([{"input_ids": prompts[i][shared:]} for i in batch])
        given = {}
        if shared:
            start = torch.tensor([list(prompts[batch[0]][:shared])]).expand(len(batch), -1)
            inputs["input_ids"] = torch.cat([start, inputs["input_ids"]], 1)
            inputs["attention_mask"] = torch.cat([torch.ones_like(start), inputs["attention_mask"]], 1)
            given["past_key_values"] = for_rows(cache, len(batch))
        width = inputs["input_ids"].shape[1]
        if stop:
            given["stopping_criteria"] = [_Stop(tokenizer, stop, width)]
        watch = _Watch()
        drawing = []
        if seeds is not None:
            drawing.append(Drawing([seeds[i] for i in batch], temperature, top_p, tokens=len(tokenizer)))
        output = model.generate(
            input_ids=inputs["input_ids"].to(device),
            attention_mask=inputs["attention_mask"].to(device),
            generation_config=config,
            synced_gpus=synced,
            logits_processor=[watch, *drawing],
            **given,
        )
        answers = [_ended(row, eos) for row in output[:, width:].tolist()]
        return list(zip(answers, watch.sound(len(batch)), strict=True))

    with as_saved(model), torch.no_grad(), _blank_settings(model):
        cache = prefix_cache(model, prompts[0][:shared], device) if shared else None
        shared = 0 if cache is None else shared
        found = map_batches(compute, [len(prompt) for prompt in prompts], batch_size, accelerator, progress, desc)
    check_answered(model, [sound for _, sound in found])
    return [ids for ids, _ in found]


def pad_token_id(tokenizer: Any) -> int:
    """A token id to fill batches with. Masked everywhere, so any will do where the tokenizer has no PAD."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


@contextmanager
def _blank_settings(model: torch.nn.Module) -> Iterator[None]:
    """Takes the checkpoint's generation settings away for a while: `generate` merges them into those it is given."""
    holder = model.get_base_model() if hasattr(model, "get_base_model") else model
    found = holder.generation_config
    holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        holder.generation_config = found


def eos_token_ids(model: torch.nn.Module, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the tokenizer's, and those that the checkpoint names."""
    own = getattr(model.generation_config, "eos_token_id", None)
    own = own if isinstance(own, (list, tuple)) else [own]
    return sorted({i for i in (*own, tokenizer.eos_token_id) if i is not None})


def _needs_sync(accelerator: Any) -> bool | None:
    """Whether a process must go on with forwards until all have finished; `None` leaves it to transformers."""
    if accelerator is None:
        return None
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    is_fsdp = getattr(accelerator.state, "fsdp_plugin", None) is not None
    sharded = is_fsdp or (plugin is not None and plugin.zero_stage == 3)
    return accelerator.num_processes > 1 and sharded


class _Watch(LogitsProcessor):
    """Notes, without waiting for the device, which rows were answered by logits that are NaN or infinitely large."""

    def __init__(self):
        self.bad: torch.Tensor | None = None

    def __call__(self, input_ids, scores):
        # A token that is ruled out has -inf.
        bad = (scores.isnan() | (scores == torch.inf)).any(-1)
        self.bad = bad if self.bad is None else self.bad | bad
        return scores

    def sound(self, rows: int) -> list[bool]:
        return [True] * rows if self.bad is None else (~self.bad).tolist()


class _Stop(StoppingCriteria):
    """Ends a row whose answer holds one of the texts before which it is cut."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], width: int):
        self.tokenizer, self.texts, self.width = tokenizer, texts, width

    def __call__(self, input_ids, scores, **kwargs):
        answers = self.tokenizer.batch_decode(input_ids[:, self.width :], skip_special_tokens=True)
        done = [any(text in answer for text in self.texts) for answer in answers]
        return torch.tensor(done, device=input_ids.device)


def _ended(ids: list[int], eos: list[int]) -> list[int]:
    """What was generated, without what fills the batch up."""
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in eos), len(ids))]


def _decode(ids: list[int], eos: list[int], tokenizer: Any, stop: Sequence[str] = ()) -> str:
    end = next((i for i, token in enumerate(ids) if token in eos), len(ids))
    text = tokenizer.decode(ids[:end], skip_special_tokens=True)
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))].strip()
