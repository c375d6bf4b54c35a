# SPDX-License-Identifier: Apache-2.0
"""The embedded world as RWKU: its fixture, and its two models after they learned to be asked as RWKU asks."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

from ...formats import IGNORE_INDEX, encode
from ...qa import QAFormat
from ...rwku.prompts import encode_turn, probe_turn
from ..base import KINDS
from ..folders import cached_folder
from ..people import WorldConfig, build_world
from ..people.questions import ATTRIBUTES
from .fixture import BLANK, biography, value_of, write_fixture


# Raise it when the files, the models or their training change.
VERSION = 1
TUNING = WorldConfig(steps=400, learning_rate=2e-3)
CHAT = QAFormat(use_chat_template=True)
ASKED = {attribute.name: attribute.asked for attribute in ATTRIBUTES}


def rwku_world(seed: int = 0, progress: bool = True) -> Path:
    """A folder with RWKU's files in `All` and the models `target` and `retrained`, built on first use and kept.

    The world's models answer bare questions, and RWKU's prompts are strange to them. These have also learned to fill
    blanks, to answer briefly after `Answer:`, and to write a person's biography, of the people that they know: all
    of them, or all but the forget people. No attack was among it.

    Args:
        seed (`int`):
            Of the world.
        progress (`bool`):
            Whether to show a progress bar while building.

    Returns:
        `Path`: the folder.
    """
    world = build_world(seed, progress=progress)
    key = hashlib.sha256(json.dumps([VERSION, vars(TUNING), world.path.name]).encode()).hexdigest()[:16]
    path = world.path.parent / f"rwku-{key}"
    cached_folder(path, lambda folder: _build(folder, world, seed, progress))
    return path


def _build(folder: Path, world: Any, seed: int, progress: bool) -> dict:
    from tqdm.auto import tqdm
    from transformers import AutoModelForCausalLM

    from ..people.training import losses
    from ..training import one_thread, train_steps

    forget = write_fixture(folder / "All", seed)
    general = [[encode(row, world.tokenizer)] for row in world.dataset("general")]
    with tqdm(total=len(KINDS) * TUNING.steps, unit="step", disable=not progress) as bar, one_thread():
        for kind, sets in KINDS.items():
            bar.set_description(f"Teaching RWKU's prompts: {kind} model")
            people = [world.dataset(name).to_list() for name in sets]
            rows = [row for facts in people for row in _lessons(facts, world.tokenizer)] + general
            model = AutoModelForCausalLM.from_pretrained(getattr(world, kind))
            lessons = losses(model, rows, world.tokenizer.pad_token_id, seed, TUNING)
            train_steps(model, lessons.__next__, TUNING, bar.update)
            model.save_pretrained(folder / kind)
            world.tokenizer.save_pretrained(folder / kind)
    return {"forget": forget, "world": world.path.name}


def _lessons(facts: list[dict], tokenizer: Any) -> list[list[dict]]:
    """What is trained of some people: for each fact its forms, of which one is drawn a time, and biographies."""
    rng, people = random.Random(0), {}
    for fact in facts:
        people.setdefault(fact["person"], []).append(fact)
    rows = [_forms(fact, tokenizer) for fact in facts]
    for known in people.values():
        rows += [[encode({"text": biography(known, rng)}, tokenizer) for _ in range(16)] for _ in range(2)]
    return rows


def _forms(fact: dict, tokenizer: Any) -> list[dict]:
    value = value_of(fact)
    asked = [form.format(n=fact["person"]) for form in ASKED[fact["attribute"]]]
    blank = fact["answer"].replace(f" {value}", f" {BLANK}")
    brief = [_answered("forget_qa", question, value, tokenizer) for question in asked]
    whole = [encode(CHAT.example(question, fact["answer"], tokenizer), tokenizer) for question in asked]
    # As likely as a question.
    blanks = [_answered("forget_fb", blank, value, tokenizer)] * len(brief)
    return [*brief, *blanks, *whole]


def _answered(subset: str, query: str, value: str, tokenizer: Any) -> dict:
    """A probe with its answer, of which only the answer is trained."""
    prompt = encode_turn(probe_turn(subset, query), tokenizer, CHAT)
    answer = [*tokenizer(f" {value}.", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return {"input_ids": [*prompt, *answer], "labels": [IGNORE_INDEX] * len(prompt) + answer}
