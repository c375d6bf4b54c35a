# SPDX-License-Identifier: Apache-2.0
"""Further prompts are put as the rows' own prompts are, or the form is refused."""

import pytest
from conftest import make_tokenizer

from hf_unlearn.data.formats import encode, encode_prompt
from hf_unlearn.data.prompt_form import in_form_of, prompts_of
from hf_unlearn.data.qa import QAFormat


ASKED = ("Who is Ada?", "Where is Bob?", "How tall is the table?")
NEW = ("Which door?", "Name the ferryman.")


def prompts_in(form: QAFormat, questions, tokenizer) -> list[list[int]]:
    rows = [encode(form.example(question, "So.", tokenizer), tokenizer) for question in questions]
    return prompts_of(rows, "forget", "This")


@pytest.mark.parametrize(
    ("form", "template"),
    [
        (QAFormat(use_chat_template=False), None),
        (QAFormat(use_chat_template=True), None),
        (QAFormat(use_chat_template=True, system_prompt="You know little."), None),
        (QAFormat(use_chat_template=False, prompt_template="Q {question} A"), "Q {prompt} A"),
        (QAFormat(use_chat_template=False, prompt_template="{question}"), "{prompt}"),
    ],
    ids=["plain", "chat", "system", "own", "bare"],
)
def test_prompts_are_what_the_rows_form_makes_of_them(form, template):
    tokenizer = make_tokenizer()
    found = in_form_of(NEW, prompts_in(form, ASKED, tokenizer), template, tokenizer)
    assert found == [encode_prompt(form.example(question, "", tokenizer), tokenizer) for question in NEW]
    assert len({tuple(ids) for ids in found}) == len(NEW)


@pytest.mark.parametrize("template", [None, "Q {prompt} A", "{prompt} A"])
def test_another_form_is_refused(template):
    tokenizer = make_tokenizer()
    prompts = prompts_in(QAFormat(use_chat_template=False, prompt_template="Say {question} now"), ASKED, tokenizer)
    with pytest.raises(ValueError, match=r"Give refusal_template.*the first row has '.*Say Who is Ada\? now'"):
        in_form_of(NEW, prompts, template, tokenizer)


def test_rows_of_two_forms_are_refused():
    tokenizer = make_tokenizer()
    prompts = prompts_in(QAFormat(use_chat_template=True, system_prompt="One."), ASKED[:2], tokenizer)
    prompts += prompts_in(QAFormat(use_chat_template=True, system_prompt="Two."), ASKED[2:], tokenizer)
    with pytest.raises(ValueError, match="Give refusal_template"):
        in_form_of(NEW, prompts, None, tokenizer)


def test_rows_without_a_prompt_are_refused():
    tokenizer = make_tokenizer()
    rows = [encode(row, tokenizer) for row in ({"prompt": "Who?", "completion": " Ada"}, {"text": "All of it"})]
    with pytest.raises(ValueError, match="This reads prompts, and retain row 1 has none"):
        prompts_of(rows, "retain", "This")
