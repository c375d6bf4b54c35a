# SPDX-License-Identifier: Apache-2.0
"""Alternates that the model samples: what is drawn, never the row's own answer, and that it is drawn once."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl
from conftest import changed, make_args, make_model, make_tokenizer, weights
from processes import run

from hf_unlearn import METHODS
from hf_unlearn.audit.draws import Drawing
from hf_unlearn.data.alternate_rows import prompt_of
from hf_unlearn.data.formats import encode
from hf_unlearn.training import sampled


NAMES = ("Ada", "Bob", "Cyd", "Dan")
FORGET = [{"prompt": f"Who is {name}?", "completion": f" Spy {name}"} for name in NAMES]
SETTINGS = {"sample_max_tokens": 8, "num_alternates": 3, "retain_loss": "none"}


@pytest.fixture
def build(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "cache"))

    def build(method="altpo", model=None, forget=FORGET, alternate=None, tokenizer=None, **kwargs):
        config, trainer = METHODS[method]
        return trainer(
            model=model or make_model(),
            args=make_args(config, tmp_path / "out", **{**SETTINGS, **kwargs}),
            forget_dataset=forget,
            alternate_dataset=alternate,
            processing_class=tokenizer or make_tokenizer(),
        )

    return build


@pytest.fixture
def once(monkeypatch):
    """Nothing may be sampled."""

    def forbid():
        def sample(*args, **kwargs):
            raise AssertionError("It samples again.")

        monkeypatch.setattr(sampled, "sample_answers", sample)

    return forbid


def alternates(trainer) -> list[list[int]]:
    return trainer.given_rows["alternate"]["input_ids"][:]


def test_what_is_drawn_has_the_models_probabilities_and_nothing_is_cut_off():
    draws = 8000
    scores = torch.randn(1, 100, generator=torch.Generator().manual_seed(0)) * 2
    for temperature in (0.5, 1.0):
        draw = Drawing(range(draws), temperature, tokens=90)
        shares = torch.bincount(draw(None, scores.repeat(draws, 1)).argmax(-1), minlength=100) / draws
        wanted = (scores[0, :90] / temperature).softmax(-1)
        torch.testing.assert_close(shares[:90], wanted, rtol=0, atol=5 * (0.25 / draws) ** 0.5)
        # What only pads the head is no token.
        assert shares[90:].sum() == 0
    # transformers keeps the 50 likeliest unless it is told otherwise.
    assert (shares > 0).sum() > 60


def test_a_row_gets_so_many_answers_to_its_prompt_none_of_them_its_own(build):
    trainer = build()
    rows = trainer.given_rows
    assert len(rows["alternate"]) == 3 * len(rows["forget"])
    texts = set()
    for number, row in enumerate(rows["alternate"]):
        own = rows["forget"][number // 3]
        prompt = [label for label in own["labels"] if label == -100]
        assert row["input_ids"][: len(prompt)] == own["input_ids"][: len(prompt)]
        answer = row["input_ids"][len(prompt) :]
        assert row["labels"] == [-100] * len(prompt) + answer
        assert 1 <= len(answer) <= 8
        texts.add(make_tokenizer().decode(answer))
        # Within the answer no end of text, which would not be the end.
        assert 2 not in answer[:-1]
    assert len(texts) > 9
    tokens = {token for row in alternates(trainer) for token in row[13:]}
    assert len(tokens) > 50


def test_epochs_take_one_answer_after_the_other(build):
    pairs = build().train_dataset
    seen = [
        {pairs[p]["forget"]["index"]: pairs[p]["alternate"]["index"] for p in range(e * 4, e * 4 + 4)}
        for e in range(6)
    ]
    for epoch, found in enumerate(seen):
        assert found == {row: 3 * row + epoch % 3 for row in range(4)}
    assert pairs.visited("alternate", 6) == sorted(
        {*range(0, 12, 3), *(found for _, found in list(seen[1].items())[:2])}
    )


def test_answers_do_not_depend_on_batches_and_do_on_seed_and_settings(build):
    found = alternates(build())
    args = build().args
    for changes, same in (
        ({"per_device_eval_batch_size": 1}, True),
        ({"data_seed": 5}, False),
        ({"sample_temperature": 0.3}, False),
        ({"sample_instruction": None}, False),
    ):
        for name, value in changes.items():
            setattr(args, name, value)
        forget = build().given_rows["forget"]
        again = sampled.sample_answers(make_model(), forget, make_tokenizer(), args)
        own = [row[len(sampled.prompt_of(forget[number // 3])) :] for number, row in enumerate(found)]
        assert (again == own) is same, changes
        args = build().args
    # A row's answers are its own numbers': more of them, or other rows beside it, leave them as they are.
    assert alternates(build(num_alternates=5))[:3] == found[:3]
    assert alternates(build(forget=FORGET[:2])) == found[:6]


def test_a_second_run_and_a_resumed_one_sample_nothing(build, once, tmp_path, caplog):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole = build(**settings)
    whole.train()
    (file,) = (tmp_path / "cache" / "alternates").glob("*.json")
    kept = json.loads(file.read_text())
    assert len(kept["texts"]) == len(kept["answers"]) == 12
    once()
    caplog.clear()
    resumed = build(**settings)
    assert "are read from" in caplog.text
    assert alternates(resumed) == alternates(whole)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert not changed(weights(whole.model), weights(resumed.model))
    for other in (
        {"model": make_model(seed=1)},
        {"sample_temperature": 2.0},
        {"forget": FORGET[:3]},
        {"data_seed": 1},
    ):
        with pytest.raises(AssertionError, match="It samples again"):
            build(**other)
    file.write_text("{")
    with pytest.raises(ValueError, match=r"is no JSON .* Delete it; the answers are then sampled again\."):
        build()


def test_a_path_gives_what_the_loaded_model_gives_and_the_model_stays_as_it_was(build, model_path, once):
    model = make_model().train()
    found = alternates(build(model=model))
    assert model.training
    assert alternates(build(model=model_path)) == found
    once()
    assert alternates(build(model=model_path)) == found


def test_a_reference_that_was_given_answers(build, monkeypatch):
    asked = []
    keep = sampled.sample_answers
    monkeypatch.setattr(sampled, "sample_answers", lambda model, *rest: asked.append(model) or keep(model, *rest))
    reference, (config, trainer) = make_model(seed=3), METHODS["altpo"]
    trainer(
        model=make_model(),
        ref_model=reference,
        args=make_args(config, "unused", **SETTINGS),
        forget_dataset=FORGET,
        processing_class=make_tokenizer(),
    )
    assert asked == [reference]


def test_the_rows_own_answer_is_drawn_again(build, monkeypatch):
    tokenizer, calls = make_tokenizer(), []

    def answer(model, tokenizer, prompts, **kwargs):
        calls.append(len(prompts))
        kind = (" spy  ADA.", "", " Someone")[min(len(calls), 3) - 1]
        return [tokenizer(kind, add_special_tokens=False)["input_ids"] for _ in prompts]

    monkeypatch.setattr(sampled, "generate_tokens", answer)
    trainer = build(forget=FORGET[:2])
    # Of the first row in the first try, of none in the second, of what is left in the third.
    assert calls == [6, 3, 3]
    texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in alternates(trainer)]
    assert texts == ["Who is Ada? Someone"] * 3 + ["Who is Bob? spy  ADA."] * 3
    calls.clear()
    monkeypatch.setattr(sampled, "generate_tokens", lambda *args, **kwargs: calls.append(0) or [[]] * 6)
    with pytest.raises(
        ValueError, match=r"to 2 of 2 forget rows, the first of them row 0, the model gives .* in 20 tr"
    ):
        build(forget=FORGET[:2], data_seed=9)
    assert len(calls) == 20


def prompts_asked(build, monkeypatch, **kwargs) -> list[str]:
    asked = []

    def answer(model, tokenizer, prompts, **kwargs):
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        return [[40] for _ in prompts]

    monkeypatch.setattr(sampled, "generate_tokens", answer)
    build(num_alternates=1, **kwargs)
    return asked


def test_the_instruction_follows_the_rows_own_answer(build, monkeypatch):
    plain = prompts_asked(build, monkeypatch, forget=FORGET[:1], sample_instruction="Another?")
    assert plain == ["<s>Who is Ada? Spy Ada\nAnother?\n"]
    turns = [
        {
            "prompt": [{"role": "user", "content": "Who is Ada?"}],
            "completion": [{"role": "assistant", "content": "Spy"}],
        }
    ]
    chat = prompts_asked(build, monkeypatch, forget=turns, sample_instruction="Another?")
    assert chat == ["<s><user>Who is Ada?<assistant>Spy</s><user>Another?<assistant>"]
    alone = prompts_asked(build, monkeypatch, forget=FORGET[:1], sample_instruction=None)
    assert alone == ["<s>Who is Ada?"]


TEMPLATES = {
    "qwen3": "<think>\n\n</think>\n\nSpy<|im_end|>\n<|im_start|>user\nAnother?<|im_end|>\n<|im_start|>assistant\n",
    "smolvlm": " Spy<end_of_utterance>\nUser: Another?<end_of_utterance>\nAssistant:",
    "phi3": "Spy<|end|>\n<|user|>\nAnother?<|end|>\n<|assistant|>\n",
    "llama3": "Spy<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnother?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_instruction_is_a_turn_of_the_rows_template(name):
    """Qwen3 takes the thoughts of earlier answers away, SmolVLM reads lists of parts alone, Phi-3 ends a last answer
    with one more token."""
    folder = Path(trl.__file__).parent / "chat_templates"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    turns = [[{"role": "user", "content": "Who is Ada?"}], [{"role": "assistant", "content": "Spy"}]]
    row = encode(dict(zip(("prompt", "completion"), turns, strict=True)), tokenizer)
    prompt = prompt_of(row)
    asked = sampled._asking(row, prompt, tokenizer, SimpleNamespace(sample_instruction="Another?"))
    assert tokenizer.decode(asked) == TEMPLATES[name]


def test_answers_to_another_form_of_the_question_are_not_taken_from_disk(build, monkeypatch):
    """Two templates that give the rows the same tokens and turns that follow them others."""
    turns = [
        {
            "prompt": [{"role": "user", "content": "Who is Ada?"}],
            "completion": [{"role": "assistant", "content": "Spy"}],
        }
    ]
    plain, other = make_tokenizer(), make_tokenizer()
    other.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ '<' + message['role'] + '>' }}{{ '!' if loop.index == 3 }}"
        "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    for tokenizer, expected in ((plain, "<user>Another?"), (plain, None), (other, "<user>!Another?")):
        asked = prompts_asked(build, monkeypatch, forget=turns, sample_instruction="Another?", tokenizer=tokenizer)
        assert [expected in text for text in asked] == ([True] if expected else [])


@pytest.mark.usefixtures("unloaded")
def test_rows_that_nothing_can_be_sampled_for_are_refused_before_a_model_is_loaded(build, model_path):
    with pytest.raises(
        ValueError, match=r"alternate_source='sampled' has the model answer prompts, and 1 of 1 forget"
    ):
        build(model=model_path, forget=[{"text": "Ada is a spy."}])
    with pytest.raises(ValueError, match=r"given twice: as `alternate_dataset`, and as alternate_source='sampled'"):
        build(model=model_path, alternate=FORGET, alternate_source="sampled")
    with pytest.raises(ValueError, match="poison_prefix takes rows out of the forget set"):
        build(model=model_path, poison_prefix="XYZ", use_kl_poison=True)
    with pytest.raises(ValueError, match="sample_temperature=0; give a finite number above 0"):
        build(sample_temperature=0)
    with pytest.raises(ValueError, match="num_alternates=None; give a whole number of at least 1"):
        build(num_alternates=None)


def test_given_rows_take_the_place_of_the_methods_own_source(build, once):
    once()
    given = [{**row, "completion": f" No{'.' * i}"} for row in FORGET for i in range(3)]
    trainer = build(alternate=given)
    texts = [make_tokenizer().decode(ids, skip_special_tokens=True) for ids in alternates(trainer)]
    assert texts == [row["prompt"] + row["completion"] for row in given]
    with pytest.raises(
        ValueError, match=r"12 alternate rows and 4 forget rows; num_alternates=5 of them belong to each"
    ):
        build(alternate=given, num_alternates=5)


def test_settings_of_sampling_are_told_where_nothing_is_sampled(build, caplog):
    build("dpo", alternate_source="shuffled", num_alternates=1, sample_temperature=2.0)
    assert "sample_temperature=2.0 (for alternate_source='sampled')" in caplog.text


def test_sampling_takes_none_of_the_runs_random_numbers(build):
    trainer = build()
    before = torch.get_rng_state()
    sampled.sample_answers(trainer.model, trainer.given_rows["forget"], make_tokenizer(), trainer.args)
    assert torch.equal(torch.get_rng_state(), before)


def test_any_method_with_alternates_may_have_them_sampled(build):
    trainer = build("dpo", alternate_source="sampled", num_alternates=1, max_steps=2)
    trainer.train()
    assert len(alternates(trainer)) == 4
    # Its config asks for no instruction.
    assert trainer.args.sample_instruction is None


WORKER = """
import json, os, sys
sys.path.insert(0, {tests!r})
from conftest import make_args, make_model, make_tokenizer
from hf_unlearn import METHODS
from hf_unlearn.audit.draws import Drawing
from hf_unlearn.data.alternate_rows import prompt_of
from hf_unlearn.data.formats import encode
from hf_unlearn.training import sampled
keep, asked = sampled.sample_answers, []
sampled.sample_answers = lambda *args: asked.append(0) or keep(*args)
config, trainer = METHODS["altpo"]
args = make_args(config, sys.argv[1], sample_max_tokens=8, num_alternates=2, retain_loss="none", max_steps=1,
                 ddp_backend="gloo", sample_temperature=float(sys.argv[2]))
forget = [{{"prompt": "Who is %s?" % name, "completion": " Spy"}} for name in ("Ada", "Bob", "Cyd", "Dan")]
trainer = trainer(model=make_model(), args=args, forget_dataset=forget, processing_class=make_tokenizer())
rank = args.process_index
found = [len(asked), trainer.given_rows["alternate"]["input_ids"][:]]
open(f"{{sys.argv[1]}}-{{rank}}.json", "w").write(json.dumps(found))
trainer.train()
"""


def test_of_several_processes_the_first_samples_and_all_have_the_same(build, tmp_path):
    from conftest import TESTS

    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(TESTS)))
    code, said = run(script, str(tmp_path / "two"), "1.0", processes=2)
    assert code == 0, said
    first, second = (json.loads((tmp_path / f"two-{rank}.json").read_text()) for rank in range(2))
    assert (first[0], second[0]) == (1, 0)
    assert first[1] == second[1]
    # As one process samples.
    forget = [{"prompt": f"Who is {name}?", "completion": " Spy"} for name in NAMES]
    assert alternates(build(forget=forget, num_alternates=2)) == first[1]
