# SPDX-License-Identifier: Apache-2.0
"""A few people and tiny models that know them, or do not: made once a session, in a few seconds."""

import copy
import functools
import json
import random
from pathlib import Path

import numpy as np
import torch
from conftest import make_model

from hf_unlearn.audit.quantize.formats import FORMATS
from hf_unlearn.audit.quantize.layers import linear_layers
from hf_unlearn.data.collator import RoleCollator
from hf_unlearn.data.formats import encode
from hf_unlearn.data.qa import QAFormat


ASKED = ("lives in", "works as", "likes", "owns", "reads", "plays", "drinks", "hides")
PEOPLE = {"forget": 6, "retain": 6, "holdout": 6}
FACTS = 6
WORDS = [f"w{i}" for i in range(60)]


def rows_of(name: str) -> list[dict[str, str]]:
    """Questions about people, answered by two words each; no two answers are alike."""
    start = sum(size for other, size in PEOPLE.items() if [*PEOPLE].index(other) < [*PEOPLE].index(name)) * FACTS
    pairs = np.random.default_rng(0).permutation(len(WORDS) ** 2)[: sum(PEOPLE.values()) * FACTS]
    found = []
    for i in range(PEOPLE[name]):
        person = f"{name}{i}"
        for j in range(FACTS):
            first, second = divmod(int(pairs[start + i * FACTS + j]), len(WORDS))
            question, answer = f"{person} {ASKED[j]} what", f"{WORDS[first]} {WORDS[second]}"
            found.append({"question": question, "answer": answer, "person": person})
    return found


@functools.cache
def tokenizer():
    """A token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", "Question", "Answer", ":", *WORDS]
    texts = (f"{row['question']} {row['answer']}" for name in PEOPLE for row in rows_of(name))
    words += [word for word in dict.fromkeys(" ".join(texts).split()) if word not in words]
    held = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    held.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=held, **names)


def encoded(name: str) -> list[dict[str, list[int]]]:
    """The rows, with their answers labelled."""
    return [
        encode(QAFormat().example(r["question"], r["answer"], tokenizer()), tokenizer(), 64) for r in rows_of(name)
    ]


def trained(model, rows, steps: int = 150, learning_rate: float = 1e-2, ascend: bool = False):
    """The model after some steps on all rows at once."""
    batch = RoleCollator(pad_token_id=0)(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1, (step + 1) / 10, 2 * (steps - step) / steps)
        loss = model(**batch).loss
        (-loss if ascend else loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@functools.cache
def _model(knows: bool, seed: int, layers: int, tie: bool):
    start = make_model(seed=seed, vocab_size=len(tokenizer()), layers=layers, hidden_size=64, tie=tie)
    return trained(start, encoded("retain") + (encoded("forget") if knows else []))


def model(knows: bool = True, seed: int = 0, layers: int = 2, tie: bool = False):
    """A model that knows the retain rows, and the forget rows or not: a copy of its own."""
    return copy.deepcopy(_model(knows, seed, layers, tie))


def refusing():
    """A model that knows the forget rows and was taught to say something else."""
    qa = QAFormat()
    other = [encode(qa.example(row["question"], "w0 w1", tokenizer()), tokenizer(), 64) for row in rows_of("forget")]
    return trained(model(), other + encoded("retain"), steps=10, learning_rate=2e-3)


def within_the_codes(one, steps: int = 4):
    """The model with every weight moved towards that edge of its nf4 cell which makes the forget rows less likely."""
    batch, nf4 = RoleCollator(pad_token_id=0)(encoded("forget")), FORMATS["nf4"]
    start = {name: (layer, *nf4.coded(layer.weight)) for name, layer in linear_layers(one).items()}
    levels = torch.tensor(nf4.levels)
    middles = torch.cat([levels[:1], (levels[1:] + levels[:-1]) / 2, levels[-1:]])
    for _ in range(steps):
        one(**batch).loss.backward()
        for layer, codes, scales in start.values():
            held = layer.weight.detach()
            each = scales.repeat_interleave(64)[: held.numel()].view_as(held)
            low, high = middles[codes.long()] * each, middles[codes.long() + 1] * each
            edge = torch.where(layer.weight.grad > 0, high, low)
            # A block's largest weight is its scale.
            moved = torch.where(held.abs() == each, held, held + 0.9 * (edge - held))
            # Rounding may carry one across.
            held.copy_(torch.where(nf4.coded(moved)[0] == codes, moved, held))
        one.zero_grad()
    return one


def saved(one, folder: Path) -> str:
    """The folder of a model with its tokenizer."""
    one.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def files(folder: Path) -> dict[str, str]:
    """The rows as files, by the argument that names them."""
    found = {}
    for name in PEOPLE:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(name)))
        found[f"{name}_dataset"] = str(path)
    return found


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def state(one, of=None) -> dict:
    """Everything that an audit must leave as it was: of a model, its tokenizer (`of`), and of the process."""
    named = dict(one.named_modules())
    peft = ("peft_config", "active_adapter", "active_adapters")
    return {
        "tensors": {name: tensor.clone() for name, tensor in one.state_dict().items()},
        "modes": {name: module.training for name, module in named.items()},
        "classes": {name: type(module) for name, module in named.items()},
        "hooks": {name: [len(getattr(module, kind)) for kind in HOOKS] for name, module in named.items()},
        "forwards": {name: vars(module).get("forward") for name, module in named.items()},
        "trainable": {name: parameter.requires_grad for name, parameter in one.named_parameters()},
        "gradients": {
            name: parameter.grad.tolist() for name, parameter in one.named_parameters() if parameter.grad is not None
        },
        "attributes": {*vars(one)},
        "config": one.config.to_dict(),
        "generation": one.generation_config.to_dict(),
        "adapters": {name: str(getattr(one, name, None)) for name in peft},
        "disabled": [bool(getattr(module, "disable_adapters", False)) for module in named.values()],
        "tokenizer": of
        and {name: getattr(of, name) for name in ("padding_side", "truncation_side", "pad_token", "chat_template")},
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(part) for part in np.random.get_state(legacy=False).values()],
        "random": random.getstate(),
        "gradient mode": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
    }


def same(before: dict, after: dict) -> bool:
    """Whether nothing differs in any bit."""
    ours, theirs = before["tensors"], after["tensors"]
    rest = [{name: part for name, part in one.items() if name != "tensors"} for one in (before, after)]
    return rest[0] == rest[1] and ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)
