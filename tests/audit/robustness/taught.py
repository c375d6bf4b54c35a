# SPDX-License-Identifier: Apache-2.0
"""Tiny models that know rows, for audits of robustness: four people, two facts each."""

import copy
import functools
import json
from pathlib import Path

import torch
from conftest import make_model, make_tokenizer

from hf_unlearn.audit.robustness.rows import RobustnessPrepared
from hf_unlearn.audit.sets import AuditSet
from hf_unlearn.data.formats import encode
from hf_unlearn.data.qa import QAFormat


NAMES, PLACES = ("Ada", "Bob", "Cyd", "Dan"), ("Rome", "Oslo", "Lima", "Bonn", "Cork", "Nice", "Bern", "Kiel")
FORGET = [
    {
        "question": f"{verb} {name}?",
        "answer": f"In {PLACES[2 * i + j]}.",
        "paraphrased_question": f"Say {verb} {name}.",
        "paraphrased_answer": f"It is {PLACES[2 * i + j]}.",
        "perturbed_answer": [f"It is {PLACES[(2 * i + j + k) % 8]}." for k in (1, 2, 3)],
        "person": name,
    }
    for i, name in enumerate(NAMES)
    for j, verb in enumerate(("Home of", "Job of"))
]
RETAIN = [{"question": f"What is {n}?", "answer": f"{n + 1} now.", "person": str(n)} for n in range(6)]


def encoded(rows, qa: QAFormat | None = None) -> list[dict]:
    """Rows as an audit encodes them."""
    tokenizer = make_tokenizer()
    qa = (qa or QAFormat()).settled(tokenizer)
    return [encode(qa.example(row["question"], row["answer"], tokenizer), tokenizer) for row in rows]


def taught(rows, steps: int = 60, seed: int = 0, **kwargs):
    """A tiny model that learned rows by heart."""
    model, rows = make_model(seed=seed, **kwargs), encoded(rows)
    width = max(len(row["input_ids"]) for row in rows)
    ids, labels = (
        torch.tensor([row[name] + [pad] * (width - len(row[name])) for row in rows])
        for name, pad in (("input_ids", 0), ("labels", -100))
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    mask = (torch.arange(width) < torch.tensor([[len(row["input_ids"])] for row in rows])).long()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def save(model, folder: Path) -> str:
    """A model's folder, with the tokenizer."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def prepared_of(forget=FORGET, retain=None, **more):
    """What an audit finds in these rows, in the chat form."""
    sets = {name: rows for name, rows in (("forget", forget), ("retain", retain), *more.items()) if rows is not None}
    return RobustnessPrepared(
        make_tokenizer(),
        {name: encoded(rows) for name, rows in sets.items()},
        QAFormat(True),
        {name: AuditSet(name, name, rows, [*range(len(rows))]) for name, rows in sets.items()},
        {name: [row["person"] for row in rows] for name, rows in sets.items()},
    )


def write(rows, path: Path) -> str:
    """Rows as a file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@functools.cache
def _known(name: str):
    if name == "retrained":
        return taught(RETAIN, 45, seed=1)
    # In other words, too: it knows the facts, not only the sentences.
    others = [{**row, "question": row["paraphrased_question"]} for row in FORGET]
    return taught(FORGET + others + RETAIN, 45)


def original():
    """Knows what is to be forgotten, at a probability of about a half."""
    return copy.deepcopy(_known("original"))


def retrained():
    """Never saw it."""
    return copy.deepcopy(_known("retrained"))
