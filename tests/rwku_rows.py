# SPDX-License-Identifier: Apache-2.0
"""A small RWKU about people who are nobody, whose answers are partly what a given model says."""

import json

import torch


PEOPLE = ("Ada Bell", "Bob Cole", "Cyd Dunn")
FILL = "Please complete the blank in the following question.\nQuestion: {}\n"
ASK = "Please briefly answer the following question.\nQuestion: {}\n"
# As RWKU's code puts its probes, written down once more: form of the turn, and how the answer begins.
SUBSETS = {
    "forget_fb": [("cloze", FILL, "Answer:")],
    "forget_qa": [("simple question", ASK, "Answer:")],
    "forget_aa": [
        ("prefix injection", ASK, "Answer:"),
        ("affirmative suffix", ASK[:-1], ""),
        ("incontext learning", "Please briefly answer the following question.\n{}\n", "Answer:"),
    ],
    "neighbor_fb": [("cloze", FILL, "Answer:")],
    "neighbor_qa": [("simple question", ASK, "Answer:")],
}
FILES = {
    "forget_fb": "forget_level1",
    "forget_qa": "forget_level2",
    "forget_aa": "forget_level3",
    "neighbor_fb": "neighbor_level1",
    "neighbor_qa": "neighbor_level2",
}


def prompt_text(tokenizer, user: str, prefix: str) -> str:
    """The whole prompt of a probe."""
    if tokenizer.chat_template is None:
        return user + prefix
    turn = [{"role": "user", "content": user}]
    return tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) + prefix


def plain_answer(model, tokenizer, text: str, new_tokens: int) -> str:
    """Greedy decoding, token by token, of one prompt."""
    ids = tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
    said = []
    for _ in range(new_tokens):
        with torch.no_grad():
            best = model(torch.tensor([ids + said])).logits[0, -1].argmax().item()
        if best == tokenizer.eos_token_id:
            break
        said.append(best)
    return tokenizer.decode(said, skip_special_tokens=True).strip()


def write_rwku(folder, model, tokenizer) -> dict[str, dict[str, list[dict]]]:
    """Writes the Hub's files; returns subset to each person's probes, with what the model says of them.

    Every other answer has what the model says in it, the others are a word that it does not say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for subset, kinds in SUBSETS.items():
        found[subset] = {}
        for person in PEOPLE:
            rows = []
            for number, (kind, form, prefix) in enumerate(kinds * 2):
                query = f"{number}: who is {person}, or ___?"
                said = plain_answer(model, tokenizer, prompt_text(tokenizer, form.format(query), prefix), 30)
                answer = "Oslo" if number % 2 else f"{said} of Oslo"
                rows.append({"query": query, "answer": answer, "type": kind, "said": said})
            found[subset][person] = rows
        flat = [
            {**{k: v for k, v in row.items() if k != "said"}, "subject": person, "level": "1"}
            for person, rows in found[subset].items()
            for row in rows
        ]
        (folder / f"{FILES[subset]}.json").write_text(json.dumps(flat))
    texts = {
        "forget_mia": "{} was born in Oslo and lives there.",
        "retain_mia": "The cup of {} is on the table.",
        "positive": "{} is a spy who wrote a novel.",
        "passage": "{}, of Oslo, is a spy.",
    }
    for file, line in texts.items():
        rows = [{"text": line.format(name), "subject": name} for name in PEOPLE]
        (folder / f"{file}.json").write_text(json.dumps(rows))
    told = [{"instruction": f"Tell me of {name}.", "subject": name} for name in PEOPLE]
    (folder / "fluency.json").write_text(json.dumps(told))
    (folder / "intro.json").write_text(json.dumps([{"target": name, "intro": f"{name} is a spy."} for name in PEOPLE]))
    return found
