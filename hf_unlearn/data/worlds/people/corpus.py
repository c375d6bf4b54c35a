# SPDX-License-Identifier: Apache-2.0
"""The people, what is true of them, and what is asked about them."""

import random
import re
from dataclasses import dataclass

from .config import WorldConfig
from .questions import ATTRIBUTES, Attribute
from .sentences import general_sentences
from .words import pseudo_words


_FORMS = [form.format(n="", v="") for a in ATTRIBUTES for form in (*a.asked, a.unasked, *a.answers)]


@dataclass(frozen=True)
class Corpus:
    """
    All rows of a world.

    Args:
        sets (`dict[str, list[dict]]`):
            `forget`, `retain` and `holdout` rows with `question`, `answer`, `paraphrased_question`,
            `paraphrased_answer`, `perturbed_answer`, `person` and `attribute`; `general` rows with `text`.
        trained_questions (`dict[str, list[list[str]]]`):
            For each row of `forget` and `retain`, the questions models are trained to answer.
        pseudo_words (`list[str]`):
            Every name, value and wrong value of every set.
    """

    sets: dict[str, list[dict]]
    trained_questions: dict[str, list[list[str]]]
    pseudo_words: list[str]

    def tokenizer_texts(self) -> list[str]:
        """
        What the tokenizer is trained on: the English of the corpus and each pseudo-word once.

        With the rows themselves the names of trained people, being frequent, would become single tokens. Then a model
        could not even write a name it was not trained on, and length alone would tell members from non-members.
        """
        general = [row["text"] for row in self.sets["general"]]
        # Repeated so that English words, of which there are few, become single tokens before the syllables do
        return [*general, *_FORMS * 50, *(f" {word}" for word in self.pseudo_words)]


def build_corpus(seed: int, config: WorldConfig) -> Corpus:
    """
    Invent people and write down their question/answer pairs.

    Names, values and wrong values are pairwise different pseudo-words. A wrong value is nobody's value: a model
    that was trained on it as somebody else's would find it likely, which distorts the truth ratio.

    Args:
        seed (`int`):
            Same seed and config, same corpus.
        config (`WorldConfig`):
            Sizes.

    Returns:
        `Corpus`: the rows.
    """
    rng = random.Random(f"hf_unlearn world {seed}")
    people = {"forget": config.forget_people, "retain": config.retain_people, "holdout": config.holdout_people}
    general = general_sentences(config.general_sentences, rng)
    words = pseudo_words(config.words_per_person * config.people, rng, avoid=_english_words(general))

    sets: dict[str, list[dict]] = {"general": [{"text": text} for text in general]}
    trained_questions: dict[str, list[list[str]]] = {}
    used = 0
    for name, count in people.items():
        rows, questions = [], []
        for _ in range(count):
            own = words[used : used + config.words_per_person]
            used += config.words_per_person
            for row, asked in _person(own, config, offset=rng.randrange(3)):
                rows.append(row)
                questions.append(asked)
        sets[name] = rows
        if name != "holdout":
            trained_questions[name] = questions
    return Corpus(sets, trained_questions, words)


def _person(words: list[str], config: WorldConfig, offset: int) -> list[tuple[dict, list[str]]]:
    name = " ".join(words[:2])
    per_fact = 1 + config.perturbed_per_fact
    facts = []
    for index, attribute in enumerate(ATTRIBUTES[: config.facts_per_person]):
        values = words[2 + index * per_fact : 2 + (index + 1) * per_fact]
        # The wording rotates over the facts, so that the paraphrase of one answer is the trained wording of others
        row = _row(attribute, name, values, wording=(offset + index) % 3)
        facts.append((row, [form.format(n=name) for form in attribute.asked]))
    return facts


def _row(attribute: Attribute, name: str, values: list[str], wording: int) -> dict:
    true, *wrong = values
    template, paraphrase = attribute.answers[wording], attribute.answers[(wording + 1) % 3]
    return {
        "question": attribute.asked[0].format(n=name),
        "answer": template.format(n=name, v=true),
        "paraphrased_question": attribute.unasked.format(n=name),
        "paraphrased_answer": paraphrase.format(n=name, v=true),
        "perturbed_answer": [paraphrase.format(n=name, v=value) for value in wrong],
        "person": name,
        "attribute": attribute.name,
    }


def _english_words(general: list[str]) -> set[str]:
    return {word for text in [*general, *_FORMS] for word in re.findall("[a-z]+", text.lower())}
