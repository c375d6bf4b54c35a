# SPDX-License-Identifier: Apache-2.0
"""RWKU's files and prompts: which rows are found for which targets, and how they are asked."""

import json
import shutil

import pytest
import rwku_rows
from conftest import make_model, make_tokenizer
from rwku_rows import PEOPLE, SUBSETS

from hf_unlearn.data.benchmarks import load_benchmark
from hf_unlearn.data.load_rwku import load_probes, load_rwku
from hf_unlearn.data.qa import QAFormat
from hf_unlearn.data.rwku import files as rwku_files
from hf_unlearn.data.rwku.files import CORPORA, FLUENCY, MEMBERS, PROBES, TARGETS, RwkuFiles
from hf_unlearn.data.rwku.prompts import encode_turn, fluency_turn, probe_turn
from hf_unlearn.data.rwku.targets import OTHERS, find_targets, other_targets
from hf_unlearn.data.worlds.rwku.fixture import write_fixture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("rwku") / "All"
    rwku_rows.write_rwku(path, make_model(), make_tokenizer())
    return path


def test_the_rows_of_some_targets_are_found(folder):
    rwku = load_rwku(["ada bell", "3_Cyd_Dunn"], folder, "train_positive_llama3")
    assert rwku.targets == {"1_Ada_Bell": "Ada Bell", "3_Cyd_Dunn": "Cyd Dunn"}
    assert set(rwku.audit_sets) == {*PROBES, *MEMBERS, *FLUENCY}
    for name, rows in rwku.audit_sets.items():
        assert set(rows["subject"]) == {"Ada Bell", "Cyd Dunn"}
        assert ({"question", "answer", "type"} if name in PROBES else {"text"}) <= set(rows.column_names)
    assert rwku.audit_sets["forget_aa"]["type"][:3] == [kind for kind, *_ in SUBSETS["forget_aa"]]
    assert set(rwku.forget["text"]) == {f"{name} is a spy who wrote a novel." for name in ("Ada Bell", "Cyd Dunn")}
    # Rows to keep are the others', of the same corpus.
    assert set(rwku.retain["text"]) == {"Bob Cole is a spy who wrote a novel."}
    passages = load_rwku(["Bob Cole"], folder, "train_original_passage")
    assert passages.forget["text"][:] == ["Bob Cole, of Oslo, is a spy."]
    assert load_rwku(["Bob Cole"], folder).forget is None
    assert load_probes("neighbor_qa", ["Bob Cole"], folder)["subject"][:] == ["Bob Cole"] * 2


def test_the_people_that_are_shipped_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    people = ["Albert Einstein", "Charles Darwin", "William Shakespeare", "Leonardo da Vinci"]
    for name in people:
        bench = load_benchmark("rwku", "recipes/real/people", "train_positive_llama3", [name])
        assert {*bench.audit_sets} == {*PROBES, *MEMBERS, *FLUENCY}
        assert len({*bench.audit_sets["forget_aa"]["type"]}) == 9
        assert {*bench.forget["subject"]} == {name}
        assert {*bench.retain["subject"]} == {*people} - {name}
        # Neighbours are others, and what is asked about them is not about the target.
        near = bench.audit_sets["neighbor_qa"]
        assert not any(name in question for question in near["question"][:])


def test_the_folder_above_and_one_folder_a_target_are_read_too(folder, tmp_path):
    wanted = load_rwku(["Ada Bell", "Cyd Dunn"], folder, "train_original_passage")
    above = load_rwku(["Ada Bell", "Cyd Dunn"], folder.parent, "train_original_passage")
    target = tmp_path / "RWKU" / "Target"
    for number, name in enumerate(PEOPLE, start=1):
        own = target / f"{number}_{name.replace(' ', '_')}"
        own.mkdir(parents=True)
        for file in folder.glob("*.json"):
            rows = [row for row in json.loads(file.read_text()) if name in (row.get("subject"), row.get("target"))]
            (own / file.name).write_text(json.dumps(rows))
    by_target = load_rwku(["1_Ada_Bell", "Cyd Dunn"], target.parent, "train_original_passage")
    for found in (above, by_target):
        assert found.targets == wanted.targets
        assert found.forget.to_list() == wanted.forget.to_list()
        for name, rows in wanted.audit_sets.items():
            assert found.audit_sets[name].to_list() == rows.to_list()
    # Without its intro the folder's name says who it is; a set that RWKU may lack is left out.
    (target / "1_Ada_Bell" / "intro.json").unlink()
    (target / "1_Ada_Bell" / "fluency.json").unlink()
    assert "fluency" not in load_rwku(["Ada Bell"], target).audit_sets
    (target / "1_Ada_Bell" / "forget_level2.json").unlink()
    with pytest.raises(ValueError, match="1_Ada_Bell/forget_level2.json is missing"):
        load_rwku(["Ada Bell"], target)


def test_the_hub_is_asked_for_rwkus_configurations(folder, monkeypatch):
    asked = []
    plain = rwku_files.load_rows

    def load_rows(name, config=None, split="train"):
        assert name == "jinzhuoran/RWKU"
        asked.append((config, split))
        file = next(s.file for s in (TARGETS, *PROBES.values(), *CORPORA.values()) if s.config == config)
        return plain(str(folder / file))

    monkeypatch.setattr(rwku_files, "load_rows", load_rows)
    rows = load_probes("forget_fb", ["Bob Cole"])
    assert set(rows["subject"]) == {"Bob Cole"}
    files = RwkuFiles()
    assert len(files.rows(CORPORA["train_original_passage"], PEOPLE)) == 3
    assert asked == [("forget_target", "train"), ("forget_level1", "test"), ("train_original_passage", "train")]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["Ada Bel"], "RWKU has no target 'Ada Bel' among its 3. Did you mean 'Ada Bell'?"),
        (["Dunn"], "Did you mean 'Cyd Dunn'?"),
        (["Zzyzx"], "Give names or ids as RWKU has them"),
        (["Ada Bell", "1_Ada_Bell"], "forget_targets names 'Ada Bell' twice"),
        ([], "RWKU has 3 targets, among them 'Ada Bell'.*Give `forget_targets`"),
        (None, "Give `forget_targets`"),
    ],
)
def test_an_unknown_target_is_told_with_near_names(folder, wanted, message):
    with pytest.raises(ValueError, match=message):
        load_rwku(wanted, folder)


def test_files_that_are_missing_or_something_else_are_told(folder, tmp_path):
    with pytest.raises(ValueError, match="forget_split='passage'; RWKU has train_positive_llama3"):
        load_rwku(["Ada Bell"], folder, "passage")
    with pytest.raises(ValueError, match="No folder at benchmark_path="):
        load_rwku(["Ada Bell"], tmp_path / "none")
    with pytest.raises(ValueError, match="holds neither intro.json"):
        load_rwku(["Ada Bell"], tmp_path)
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    (own / "forget_level1.json").write_text(json.dumps([{"query": "a", "subject": "Ada Bell"}]))
    with pytest.raises(ValueError, match="forget_fb has the columns .*no answer"):
        load_rwku(["Ada Bell"], own)
    (own / "forget_level1.json").write_text(json.dumps([{"query": "a", "answer": "b"}]))
    with pytest.raises(ValueError, match=r"forget_level1.json has the columns .*no 'subject'"):
        load_rwku(["Ada Bell"], own)
    (own / "forget_level1.json").write_text(json.dumps([{"query": "a", "answer": "b", "subject": "Bob Cole"}]))
    with pytest.raises(ValueError, match="has no rows about 'Ada Bell'"):
        load_rwku(["Ada Bell"], own)
    with pytest.raises(ValueError, match="are of rwku and tofu_mini; benchmark='world' has none"):
        load_benchmark("world", forget_targets=["Ada Bell"])


def test_others_are_few_and_always_the_same():
    known = {f"{i}_P_{i}": f"P {i}" for i in range(200)}
    found = find_targets(["P 3", "p 17"], known)
    others = other_targets(found, known)
    assert len(set(others)) == OTHERS
    assert not set(others) & {"P 3", "P 17"}
    assert others == other_targets(dict(reversed(found.items())), known)
    assert others != other_targets({"4_P_4": "P 4"}, known)


@pytest.mark.parametrize("chat", [True, False])
def test_prompts_are_rwkus_byte_for_byte(chat):
    tokenizer = make_tokenizer()
    if not chat:
        tokenizer.chat_template = None
    for subset, kinds in SUBSETS.items():
        for kind, form, prefix in kinds:
            turn = probe_turn(subset, "Who {is} it?", kind)
            ids = encode_turn(turn, tokenizer, QAFormat())
            text = rwku_rows.prompt_text(tokenizer, form.format("Who {is} it?"), prefix)
            assert tokenizer.decode(ids) == text if chat else tokenizer.decode(ids) == f"<s>{text}"
            assert ids.count(tokenizer.bos_token_id) == 1
    assert fluency_turn("Sing.") == ("Instruction: Sing.\n", "")
    # Elsewhere the types of attacks mean nothing.
    assert probe_turn("forget_qa", "Who?", "affirmative suffix").prefix == "Answer:"


def test_the_embedded_world_is_rwku_in_small(tmp_path):
    names = write_fixture(tmp_path / "All")
    rwku = load_rwku(names[:1], tmp_path, "train_positive_phi3")
    sizes = {name: len(rows) for name, rows in rwku.audit_sets.items()}
    assert sizes == {
        "forget_fb": 8, "forget_qa": 8, "forget_aa": 18, "neighbor_fb": 12, "neighbor_qa": 12,
        "forget_members": 8, "retain_members": 6, "fluency": 5,
    }  # fmt: skip
    assert len(set(rwku.audit_sets["forget_aa"]["type"])) == 9
    # What is asked of neighbours is of nobody who is a target, and so of no row to keep.
    targets = {row["target"] for row in json.loads((tmp_path / "All" / "intro.json").read_text())}
    assert len(targets) == 16
    rows = json.loads((tmp_path / "All" / "neighbor_level2.json").read_text())
    assert not {row["neighbor"] for row in rows} & targets
    assert all(names[0] in text for text in rwku.forget["text"])
    assert not any(names[0] in text for text in rwku.retain["text"])
    blank = rwku.audit_sets["forget_fb"][0]
    assert blank["question"].count("___") == 1
    assert blank["answer"] not in blank["question"]
    # Files are the same each time, so that what is trained on them can be kept.
    before = {file.name: file.read_text() for file in (tmp_path / "All").iterdir()}
    write_fixture(tmp_path / "All")
    assert before == {file.name: file.read_text() for file in (tmp_path / "All").iterdir()}
