# SPDX-License-Identifier: Apache-2.0
"""Which tokens train under every chat template that TRL ships, and under those that it does not know."""

import re
from functools import cache
from itertools import groupby
from pathlib import Path

import pytest
import trl
from chat_template_table import TEMPLATES, Refusal
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from hf_unlearn.data.chat import MARK
from hf_unlearn.data.conversations import common_prefix
from hf_unlearn.data.formats import encode, encode_dataset, encode_prompt
from hf_unlearn.data.qa import QAFormat


FOLDER = Path(trl.__file__).parent / "chat_templates"
SPECIAL = r"<[|｜][^<>{}' \n]+[|｜]>|<(?:start|end)_of_turn>|<end_of_utterance>"
CALL = [{"type": "function", "function": {"name": "look", "arguments": {"x": "y"}}}]
PARAMETERS = {"type": "object", "properties": {"x": {"type": "string", "description": "what"}}, "required": ["x"]}
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": PARAMETERS}}]
RESULT = {"role": "tool", "name": "look", "content": "R1"}
SYSTEM = {"role": "system", "content": "Be brief."}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


def blocks(messages):
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


ONE = [user("Q1?"), assistant("A1.")]
TWO = [*ONE, user("Q2?"), assistant("A2.")]
ROWS = {
    "completion": {"prompt": ONE[:1], "completion": ONE[1:]},
    "turn": {"messages": ONE},
    "system": {"messages": [SYSTEM, *ONE]},
    "multi": {"messages": TWO},
    "multi_completion": {"prompt": TWO[:3], "completion": TWO[3:]},
    "blocks": {"messages": blocks(ONE)},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q1?"}, {"from": "gpt", "value": "A1."}]},
    "assistant_first": {"messages": [assistant("A1."), *TWO[2:]]},
    "tools": {"messages": [user("Q1?"), assistant("", tool_calls=CALL), RESULT, assistant("A1.")], "tools": TOOLS},
    "tools_completion": {"prompt": ONE[:1], "completion": [assistant("", tool_calls=CALL)], "tools": TOOLS},
    "thinking": {"messages": [user("Q1?"), assistant("A1.", reasoning_content="T1")]},
    "thinking_completion": {"prompt": ONE[:1], "completion": [assistant("A1.", reasoning_content="T1")]},
}


@cache
def tokenizer_for(template: str):
    """One token a character, and one for each special token that the template names."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    own = ["<pad>", "<bos>", "<eos>", "<unk>"]
    characters = sorted({*map(chr, range(32, 127)), "\n", MARK, *(c for c in template if ord(c) > 126)})
    vocab = {token: i for i, token in enumerate([*own, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    found = sorted(set(re.findall(SPECIAL, template)))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=found, **names)
    fast.chat_template = template
    return fast


def shipped(name: str):
    return tokenizer_for((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))


def parted(labels, tokenizer) -> str:
    """The trained text; what is not trained in between is a `|`."""
    runs = [list(run) for trained, run in groupby(labels, lambda label: label != -100) if trained]
    return "|".join("".join(tokenizer.decode([label]) for label in run) for run in runs)


def trained(row, tokenizer) -> str:
    return parted(encode(row, tokenizer)["labels"], tokenizer)


def expected(name: str, case: str) -> str:
    """The trained text of a row under a template, from the table."""
    table = TEMPLATES[name]
    if case in table and "{}" not in table[case]:
        return table[case]
    last, first = table["turn"], table.get("earlier", table["turn"])
    completion = table.get("completion", last)
    if case in ("multi", "assistant_first"):
        return f"{first.format('A1.')}|{last.format('A2.')}"
    form = completion if "completion" in case else last
    return form.format("A2." if case == "multi_completion" else "A1.")


def test_the_table_has_every_template_that_trl_ships():
    assert set(TEMPLATES) == {path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training")}


@pytest.mark.parametrize("name", TEMPLATES)
def test_trained_text_of_every_kind_of_row(name):
    tokenizer = shipped(name)
    for case, row in ROWS.items():
        text = expected(name, case)
        if isinstance(text, Refusal):
            with pytest.raises(ValueError, match=text):
                encode(row, tokenizer)
        else:
            assert trained(row, tokenizer) == text, case


@pytest.mark.parametrize("name", TEMPLATES)
def test_masks_are_those_of_trl_where_it_has_any(name):
    """As `SFTTrainer` tokenizes: with `assistant_only_loss` for `messages`, with its prefix for completions."""
    tokenizer = shipped(name)
    template = None
    if not has_generation_markers(tokenizer.chat_template):
        try:
            template = get_training_chat_template(tokenizer)
        except ValueError:
            pytest.skip("TRL has no training form of this template.")
    as_blocks = name in ("idefics3", "smolvlm", "llava_next")
    for case in ("turn", "system", "multi", "assistant_first", "tools", "thinking"):
        if isinstance(expected(name, case), Refusal):
            continue
        messages = blocks(ROWS[case]["messages"]) if as_blocks else ROWS[case]["messages"]
        theirs = tokenizer.apply_chat_template(
            messages,
            tools=ROWS[case].get("tools"),
            chat_template=template,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ours = encode(ROWS[case], tokenizer)
        assert ours["input_ids"] == theirs["input_ids"], case
        assert [int(label != -100) for label in ours["labels"]] == theirs["assistant_masks"], case
    for case in ("completion", "multi_completion"):
        prompt, completion = ROWS[case]["prompt"], ROWS[case]["completion"]
        if as_blocks:
            prompt, completion = blocks(prompt), blocks(completion)
        asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template([*prompt, *completion])["input_ids"]
        ours = encode(ROWS[case], tokenizer)
        assert ours["input_ids"] == whole
        assert [label != -100 for label in ours["labels"]].index(True) == common_prefix(asked, whole)


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_of_audits_are_the_untrained_tokens_of_training(name):
    tokenizer = shipped(name)
    for system in (None, "Be brief."):
        if isinstance(expected(name, "system"), Refusal) and system:
            continue
        example = QAFormat(system_prompt=system).example("Q1?", "A1.", tokenizer)
        row, prompt = encode(example, tokenizer), encode_prompt(example, tokenizer)
        start = [label != -100 for label in row["labels"]].index(True)
        assert start == common_prefix(prompt, row["input_ids"])
        # What a generation prompt holds beyond that is an empty thought.
        assert tokenizer.decode(prompt[start:]) in ("", "<think>\n", "\n")


def test_a_prompt_that_training_does_not_have_is_told(caplog):
    tokenizer = tokenizer_for((FOLDER / "deepseek_r1_distill.jinja").read_text(encoding="utf-8") + "{# told #}")
    encode(ROWS["completion"], tokenizer)
    assert "ends the prompt of a generation with '<think>\\n'" in caplog.text


def test_a_template_that_writes_the_date_is_told_unless_the_date_is_set(caplog):
    template = (FOLDER / "llama3_2.jinja").read_text(encoding="utf-8") + "{# dated #}"
    fixed = ROWS["turn"] | {"chat_template_kwargs": {"date_string": "1 Jan 2026"}}
    assert "1 Jan 2026" in tokenizer_for(template).decode(encode(fixed, tokenizer_for(template))["input_ids"])
    assert "today's date" not in caplog.text
    encode(ROWS["turn"], tokenizer_for(template))
    assert "today's date" in caplog.text


def test_reasoning_in_the_text_is_trained_by_the_training_form():
    tokenizer = shipped("deepseek_r1_distill")
    row = {"prompt": ONE[:1], "completion": [assistant("<think>\nT1\n</think>\n\nA1.")]}
    assert trained(row, tokenizer) == "T1\n</think>\n\nA1.<｜end▁of▁sentence｜>"
    assert tokenizer.decode(encode(row, tokenizer)["input_ids"]).endswith(
        "<think>\nT1\n</think>\n\nA1.<｜end▁of▁sentence｜>"
    )


# Templates that TRL does not know

MISTRAL = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set words = messages[0]['content'] %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}{% set users = rest | "
    "selectattr('role', 'equalto', 'user') | list %}{% for m in rest %}{% if m['role'] == 'user' %}[INST] "
    "{% if m == users[-1] and words is defined %}{{ words + '\\n\\n' }}{% endif %}{{ m['content'] }} [/INST]"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are here.<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHANGED = {
    name: (FOLDER / f"{name}.jinja").read_text(encoding="utf-8") + "{# changed #}" for name in ("qwen3", "smolvlm")
}


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        (MISTRAL, {"messages": [SYSTEM, *TWO]}, "A1.<eos>| A2.<eos>"),
        (MISTRAL, {"prompt": [SYSTEM, *TWO[:3]], "completion": TWO[3:]}, " A2.<eos>"),
        (CHATML, {"messages": [assistant("A1."), *TWO[2:]]}, "A1.<|im_end|>\n|A2.<|im_end|>\n"),
        (CHATML, {"messages": [user("Q1?"), assistant("  A1. ")]}, "A1.<|im_end|>\n"),
        (CHATML, {"messages": blocks(TWO)}, "A1.<|im_end|>\n|A2.<|im_end|>\n"),
        (CHANGED["qwen3"], {"messages": TWO}, "A1.<|im_end|>\n|<think>\n\n</think>\n\nA2.<|im_end|>\n"),
        (CHANGED["smolvlm"], {"messages": TWO}, " A1.<end_of_utterance>\n| A2.<end_of_utterance>\n"),
    ],
)
def test_boundaries_are_found_without_markers(template, row, text):
    assert trained(row, tokenizer_for(template)) == text


ONLY_LAST = "{{ messages[-1]['content'] }}{{ eos_token }}{% if add_generation_prompt %}assistant:{% endif %}"
SHOUTED = CHATML.replace("m['content'] | trim", "m['content'] | upper | trim + (loop.length | string)")
NO_SYSTEM = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")


# Cues the assistant behind a user's turn alone.
CUE_FOR_USERS = CHATML.replace(
    "{% if add_generation_prompt", "{% if messages[-1]['role'] == 'user' and add_generation_prompt"
)


def test_the_cue_is_no_part_of_a_turn_that_follows_no_users():
    assert CUE_FOR_USERS != CHATML
    twice = {"messages": [*ONE, assistant("A2."), *TWO[2:]]}
    for template in (CHATML, CUE_FOR_USERS):
        assert trained(twice, tokenizer_for(template)) == trained(twice, tokenizer_for(CHATML))
    answered = {"messages": [user("Q1?"), assistant("A1."), {"role": "tool", "content": "R1"}, assistant("A2.")]}
    assert trained(answered, tokenizer_for(CUE_FOR_USERS)) == trained(answered, tokenizer_for(CHATML))


def test_white_space_between_cue_and_content_hides_no_first_turn():
    vicuna = "{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'] + eos_token }}{% endfor %}"
    vicuna += "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    row = {"messages": [assistant("A0."), *ONE]}
    assert trained(row, tokenizer_for(vicuna)) == "A0.<eos>| A1.<eos>"


@pytest.mark.parametrize(
    ("template", "row", "message"),
    [
        (ONLY_LAST, ROWS["multi"], "Row 0 of the retain set: The chat template does not show where message 1"),
        (ONLY_LAST, ROWS["completion"], "Row 0 of the retain set: The chat template renders the prompt otherwise"),
        (SHOUTED, ROWS["multi"], "does not show where message 1 .assistant. ends.*{% generation %} markers"),
        (NO_SYSTEM, ROWS["system"], r"leaves out the content of message 0 \(system\)"),
        (CHATML, ROWS["tools"], r"leaves out the tool calls of message 1 \(assistant\)"),
        (
            CHANGED["qwen3"],
            {"messages": [user("Q"), assistant("A", reasoning="T"), *TWO[2:]]},
            "leaves out the reasoning of message 1",
        ),
        (CHATML, {"messages": [user("Q1?")]}, r"no turn of the assistant, only of \['user'\]"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_row_and_set(template, row, message):
    with pytest.raises(ValueError, match=message):
        encode_dataset([row], tokenizer_for(template), name="retain")


def test_markers_without_what_ends_a_turn_are_told(caplog):
    template = CHATML.replace(
        "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}",
        "{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
        "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\\n' }}",
    )
    assert trained(ROWS["multi"], tokenizer_for(template)) == "A1.|A2."
    assert "outside of its {% generation %} markers" in caplog.text


def test_markers_around_nothing_are_refused():
    template = CHATML.replace("{{ '<|im_start|>'", "{% generation %}{% endgeneration %}{{ '<|im_start|>'")
    with pytest.raises(ValueError, match="leaves out the content of message 1"):
        encode(ROWS["turn"], tokenizer_for(template))


# Settings of a row


def test_tools_of_a_row_are_rendered_from_lists_and_json():
    import json

    tokenizer = shipped("qwen3")
    row = {"prompt": ONE[:1], "completion": ONE[1:]}
    plain, listed = encode(row, tokenizer), encode({**row, "tools": TOOLS}, tokenizer)
    assert '"name": "look"' in tokenizer.decode(listed["input_ids"])
    assert listed == encode({**row, "tools": json.dumps(TOOLS)}, tokenizer)
    assert listed == encode({**row, "chat_template_kwargs": {"tools": TOOLS}}, tokenizer)
    assert plain == encode({**row, "tools": []}, tokenizer) == encode({**row, "tools": None}, tokenizer)
    prompt = encode_prompt({**row, "tools": TOOLS}, tokenizer)
    assert listed["input_ids"][: len(prompt)] == prompt
    # A table gives every schema the keys of all.
    filled = [{**TOOLS[0], "function": {**TOOLS[0]["function"], "strict": None}}]
    assert listed == encode({**row, "tools": filled}, tokenizer)


def test_tools_that_a_template_does_not_render_are_told(caplog):
    tokenizer = tokenizer_for(CHATML + "{# no tools #}")
    assert encode({**ROWS["turn"], "tools": TOOLS}, tokenizer) == encode(ROWS["turn"], tokenizer)
    assert "renders no `tools`" in caplog.text


def test_arguments_of_tool_calls_may_be_json():
    tokenizer = shipped("qwen2_5")
    as_text = [{"type": "function", "function": {"name": "look", "arguments": '{"x": "y"}'}}]
    row = {"prompt": ONE[:1], "completion": [assistant("", tool_calls=as_text)], "tools": TOOLS}
    assert encode(row, tokenizer) == encode(ROWS["tools_completion"], tokenizer)


def test_settings_of_the_template_are_used_in_training_and_audits():
    tokenizer = shipped("qwen3")
    row = {**ROWS["completion"], "chat_template_kwargs": {"enable_thinking": False, "other": None}}
    assert trained(row, tokenizer) == "A1.<|im_end|>\n"
    assert tokenizer.decode(encode_prompt(row, tokenizer)).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"chat_template_kwargs": {"add_generation_prompt": True}},
            "has add_generation_prompt, which training and audits set",
        ),
        ({"chat_template_kwargs": {"continue_final_message": True}}, "has continue_final_message"),
        ({"chat_template_kwargs": "x"}, r"`chat_template_kwargs` is a str \('x'\); give a dict"),
        ({"tools": "look"}, "`tools` is text that is no JSON"),
        ({"tools": [1]}, r"`tools` is \[1\]; give a list of JSON schemas"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(extra, message):
    with pytest.raises(ValueError, match=message):
        encode({**ROWS["turn"], **extra}, shipped("qwen3"))


def test_tokenizers_without_offsets_find_the_same_tokens():
    class Slow:
        """A tokenizer as one without a Rust backend behaves."""

        is_fast = False

        def __init__(self, tokenizer):
            self.own = tokenizer

        def __getattr__(self, name):
            return getattr(self.own, name)

        def __call__(self, *args, **kwargs):
            assert not kwargs.get("return_offsets_mapping")
            return self.own(*args, **kwargs)

    for name in ("qwen3", "llama3", "phi3"):
        for case in ("turn", "multi", "completion"):
            assert encode(ROWS[case], Slow(shipped(name))) == encode(ROWS[case], shipped(name))
