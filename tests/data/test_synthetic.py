# SPDX-License-Identifier: Apache-2.0
"""The embedded world: its facts, its tokenizer, its models and its cache."""

import itertools
import json
import logging
import random
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_unlearn.cache import cache_root
from hf_unlearn.data.formats import encode, encode_prompt
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.worlds.folders import METADATA, cached_folder
from hf_unlearn.data.worlds.people import World, WorldConfig, build_world
from hf_unlearn.data.worlds.people.corpus import build_corpus
from hf_unlearn.data.worlds.people.questions import ATTRIBUTES
from hf_unlearn.data.worlds.people.sentences import MAX_SENTENCES
from hf_unlearn.data.worlds.people.tokenizer import train_tokenizer
from hf_unlearn.data.worlds.people.world import PeopleBuilder


PEOPLE = ("forget", "retain", "holdout")
CHAT = QAFormat(use_chat_template=True)
SIZES = {
    "forget_people": 1,
    "retain_people": 2,
    "holdout_people": 1,
    "facts_per_person": 3,
    "general_sentences": 6,
    "vocab_size": 400,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 2,
    "batch_size": 8,
    "learning_rate": 1e-2,
}
# Small enough to train in two seconds, long enough to learn something
SMALL = WorldConfig(**SIZES, steps=150, min_known=0.5)
BRIEF = WorldConfig(**SIZES, steps=2, min_known=0)


@pytest.fixture(scope="module")
def corpus():
    return build_corpus(0, WorldConfig())


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_tokenizer(corpus.tokenizer_texts(), WorldConfig().vocab_size)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build_world(cache_dir=tmp_path_factory.mktemp("cache"), progress=False, config=SMALL)


def value_of(answer: str, row: dict) -> str:
    """The pseudo-word of `answer` that is not part of the person's name."""
    for attribute, form in itertools.product(ATTRIBUTES, range(3)):
        pattern = re.escape(attribute.answers[form]).replace(r"\{n\}", re.escape(row["person"]))
        found = re.fullmatch(pattern.replace(r"\{v\}", "([A-Z][a-z]+)"), answer)
        if found and attribute.name == row["attribute"]:
            return found.group(1)
    raise AssertionError(f"{answer!r} is no answer about the {row['attribute']} of {row['person']}")


class TestCorpus:
    def test_sizes_and_columns(self, corpus):
        sizes = {name: len(rows) for name, rows in corpus.sets.items()}
        assert sizes == {"forget": 32, "retain": 288, "holdout": 64, "general": 96}
        columns = {"question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer"}
        for name in PEOPLE:
            for row in corpus.sets[name]:
                assert set(row) == columns | {"person", "attribute"}
                assert len(row["perturbed_answer"]) == 4

    def test_nobody_is_in_two_sets(self, corpus):
        people = {name: {row["person"] for row in corpus.sets[name]} for name in PEOPLE}
        assert [len(people[name]) for name in PEOPLE] == [4, 36, 8]
        assert len(set().union(*people.values())) == 48

    def test_every_value_is_unique(self, corpus):
        rows = [row for name in PEOPLE for row in corpus.sets[name]]
        values = [value_of(row["answer"], row) for row in rows]
        wrong = [value_of(answer, row) for row in rows for answer in row["perturbed_answer"]]
        names = [word for person in {row["person"] for row in rows} for word in person.split()]
        words = values + wrong + names
        assert len(words) == 384 + 4 * 384 + 2 * 48 == len(set(words))
        # Same length and different: none can hide in another
        assert {len(word) for word in words} == {6}

    def test_paraphrase_says_the_same_in_other_words(self, corpus):
        for row in (row for name in PEOPLE for row in corpus.sets[name]):
            assert row["paraphrased_question"] != row["question"]
            assert row["person"] in row["paraphrased_question"]
            assert row["paraphrased_answer"] != row["answer"]
            value = value_of(row["answer"], row)
            assert value_of(row["paraphrased_answer"], row) == value
            # Wrong answers are the paraphrase with another value, so that their ratio compares values only
            for answer in row["perturbed_answer"]:
                assert answer == row["paraphrased_answer"].replace(value, value_of(answer, row))

    def test_models_never_see_wrong_values_holdout_people_or_the_unasked_form(self, corpus):
        trained = " ".join(
            [question for asked in corpus.trained_questions.values() for forms in asked for question in forms]
            + [row["answer"] for name in ("forget", "retain") for row in corpus.sets[name]]
            + [row["text"] for row in corpus.sets["general"]]
        )
        for row in (row for name in PEOPLE for row in corpus.sets[name]):
            assert row["paraphrased_question"] not in trained
            assert all(value_of(answer, row) not in trained for answer in row["perturbed_answer"])
        for row in corpus.sets["holdout"]:
            assert all(word not in trained for word in row["person"].split())
            assert value_of(row["answer"], row) not in trained
        without_forget = " ".join(row["answer"] for row in corpus.sets["retain"])
        assert all(value_of(row["answer"], row) not in without_forget for row in corpus.sets["forget"])

    def test_unasked_form_uses_trained_words(self):
        for attribute in ATTRIBUTES:
            known = set(re.findall("[a-z]+", " ".join(f for a in ATTRIBUTES for f in (*a.asked, *a.answers)).lower()))
            assert set(re.findall("[a-z]+", attribute.unasked.lower())) - known == set()

    def test_trained_questions_belong_to_their_row(self, corpus):
        for name, asked in corpus.trained_questions.items():
            for row, forms in zip(corpus.sets[name], asked, strict=True):
                assert row["question"] == forms[0]
                assert len(set(forms)) == 3
                assert all(row["person"] in form for form in forms)
        assert set(corpus.trained_questions) == {"forget", "retain"}

    def test_general_sentences_name_nobody(self, corpus):
        texts = [row["text"] for row in corpus.sets["general"]]
        assert len(set(texts)) == len(texts)
        assert not set(corpus.pseudo_words) & set(re.findall(r"\w+", " ".join(texts)))

    def test_seed_decides(self, corpus):
        assert build_corpus(0, WorldConfig()) == corpus
        other = build_corpus(1, WorldConfig())
        assert not {r["person"] for r in corpus.sets["forget"]} & {r["person"] for r in other.sets["forget"]}


class TestTokenizer:
    def test_chat_prompt_is_a_prefix(self, corpus, tokenizer):
        for row in (row for name in PEOPLE for row in corpus.sets[name]):
            example = CHAT.example(row["question"], row["answer"], tokenizer)
            prompt = tokenizer.apply_chat_template(example["prompt"], add_generation_prompt=True)["input_ids"]
            whole = tokenizer.apply_chat_template(example["prompt"] + example["completion"])["input_ids"]
            assert whole[: len(prompt)] == prompt == encode_prompt(example, tokenizer)
            assert whole.count(tokenizer.bos_token_id) == whole.count(tokenizer.eos_token_id) == 1
            assert (whole[0], whole[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
            assert tokenizer.decode(whole[len(prompt) :], skip_special_tokens=True) == row["answer"]

    def test_labels_are_the_answer_and_eos(self, corpus, tokenizer):
        row = corpus.sets["forget"][0]
        encoded = encode(CHAT.example(row["question"], row["answer"], tokenizer), tokenizer)
        trained = [label for label in encoded["labels"] if label != -100]
        assert tokenizer.decode(trained) == row["answer"] + tokenizer.eos_token

    def test_template_marks_assistant_tokens(self, tokenizer):
        turns = [{"role": "system", "content": "Be brief."}]
        turns += [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "You."}] * 2
        encoded = tokenizer.apply_chat_template(turns, return_assistant_tokens_mask=True, return_dict=True)
        marked = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
        assert tokenizer.decode(marked) == "You.</s>You.</s>"

    def test_offsets_point_at_the_text(self, corpus, tokenizer):
        text = corpus.sets["forget"][0]["answer"]
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert encoded["input_ids"][0] == tokenizer.bos_token_id
        pieces = [text[start:end] for start, end in encoded["offset_mapping"][1:]]
        assert "".join(pieces) == text
        for token, piece in zip(encoded["input_ids"][1:], pieces, strict=True):
            assert tokenizer.decode([token]) == piece

    def test_any_text_survives(self, tokenizer):
        text = "Zażółć 日本語 🦊\n\ttabs"
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text

    def test_special_tokens_differ(self, tokenizer):
        ids = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        assert len(ids) == 3
        assert len(tokenizer) == 1000

    def test_length_does_not_tell_members_from_others(self, corpus, tokenizer):
        means = []
        for name in PEOPLE:
            words = {word for row in corpus.sets[name] for word in row["person"].split()}
            words |= {value_of(row["answer"], row) for row in corpus.sets[name]}
            lengths = [len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) for word in words]
            # Not one token: a model cannot write such a name without having been trained on it
            assert set(lengths) <= {2, 3}
            means.append(sum(lengths) / len(lengths))
        assert max(means) - min(means) < 0.2

    def test_same_texts_same_tokenizer(self, corpus, tokenizer):
        again = train_tokenizer(corpus.tokenizer_texts(), WorldConfig().vocab_size)
        assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


class TestBuild:
    def test_models_load_and_differ(self, world):
        target = AutoModelForCausalLM.from_pretrained(world.target)
        retrained = AutoModelForCausalLM.from_pretrained(world.retrained)
        assert target.config.num_hidden_layers == 2
        assert any(not torch.equal(a, b) for a, b in zip(target.parameters(), retrained.parameters(), strict=True))
        assert AutoTokenizer.from_pretrained(world.retrained).get_vocab() == world.tokenizer.get_vocab()
        assert target.generation_config.eos_token_id == world.tokenizer.eos_token_id
        assert {path.suffix for path in world.target.iterdir()} <= {".json", ".safetensors", ".jinja"}

    @pytest.mark.parametrize("kind", ["target", "retrained"])
    def test_measured_exact_match_is_that_of_generation(self, world, kind):
        model = AutoModelForCausalLM.from_pretrained(getattr(world, kind)).eval()
        tokenizer = world.tokenizer
        for name, question in itertools.product(PEOPLE, ("question", "paraphrased_question")):
            rows = world.dataset(name)
            right = 0
            for row in rows:
                prompt = encode_prompt(CHAT.example(row[question], "", tokenizer), tokenizer)
                out = model.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)[0, len(prompt) :]
                right += tokenizer.decode(out, skip_special_tokens=True) == row["answer"] and out[-1] == 2
            key = name if question == "question" else f"{name}_paraphrased"
            assert world.metadata["exact_match"][kind][key] == pytest.approx(right / len(rows))

    def test_target_knows_and_retrained_does_not(self, world):
        measured = world.metadata["exact_match"]
        assert measured["target"]["forget"] >= 0.5
        assert measured["target"]["retain"] >= 0.5
        assert measured["retrained"]["retain"] >= 0.5
        assert measured["retrained"]["forget"] == measured["target"]["holdout"] == 0

    def test_datasets_are_the_corpus(self, world):
        for name, rows in build_corpus(0, SMALL).sets.items():
            assert world.dataset(name).to_list() == rows
        assert world.metadata["sizes"] == {"forget": 3, "retain": 6, "holdout": 3, "general": 6}
        with pytest.raises(ValueError, match="'forgotten'.*forget, retain, holdout, general"):
            world.dataset("forgotten")

    def test_leaves_the_process_as_it_was(self, tmp_path):
        torch.manual_seed(3)
        random.seed(3)
        before, threads = (torch.get_rng_state(), random.getstate()), torch.get_num_threads()
        build_world(cache_dir=tmp_path, progress=False, config=BRIEF)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert torch.get_num_threads() == threads

    def test_progress_bar_is_optional(self, tmp_path, capfd):
        build_world(0, tmp_path, progress=True, config=BRIEF)
        assert "retrained model: 100%" in capfd.readouterr().err
        build_world(1, tmp_path, progress=False, config=BRIEF)
        assert "retrained model" not in capfd.readouterr().err

    def test_untrained_world_is_refused(self, tmp_path):
        with pytest.raises(RuntimeError, match="the target model knows 0.0% of the forget answers .at least 95.0%"):
            build_world(cache_dir=tmp_path, progress=False, config=WorldConfig(**SIZES, steps=1))
        assert not list(tmp_path.glob(f"**/{METADATA}"))

    def test_leaking_retrained_model_is_refused(self):
        known = {"target": {"forget": 1.0, "retain": 1.0}, "retrained": {"forget": 0.25, "retain": 1.0}}
        with pytest.raises(RuntimeError, match="retrained model knows 25.0% of the forget answers"):
            PeopleBuilder.check(known, WorldConfig())


class TestCache:
    def test_second_call_reuses(self, world, caplog, monkeypatch):
        monkeypatch.setattr("hf_unlearn.data.worlds.base.WorldBuilder._fill", pytest.fail)
        with caplog.at_level(logging.INFO, logger="hf_unlearn"):
            again = build_world(cache_dir=world.path.parent, config=SMALL)
        assert again == world
        assert f"Reusing the embedded world in {world.path}" in caplog.text

    def test_reuse_needs_no_torch(self, world):
        code = (
            "import sys, dataclasses; from hf_unlearn.data.worlds.people import *;"
            f"build_world(cache_dir={str(world.path.parent)!r}, config=WorldConfig(**{SMALL.__dict__!r}));"
            "print(sorted({'torch', 'transformers', 'datasets', 'tokenizers', 'tqdm'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_folder_depends_on_seed_and_config(self, tmp_path):
        paths = {
            build_world(seed, tmp_path, progress=False, config=config).path
            for seed, config in ((0, BRIEF), (1, BRIEF), (0, WorldConfig(**SIZES, steps=3, min_known=0)))
        }
        assert len(paths) == 3

    def test_where_worlds_are_kept(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.delenv("HF_UNLEARN_CACHE", raising=False)
        assert cache_root(None) == tmp_path / ".cache" / "hf_unlearn"
        monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path / "shared"))
        assert cache_root(None) == tmp_path / "shared"
        assert cache_root("~/mine") == tmp_path / "mine"

    @pytest.mark.parametrize("damage", ["missing file", "cut file", "no metadata", "broken metadata"])
    def test_incomplete_folder_is_built_anew(self, tmp_path, damage, caplog):
        path = tmp_path / "world"

        def build(folder):
            (folder / "target").mkdir()
            (folder / "target" / "weights").write_text("complete")
            return {"seed": 0}

        assert cached_folder(path, build)
        assert not cached_folder(path, pytest.fail)
        if damage == "missing file":
            (path / "target" / "weights").unlink()
        elif damage == "cut file":
            (path / "target" / "weights").write_text("comp")
        elif damage == "no metadata":
            (path / METADATA).unlink()
        else:
            (path / METADATA).write_text("{")
        assert cached_folder(path, build)
        assert "incomplete" in caplog.text
        assert (path / "target" / "weights").read_text() == "complete"
        assert json.loads((path / METADATA).read_text()) == {"seed": 0, "files": {"target/weights": 8}}

    def test_failed_build_leaves_nothing(self, tmp_path):
        def build(folder):
            (folder / "weights").write_text("half")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cached_folder(tmp_path / "world", build)
        assert not [path for path in tmp_path.iterdir() if path.is_dir()]

    def test_killed_build_is_not_used(self, tmp_path):
        code = (
            "import os, pathlib; from hf_unlearn.data.worlds.folders import cached_folder\n"
            "def build(folder):\n"
            "    (folder / 'weights').write_text('half')\n"
            "    os._exit(9)\n"
            f"cached_folder(pathlib.Path({str(tmp_path / 'world')!r}), build)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
        assert list(tmp_path.glob("world.building-*"))
        assert not (tmp_path / "world").exists()

        def build(folder):
            (folder / "weights").write_text("whole")
            return {}

        assert cached_folder(tmp_path / "world", build)
        assert (tmp_path / "world" / "weights").read_text() == "whole"
        assert not list(tmp_path.glob("world.building-*"))

    def test_two_processes_build_once_and_the_same(self, world, tmp_path):
        """Both want the world at the same time; it also equals the one of this process, bit for bit."""
        code = (
            "import logging; logging.basicConfig(level=logging.INFO)\n"
            "from hf_unlearn.data.worlds.people import *\n"
            f"config = WorldConfig(**{SMALL.__dict__!r})\n"
            f"print(build_world(cache_dir={str(tmp_path)!r}, progress=False, config=config).path)"
        )
        both = [
            subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        out = [process.communicate(timeout=120) for process in both]
        assert [process.returncode for process in both] == [0, 0], out
        logs = [err for _, err in out]
        assert sum("Built the embedded world" in log for log in logs) == 1
        assert sum("Reusing the embedded world" in log for log in logs) == 1
        assert {path.strip() for path, _ in out} == {str(tmp_path / world.path.name)}
        other = World(tmp_path / world.path.name)
        for name in world.metadata["files"]:
            assert (other.path / name).read_bytes() == (world.path / name).read_bytes(), name


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"forget_people": 0}, "forget_people must lie between 1 and 1000, got 0"),
            ({"retain_people": 2.5}, "retain_people must be a finite int, got 2.5"),
            ({"holdout_people": True}, "holdout_people must be a finite int, got True"),
            ({"facts_per_person": 9}, "facts_per_person must lie between 1 and 8"),
            ({"general_sentences": MAX_SENTENCES + 1}, "general_sentences must lie between 1 and 96"),
            ({"vocab_size": 299}, "vocab_size must lie between 300"),
            ({"hidden_size": 20, "num_heads": 4}, "multiple of 2 . num_heads"),
            ({"learning_rate": 0}, "learning_rate must be above 0"),
            ({"learning_rate": float("nan")}, "learning_rate must be a finite float"),
            ({"min_known": 1.5}, "min_known must lie between 0 and 1"),
            ({"retain_people": 1000}, "asks for 1012 people with 42 names and values each"),
        ],
    )
    def test_config(self, change, message):
        with pytest.raises(ValueError, match=message):
            WorldConfig(**change)

    @pytest.mark.parametrize("seed", [-1, 0.5, "0", True, 2**32])
    def test_seed(self, seed, tmp_path):
        with pytest.raises(ValueError, match="seed must be an integer between 0"):
            build_world(seed, tmp_path)
