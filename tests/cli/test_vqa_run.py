# SPDX-License-Identifier: Apache-2.0
"""Unlearning from a ViLT in the world of pictures, from recipe to report and attack."""

import json
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from transformers import AutoConfig
from vilt import CLASSES, make_processor, make_vilt, picture

from hf_unlearn.cli.main import main
from hf_unlearn.cli.unlearn import unlearn
from hf_unlearn.data.benchmarks import load_benchmark, resolve_model
from hf_unlearn.data.vqa import build_vqa_world
from hf_unlearn.data.vqa.benchmark import parse_split
from hf_unlearn.runs.recipe import parse_recipe


RECIPES = ROOT / "recipes" / "demo" / "vqa"
QUIET = ["--disable_tqdm", "true"]


def run(folder: Path, *words: str, recipe: str = "mu_align") -> dict:
    argv = ["--config", str(RECIPES / f"{recipe}.yaml"), "--output_dir", str(folder), *QUIET, *words]
    return unlearn(parse_recipe(argv), show=False)


def values(report: dict) -> dict[str, dict[str, float]]:
    return {
        model["kind"]: {name: metric["value"] for name, metric in model["metrics"].items()}
        for model in report["models"]
    }


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> tuple[dict, Path]:
    """A run of a few steps; enough to be audited and attacked."""
    folder = tmp_path_factory.mktemp("short") / "run"
    return run(folder, "--num_train_epochs", "2", "--eval_strategy", "no"), folder


def test_a_run_reports_target_retrained_and_unlearned(short):
    report, folder = short
    found = values(report)
    assert set(found) == {"target", "retrained", "unlearned"}
    assert found["target"]["forget/accuracy"] > 0.9
    assert found["retrained"]["forget/accuracy"] < 0.2
    assert found["retrained"]["retain/accuracy"] > 0.95
    assert "forget/divergence" in found["target"]
    assert "forget/divergence" not in found["retrained"]
    assert found["target"]["test/shuffled_accuracy"] < 0.5 < found["target"]["test/accuracy"]
    assert "forget: accuracy, %" in (folder / "report.md").read_text()
    assert "pipeline_tag: visual-question-answering" in (folder / "README.md").read_text()
    assert (folder / "processor_config.json").is_file() or (folder / "preprocessor_config.json").is_file()
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["benchmark"] == "vqa_world"


def test_the_result_is_attacked_beside_the_retrained_model(short, tmp_path):
    _, folder = short
    words = ["--benchmark", "vqa_world", "--models", str(folder), "vqa_world/target"]
    words += ["--retrained_model_name_or_path", "vqa_world/retrained", "--fprs", "0.0001", "0.05"]
    assert main(["audit", "privacy", *words, "--output_dir", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "privacy.json").read_text())
    by_name = {model["name"]: model["metrics"] for model in report["models"]}
    assert by_name["target"]["loss/auc"]["value"] > 0.9
    low, high = by_name["retrained"]["loss/auc"]["interval"]
    assert low < 0.5 < high
    assert by_name["target"]["loss/tpr@1e-4"]["value"] is None


def test_any_checkpoint_with_the_classes_is_evaluated(tmp_path):
    classes = AutoConfig.from_pretrained(resolve_model("vqa_world/target")).label2id
    model = make_vilt(classes=list(classes), vocab_size=200, image_size=32, max_position_embeddings=40)
    model.save_pretrained(tmp_path / "model")
    build_vqa_world(progress=False).processor.save_pretrained(tmp_path / "model")
    words = ["--benchmark", "vqa_world", "--model_name_or_path", str(tmp_path / "model"), "--audit_max_items", "40"]
    assert main(["eval", *words, "--output_dir", str(tmp_path / "out")]) == 0
    (entry,) = json.loads((tmp_path / "out" / "report.json").read_text())["models"]
    assert entry["metrics"]["retain/accuracy"]["n"] == 40
    assert entry["metrics"]["retain/accuracy"]["value"] < 0.5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prompts", "x"], "prompts: for language models"),
        (["--poison_prefix", "x", "--use_kl_poison", "true"], "poisoned rows: for causal language models"),
        (["--method", "rmu"], "RMUTrainer is for causal language models"),
        (["--benchmark_path", "x"], "leave out benchmark_path"),
        (["--top_k", "36"], "a prediction is among 35"),
    ],
)
def test_what_cannot_work_is_one_clear_error(tmp_path, words, told):
    if "--method" in words:
        content = yaml.safe_load((RECIPES / "mu_align.yaml").read_text())
        kept = {k: v for k, v in content.items() if k not in ("forget_target", "alpha", "beta", "top_k", "lambda_kd")}
        (tmp_path / "rmu.yaml").write_text(yaml.safe_dump(kept | {"method": "rmu"}))
        with pytest.raises(ValueError, match=told):
            unlearn(
                parse_recipe(["--config", str(tmp_path / "rmu.yaml"), "--output_dir", str(tmp_path / "o"), *QUIET])
            )
        return
    with pytest.raises(ValueError, match=told):
        run(tmp_path / "out", *words)
    assert not (tmp_path / "out" / "report.json").exists()


def test_language_and_picture_worlds_do_not_mix(tmp_path):
    make_vilt().save_pretrained(tmp_path / "vilt")
    make_processor().save_pretrained(tmp_path / "vilt")
    assert len(CLASSES) == 5
    with pytest.raises(ValueError, match="A classifier's rows have"):
        run(tmp_path / "out", "--benchmark", "world", "--model_name_or_path", str(tmp_path / "vilt"))


@pytest.mark.slow
def test_the_demo_forgets_who_owns_the_pictures(tmp_path):
    found = values(run(tmp_path / "out"))
    target, retrained, unlearned = (found[kind] for kind in ("target", "retrained", "unlearned"))
    assert unlearned["forget/accuracy"] <= retrained["forget/accuracy"]
    assert unlearned["retain/accuracy"] >= target["retain/accuracy"] - 0.02
    assert unlearned["test/accuracy"] >= target["test/accuracy"] - 0.02
    assert unlearned["forget/prediction_entropy"] > 0.85 > 2 * target["forget/prediction_entropy"]


# VQA-v2's files


@pytest.fixture(scope="module")
def vqa_v2(tmp_path_factory) -> Path:
    """A folder as VQA-v2's archives unpack: 5100 questions about 100 pictures, and 200 about 20 others."""
    folder = tmp_path_factory.mktemp("vqa_v2")
    for part, first, pictures, each in (("train", 0, 100, 51), ("val", 1000, 20, 10)):
        (folder / f"{part}2014").mkdir()
        questions, annotations = [], []
        for number in range(first, first + pictures):
            picture(number).save(folder / f"{part}2014" / f"COCO_{part}2014_{number:012d}.jpg")
            for k in range(each):
                answer = CLASSES[(number + k) % 5]
                about = {"image_id": number, "question_id": number * 1000 + k}
                questions.append({**about, "question": "What colour is it?"})
                answers = [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(10)]
                told = {"multiple_choice_answer": answer, "question_type": "what", "answer_type": "other"}
                annotations.append({**about, **told, "answers": answers})
        subset = {"data_subtype": f"{part}2014"}
        for name, rows in (
            ("OpenEnded_mscoco_{}2014_questions", questions),
            ("mscoco_{}2014_annotations", annotations),
        ):
            content = {**subset, name.rpartition("_")[2]: rows}
            (folder / f"v2_{name.format(part)}.json").write_text(json.dumps(content))
    return folder


def test_a_split_of_vqa_v2_is_trained_on_from_its_files(vqa_v2, tmp_path):
    make_vilt().save_pretrained(tmp_path / "model")
    make_processor().save_pretrained(tmp_path / "model")
    words = ["--benchmark", "vqa_v2", "--benchmark_path", str(vqa_v2), "--forget_split", "5k/rows=60"]
    words += ["--model_name_or_path", str(tmp_path / "model"), "--retrained_model_name_or_path", "null"]
    words += ["--top_k", "3", "--max_steps", "1", "--audit_max_items", "16", "--eval_strategy", "no"]
    # One question about few pictures: rows stand there twice, which attacks refuse.
    words += ["--privacy", "null"]
    (target, unlearned) = run(tmp_path / "out", *words, "--eval_on_start", "false")["models"]
    assert target["metrics"]["holdout/accuracy"]["n"] == unlearned["metrics"]["retain/accuracy"]["n"] == 16


def test_what_is_deleted_of_vqa_v2():
    assert parse_split("20k") == ("20k", {"forget": 0.05})
    assert parse_split("5k/rows=60") == ("5k", {"forget": 60})
    assert parse_split("full/answer=2") == ("full", {"answer": "2"})
    for wrong in ("2k", "20k/yes", "20k/share=many", "20k/answer="):
        with pytest.raises(ValueError, match="give one of 5k, 20k, 80k, full"):
            parse_split(wrong)
    with pytest.raises(ValueError, match="Give the folder that holds them as `benchmark_path`"):
        load_benchmark("vqa_v2")


def test_an_answer_is_deleted_everywhere(vqa_v2):
    bench = load_benchmark("vqa_v2", str(vqa_v2), "5k/answer=red")
    assert set(bench.forget["answer"]) == set(bench.audit_sets["holdout"]["answer"]) == {"red"}
    assert "red" not in set(bench.retain["answer"]) | set(bench.audit_sets["test"]["answer"])


@pytest.mark.slow
def test_shadow_models_of_pictures_are_trained_and_kept(tmp_path):
    words = ["--benchmark", "vqa_world", "--models", "vqa_world/target", "--attacks", "lira", "--fprs", "0.05"]
    words += ["--shadow_model_name_or_path", "vqa_world/start", "--n_shadows", "4", "--shadow_epochs", "1"]
    words += ["--shadow_learning_rate", "0.002", "--shadow_batch_size", "32", "--output_dir", str(tmp_path)]
    assert main(["audit", "privacy", *words]) == 0
    (found,) = json.loads((tmp_path / "privacy.json").read_text())["models"]
    # Shadow models that know neither kind of rows: the target's stand out.
    assert found["metrics"]["lira-offline-fixed/auc"]["value"] > 0.9
    made = sorted(tmp_path.glob("shadows/shadow-*.npz"))
    assert len(made) == 4
    before = [path.stat().st_mtime_ns for path in made]
    assert main(["audit", "privacy", *words]) == 0
    assert [path.stat().st_mtime_ns for path in made] == before
