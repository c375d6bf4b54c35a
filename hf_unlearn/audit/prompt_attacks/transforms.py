# SPDX-License-Identifier: Apache-2.0
"""`TRANSFORMS`: ways to put a question, by name. The wording is part of the measurement: change it, and raise
[`VERSION`]."""

import base64
import codecs
from collections.abc import Callable
from dataclasses import dataclass

from .cases import Case, Prompt, blanked, split_at
from .texts import (
    BACKGROUND,
    CLOZE,
    COMPOSE,
    CONTEXT,
    DENIAL,
    ENCODED,
    FILLER,
    INJECTION,
    INSISTENCE,
    REVERSE,
    ROLES,
    STEPS,
    SYNONYMS,
    THIS,
)  # fmt: skip


VERSION = 1
ANSWER = ""


@dataclass(frozen=True)
class Transform:
    """One way to put a question.

    Args:
        make (`Callable[[Case], list[Prompt]]`): prompts of a row; none where the row lacks what is needed.
        score (`str`): what is scored: `""`, the tokens of the row's answer; `rest`, those behind its beginning;
            `subject`; `choice`, a letter.
        requires (`str`): what rows must bring for it.
    """

    make: Callable[[Case], list[Prompt]]
    score: str = ANSWER
    requires: str = ""


def paraphrase(case: Case) -> list[Prompt]:
    text = case.row.get("paraphrased_question")
    return [Prompt(text)] if text else []


def prefill(case: Case) -> list[Prompt]:
    return [Prompt(case.question, prefill=case.args.prefill)]


def key_prefix(case: Case) -> list[Prompt]:
    begun = split_at(case.answer, case.told)
    return [Prompt(case.question, begun=begun)] if begun.strip() else []


def prefix_injection(case: Case) -> list[Prompt]:
    return [Prompt(INJECTION.format(question=case.question))]


def role_play(case: Case) -> list[Prompt]:
    return [Prompt(text.format(question=case.question)) for text in ROLES]


def synonym(case: Case) -> list[Prompt]:
    words = case.question.split(" ")
    changed = [SYNONYMS.get(word.casefold().strip("?.,!"), word) for word in words]
    # A question mark and the like stay behind the word that is replaced.
    changed = [
        new + old[len(old.rstrip("?.,!")) :] if new != old else old for new, old in zip(changed, words, strict=True)
    ]
    return [Prompt(" ".join(changed))] if changed != words else []


def background(case: Case) -> list[Prompt]:
    return [Prompt(f"{BACKGROUND}\n\n{case.question}")]


def filler(case: Case) -> list[Prompt]:
    drawn = case.rng.choice(len(FILLER), size=3, replace=False)
    return [Prompt(f"{' '.join(FILLER[i] for i in drawn)}\n\n{case.question}")]


def reverse(case: Case) -> list[Prompt]:
    if not case.subject or case.subject.casefold() not in case.answer.casefold():
        return []
    start = case.answer.casefold().index(case.subject.casefold())
    told = case.answer[:start] + THIS + case.answer[start + len(case.subject) :]
    return [Prompt(REVERSE.format(statement=told), answer=case.subject)]


def multiple_choice(case: Case) -> list[Prompt]:
    wrong = [text for text in case.row.get("perturbed_answer") or () if not case.gives_away(text)][:3]
    if not wrong:
        return []
    # Wrong answers are written like the paraphrase, where there is one: the form must not tell them apart.
    right = case.row.get("paraphrased_answer") or case.answer
    place = int(case.rng.integers(len(wrong) + 1))
    options = [*wrong[:place], right, *wrong[place:]]
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=False))
    question = f"{case.question}\n{listed}\nGive the letter of the right answer."
    letters = "ABCD"[: len(options)]
    # The right one first.
    return [Prompt(question, answer=letter) for letter in [letters[place], *letters.replace(letters[place], "")]]


def cloze(case: Case) -> list[Prompt]:
    return [Prompt(CLOZE.format(sentence=blanked(case.answer, case.told)))]


def few_shot(case: Case) -> list[Prompt]:
    shown = case.shown([*case.near, *case.others], case.args.few_shot)
    return [_after(shown, case.question)] if shown else []


def few_shot_retain(case: Case) -> list[Prompt]:
    shown = case.shown(case.kept, case.args.few_shot)
    return [_after(shown, case.question)] if shown else []


def in_context(case: Case) -> list[Prompt]:
    column = case.args.context_column
    if column is not None:
        text = case.row.get(column) or ""
    else:
        text = " ".join(row["answer"] for row in case.near if not case.gives_away(row["answer"]))
    return [Prompt(CONTEXT.format(text=text, question=case.question))] if text else []


def translation(case: Case) -> list[Prompt]:
    column = case.args.translation_column
    text = None if column is None else case.row.get(column)
    return [Prompt(text)] if text else []


def encoded_base64(case: Case) -> list[Prompt]:
    return [_encoded("base64", base64.b64encode(case.question.encode()).decode())]


def encoded_rot13(case: Case) -> list[Prompt]:
    return [_encoded("rot13", codecs.encode(case.question, "rot13"))]


def spaced(case: Case) -> list[Prompt]:
    return [_encoded("single letters", " ".join(case.question))]


def multi_turn(case: Case) -> list[Prompt]:
    return [Prompt(INSISTENCE.format(question=case.question), ((case.question, DENIAL),))]


def compose(case: Case) -> list[Prompt]:
    shown = case.shown(case.kept, 1)
    if not shown:
        return []
    first = shown[0]
    text = COMPOSE.format(first=first["question"], second=case.question)
    return [Prompt(text, prefill=f"{first['answer']}\n")]


def step_by_step(case: Case) -> list[Prompt]:
    return [Prompt(STEPS.format(question=case.question))]


def _after(rows, question: str) -> Prompt:
    return Prompt(question, tuple((row["question"], row["answer"]) for row in rows))


def _encoded(how: str, text: str) -> Prompt:
    return Prompt(ENCODED.format(how=how, text=text))


TRANSFORMS: dict[str, Transform] = {
    "paraphrase": Transform(paraphrase, requires="a column `paraphrased_question`"),
    "synonym": Transform(synonym, requires="questions with a word of the table of synonyms"),
    "prefill": Transform(prefill),
    "key_prefix": Transform(key_prefix, "rest", "answers that do not begin with what they tell"),
    "prefix_injection": Transform(prefix_injection),
    "role_play": Transform(role_play),
    "background": Transform(background),
    "filler": Transform(filler),
    "step_by_step": Transform(step_by_step),
    "multi_turn": Transform(multi_turn),
    "few_shot": Transform(few_shot, requires="other rows of the set that do not give the answer away"),
    "few_shot_retain": Transform(few_shot_retain, requires="retain rows"),
    "in_context": Transform(in_context, requires="`group_by`, and other rows of the group, or `context_column`"),
    "compose": Transform(compose, requires="retain rows"),
    "cloze": Transform(cloze),
    "reverse": Transform(reverse, "subject", "`group_by` with a name that stands in the answers"),
    "multiple_choice": Transform(multiple_choice, "choice", "a column `perturbed_answer`"),
    "translation": Transform(translation, requires="`translation_column`"),
    "base64": Transform(encoded_base64),
    "rot13": Transform(encoded_rot13),
    "spaced": Transform(spaced),
}
QUICK_TRANSFORMS = ("paraphrase", "prefill", "key_prefix", "role_play", "multi_turn", "few_shot", "in_context")
