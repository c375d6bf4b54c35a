# SPDX-License-Identifier: Apache-2.0
"""`tofu_mini` on files of TOFU's form, and models that `prepare` makes of it."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import make_model, make_tokenizer

from hf_unlearn.cli.main import main
from hf_unlearn.cli.unlearn import unlearn
from hf_unlearn.data.benchmarks import load_benchmark, resolve_model


def _write(folder, name: str, authors, perturbed: bool = True) -> None:
    rows = []
    for author in authors:
        for i in range(20):
            row = {"question": f"{author}: {i}?", "answer": f"a{author} b{i}"}
            if perturbed:
                row |= {"paraphrased_question": f"{author}, {i}?", "paraphrased_answer": f"b{i} a{author}"}
                row |= {"perturbed_answer": ["c", "d"]}
            rows.append(row)
    (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """TOFU's files, of the same authors in the same order, with short rows."""
    folder = tmp_path_factory.mktemp("tofu")
    _write(folder, "full", range(200), perturbed=False)
    _write(folder, "retain_perturbed", range(20))
    _write(folder, "forget10_perturbed", range(180, 200))
    for name in ("real_authors_perturbed", "world_facts_perturbed"):
        _write(folder, name, [0])
    return str(folder)


def _authors(rows) -> set[int]:
    return {int(question.split(":")[0]) for question in rows["question"]}


def test_authors_are_apart(files):
    bench = load_benchmark("tofu_mini", files)
    assert _authors(bench.forget) == _authors(bench.audit_sets["forget"]) == {198, 199}
    assert _authors(bench.retain) == _authors(bench.audit_sets["retain"]) == set(range(8))
    assert _authors(bench.audit_sets["holdout"]) == {180, 181, 182}
    assert all("perturbed_answer" in rows.column_names for rows in bench.audit_sets.values())
    assert (len(bench.forget), len(bench.retain), len(bench.audit_sets["holdout"])) == (40, 160, 60)


def test_any_authors_can_be_forgotten(files):
    bench = load_benchmark("tofu_mini", files, forget_targets=["3", "181"])
    assert _authors(bench.forget) == {3, 181}
    assert _authors(bench.retain) == {0, 1, 2, 4, 5, 6, 7, 8}
    assert _authors(bench.audit_sets["holdout"]) == {180, 182, 183}
    # Of authors from both ends there is no file with wrong answers.
    assert bench.audit_sets["forget"]["question"] == bench.forget["question"]


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"forget_targets": ["200"]}, "give numbers of TOFU's authors, 0 to 199, each once"),
        ({"forget_targets": ["7", "7"]}, "each once"),
        ({"forget_targets": ["Stephen King"]}, "give numbers"),
        ({"forget_split": "forget01"}, "forgets authors by number"),
    ],
)
def test_what_names_no_authors_is_refused(files, more, error):
    with pytest.raises(ValueError, match=error):
        load_benchmark("tofu_mini", files, **more)


def test_the_real_files_hold_what_the_slice_says(tofu_path):
    mini, whole = load_benchmark("tofu_mini", str(tofu_path)), load_benchmark("tofu", str(tofu_path), "forget01")
    assert mini.forget["question"] == whole.forget["question"]
    assert mini.audit_sets["forget"].to_list() == whole.audit_sets["forget"].to_list()
    assert mini.audit_sets["retain"]["question"] == mini.retain["question"]
    trained = {*mini.forget["question"], *mini.retain["question"]}
    assert not trained & {*mini.audit_sets["holdout"]["question"]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "Tiny-Base"
    tokenizer = make_tokenizer()
    make_model().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


WORDS = ["--max_steps", "3", "--learning_rate", "1e-3", "--use_cpu", "true", "--disable_tqdm", "true"]


def _prepare(files, base, *words: str) -> int:
    return main(["prepare", "tofu_mini", "--model_name_or_path", str(base), "--benchmark_path", files, *WORDS, *words])


def test_models_are_made_once_and_found_by_name(files, base, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path))
    assert _prepare(files, base, "--retrained", "2") == 0
    told = capsys.readouterr().out
    assert "tofu_mini/tiny-base/target" in told
    assert "forget/probability" in told
    made = {kind: resolve_model(f"tofu_mini/tiny-base/{kind}") for kind in ("target", "retrained", "retrained-1")}
    weights = {kind: (tmp_path / path / "model.safetensors").read_bytes() for kind, path in made.items()}
    assert len({*weights.values()}) == 3
    assert not list(tmp_path.glob("prepared/*/checkpoint-*"))
    monkeypatch.setattr("hf_unlearn.cli.unlearn.unlearn", None)
    assert _prepare(files, base, "--retrained", "2") == 0
    again = [line for line in told.splitlines() if line.startswith("tofu_mini/")]
    assert capsys.readouterr().out.splitlines() == again
    assert len(again) == 3


def test_two_that_make_the_same_models_at_once_make_each_once(files, base, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path))
    made = []

    def counted(recipe, **how):
        made.append(recipe.training.output_dir)
        unlearn(recipe, **how)

    monkeypatch.setattr("hf_unlearn.cli.unlearn.unlearn", counted)
    with ThreadPoolExecutor(2) as both:
        ended = [both.submit(_prepare, files, base) for _ in range(2)]
    assert [one.result() for one in ended] == [0, 0]
    assert len(made) == len({*made}) == 2


def test_attacks_tell_forget_rows_from_authors_that_no_model_saw(files, base, tmp_path):
    words = ["--benchmark", "tofu_mini", "--benchmark_path", files, "--attacks", "loss", "--fprs", "0.1"]
    assert main(["audit", "privacy", "--models", str(base), "--output_dir", str(tmp_path), *words]) == 0
    (model,) = json.loads((tmp_path / "privacy.json").read_text())["models"]
    assert (model["settings"]["n"]["forget"], model["settings"]["n"]["nonmember"]) == (40, 60)


def test_other_rows_make_other_models(files, base, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path))
    assert _prepare(files, base) == 0
    first = resolve_model("tofu_mini/tiny-base/target")
    assert _prepare(files, base, "--forget_targets", "3") == 0
    assert resolve_model("tofu_mini/tiny-base/target") != first


def test_what_is_not_made_is_told_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="hf-unlearn prepare tofu_mini --model_name_or_path BASE --name nobody"):
        resolve_model("tofu_mini/nobody/target")
    assert resolve_model("someone/model") == "someone/model"
    assert resolve_model("./a/b/target") == "./a/b/target"


def test_embedded_models_are_named(capsys, monkeypatch):
    monkeypatch.setattr("hf_unlearn.data.benchmarks.resolve_model", lambda name: f"/made/{name}")
    assert main(["prepare", "vqa_world"]) == 0
    assert "vqa_world/target: /made/vqa_world/target" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        (["tofoo"], "allowed: tofu, tofu_mini"),
        (["rwku", "--model_name_or_path", "x"], "There is no recipes/rwku/prepare.yaml"),
        (["world", "--model_name_or_path", "x"], "made from weights of their own"),
        (["tofu_mini", "--retrained", "0"], "give at least 1"),
        (["tofu_mini", "--learning_rat", "1"], "learning_rate"),
    ],
)
def test_bad_words_are_refused(argv, error, capsys):
    assert main(["prepare", *argv]) == 2
    assert error in capsys.readouterr().err
