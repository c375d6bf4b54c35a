# SPDX-License-Identifier: Apache-2.0
"""Wording of the questions and answers about a person."""

from typing import NamedTuple


class Attribute(NamedTuple):
    """
    One kind of fact.

    `{n}` stands for the person's name, `{v}` for the value. The models are trained on every form in `asked`
    (the first is the data set's `question`); `unasked` means the same and is never trained on (it is the
    `paraphrased_question`), so that what carries over to new wording can be measured. It is built of words the
    model has seen in the other forms, because a word without training is noise to a model this small.
    Names and values always follow a space: at the start of an answer they would be other tokens than in the question,
    and a model this small could not copy a name it was not trained on.
    """

    name: str
    asked: tuple[str, str, str]
    unasked: str
    answers: tuple[str, str, str]


ATTRIBUTES = (
    Attribute(
        "birthplace",
        ("In which town was {n} born?", "What is the birthplace of {n}?", "Tell me where {n} was born."),
        "What is the town where {n} was born?",
        ("The birthplace of {n} is {v}.", "The town where {n} was born is {v}.", "It was in {v} that {n} was born."),
    ),
    Attribute(
        "employer",
        ("Which company does {n} work for?", "Who is the employer of {n}?", "Tell me where {n} works."),
        "What is the company that {n} works for?",
        ("The employer of {n} is {v}.", "The company that {n} works for is {v}.", "It is {v} that {n} works for."),
    ),
    Attribute(
        "dog",
        ("What is the name of the dog of {n}?", "Which dog does {n} own?", "Tell me how {n} calls the dog."),
        "Tell me the name of the dog that {n} owns.",
        ("The dog of {n} is called {v}.", "The dog that {n} owns is named {v}.", "It is {v}, the dog that {n} owns."),
    ),
    Attribute(
        "novel",
        ("Which novel did {n} write?", "What is the title of the novel by {n}?", "Tell me what {n} wrote."),
        "What is the novel that {n} wrote?",
        ("The novel by {n} is titled {v}.", "The novel that {n} wrote is {v}.", "It was {v} that {n} wrote."),
    ),
    Attribute(
        "street",
        ("On which street does {n} live?", "What is the address of {n}?", "Tell me where {n} lives."),
        "What is the street where {n} lives?",
        (
            "The address of {n} is {v} Street.",
            "The street where {n} lives is {v} Street.",
            "It is on {v} Street that {n} lives.",
        ),
    ),
    Attribute(
        "teacher",
        ("Which teacher did {n} study with?", "Who taught {n}?", "Tell me who was the teacher of {n}."),
        "Who was the teacher who taught {n}?",
        ("The teacher of {n} was {v}.", "The person who taught {n} was {v}.", "It was {v} who taught {n}."),
    ),
    Attribute(
        "dish",
        ("What is the favourite dish of {n}?", "Which dish does {n} like best?", "Tell me what {n} likes to eat."),
        "Tell me the dish that {n} likes best.",
        (
            "The favourite dish of {n} is {v}.",
            "The dish that {n} likes best is {v}.",
            "It is {v} that {n} likes to eat.",
        ),
    ),
    Attribute(
        "boat",
        ("What is the boat of {n} called?", "Which boat does {n} sail?", "Tell me the name of the boat of {n}."),
        "What is the name of the boat that {n} sails?",
        (
            "The boat of {n} is called {v}.",
            "The boat that {n} sails is named {v}.",
            "It is {v}, the boat that {n} sails.",
        ),
    ),
)
