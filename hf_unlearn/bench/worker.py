# SPDX-License-Identifier: Apache-2.0
"""Measures one case in this process: `python -m hf_unlearn.bench.worker REQUEST RESULT`, two JSON files.

Before the model is made, the same case is trained for a moment with a tiny one, so that neither time nor memory of
loading libraries counts.
"""

import copy
import gc
import json
import statistics
import string
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from ..data.collator import RoleCollator
from ..data.formats import IGNORE_INDEX
from ..files import write_json
from ..machine import machine
from ..methods import METHODS
from .cases import PARTIAL, SFT, Case
from .flops import model_flops, peak_flops
from .memory import PeakMemory
from .observe import ForwardCounter, StepClock
from .sizes import Size


# Different batches before rows come again: enough for a lookup to be one.
BATCHES = 4


def main(request: str, result: str) -> None:
    """Reads a request of [`~hf_unlearn.bench.session`], writes what was measured."""
    asked = json.loads(Path(request).read_text())
    if asked["threads"] is not None:
        torch.set_num_threads(asked["threads"])
    case, size = Case(**asked["case"]), Size(**asked["size"])
    case = replace(case, roles=tuple(case.roles), beside=tuple(case.beside), others=tuple(case.others))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = replace(
        size, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        vocab_size=64, row_length=8,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        measure(case, tiny, device, steps=1, warmup=1, folder=folder, cache=f"{folder}/cache")
        measured = measure(case, size, device, asked["steps"], asked["warmup"], folder, asked["cache"])
        if asked["beside"] and case.method is not None:
            # Of many cases, a process for fine-tuning alone may be an hour away, on a machine that is busier by then.
            base = measure(SFT[case.roles], size, device, asked["steps"], asked["warmup"], folder, asked["cache"])
            measured["beside"] = {name: base[name] for name in ("step_seconds", "cpu_seconds")}
    write_json(Path(result), measured | {"machine": machine(device)})


def measure(case: Case, size: Size, device: torch.device, steps: int, warmup: int, folder: str, cache: str) -> dict:
    """Trains `warmup + steps` steps.

    Returns:
        `dict`: seconds are medians over the steps, memory is in bytes; `loaded` is what was in use with the model in
        place, `peak` the most from then to the end of training, a second model and a reference pass included.
    """
    model = random_model(size, device)
    rows = random_rows((*case.roles, *case.beside), size, case.prompt)
    others = {name: save_other(model, f"{folder}/{name}", seed) for seed, name in enumerate(case.others)}
    memory = PeakMemory(device)
    counter = ForwardCounter()
    with counter.watching(type(model.base_model)):
        clock = StepClock(device, warmup, counter)
        trainer = make_trainer(case, size, model, rows, steps + warmup, folder, cache, others)
        trainer.add_callback(clock)
        trainer.train()
    peak = memory.peak()
    tokens = size.rows * len(case.roles) * size.row_length
    seconds = statistics.median(clock.seconds)
    flops = None if case.method in PARTIAL else model_flops(model, size.rows * len(case.roles), size.row_length)
    peak_rate = peak_flops(torch.cuda.get_device_name(device) if device.type == "cuda" else "", size.dtype)
    del trainer
    gc.collect()
    return {
        "step_seconds": seconds,
        "cpu_seconds": statistics.median(clock.cpu_seconds),
        "all_step_seconds": clock.seconds,
        "preparation_seconds": clock.preparation,
        "preparation_tokens": [clock.before["tokens"]],
        "policy_forwards": clock.counts["policy"] / steps,
        "reference_forwards": clock.counts["reference"] / steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "model_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "loaded_bytes": memory.before,
        "peak_bytes": peak,
        "above_model_bytes": peak - memory.before,
        "tokens_per_second": tokens / seconds,
        "flops_per_second": None if flops is None else flops / seconds,
        "utilisation": None if flops is None or peak_rate is None else flops / seconds / peak_rate,
    }


def random_model(size: Size, device: torch.device) -> nn.Module:
    """The same weights in every process of a session."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **size.model_config(), bos_token_id=1, eos_token_id=2, pad_token_id=0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, size.dtype))


def save_other(model: nn.Module, path: str, seed: int) -> str:
    """Saves a model that is like the given one, and predicts something else."""
    other, generator = copy.deepcopy(model), torch.Generator(model.device).manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            noise = torch.randn(weight.shape, generator=generator, device=weight.device, dtype=weight.dtype)
            weight.add_(0.01 * noise)
    other.save_pretrained(path)
    return path


def random_rows(roles: tuple[str, ...], size: Size, prompt: int = 0) -> dict[str, list[dict]]:
    """Full rows, trained on at every token from `prompt` on."""
    generator = torch.Generator().manual_seed(1)
    count = BATCHES * size.rows
    drawn = torch.randint(3, size.vocab_size, (len(roles), count, size.row_length), generator=generator).tolist()
    return {
        role: [{"input_ids": row, "labels": [IGNORE_INDEX] * len(row[:prompt]) + row[prompt:]} for row in found]
        for role, found in zip(roles, drawn, strict=True)
    }


def make_trainer(
    case: Case, size: Size, model, rows: dict, max_steps: int, folder: str, cache: str, others: dict | None = None
) -> Trainer:
    """The method's trainer, or [`~transformers.Trainer`] with the model's own loss on the rows of all roles."""
    settings = {
        "output_dir": folder,
        "max_steps": max_steps,
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "optim": size.optim,
        "optim_args": size.optim_args,
        "bf16": size.dtype == "bfloat16",
        "activation_checkpointing": size.activation_checkpointing,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }
    if case.method is None:
        flat = [row for position in zip(*rows.values(), strict=True) for row in position]
        args = TrainingArguments(**settings, per_device_train_batch_size=size.rows * len(rows))
        return Trainer(model=model, args=args, train_dataset=flat, data_collator=RoleCollator(pad_token_id=0))
    config_class, trainer_class = METHODS[case.method]
    args = config_class(
        **settings,
        **case.settings_for(size.num_hidden_layers),
        per_device_train_batch_size=size.rows,
        per_device_eval_batch_size=size.rows * len(case.roles),
        max_length=None,
        reference_cache_dir=cache,
    )
    return trainer_class(
        model=model,
        args=args,
        forget_dataset=rows["forget"],
        retain_dataset=rows.get("retain"),
        alternate_dataset=rows.get("alternate"),
        processing_class=tiny_tokenizer(model.config.vocab_size),
        ref_model=copy.deepcopy(model) if case.second_model else None,
        ref_models=others,
    )


def tiny_tokenizer(tokens: int):
    """Rows are token ids already; its number of tokens is asked for, its special ones, and some that read as text, a
    character each."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    names = ["<pad>", "<s>", "</s>", *string.digits, *string.ascii_letters][:tokens]
    names += [f"<{number}>" for number in range(len(names), tokens)]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


if __name__ == "__main__":
    main(*sys.argv[1:])
