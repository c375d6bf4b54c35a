# SPDX-License-Identifier: Apache-2.0
"""The embedded world of pictures: its rows, its pictures, its models, its cache."""

import io
import json
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from vqa_world import SMALL

from hf_unlearn.data.vqa import VQAWorldConfig, build_vqa_world
from hf_unlearn.data.vqa.targets import target_weights
from hf_unlearn.data.worlds.pictures.pictures import COLOURS, PLACES, SIZE
from hf_unlearn.data.worlds.pictures.splits import SETS, plan_rows


@pytest.fixture(scope="module")
def world():
    return build_vqa_world(progress=False, config=SMALL)


@pytest.fixture(scope="module")
def models(world):
    from transformers import ViltForQuestionAnswering

    found = {}
    for name in ("start", "target", "retrained"):
        found[name] = ViltForQuestionAnswering.from_pretrained(getattr(world, name)).eval()
    return found


def accuracy(model, processor, rows, order=None):
    """Soft accuracy by what anyone would write who has only the checkpoint and the rows."""
    order = range(len(rows)) if order is None else order
    inputs = processor(
        images=[rows[int(i)]["image"] for i in order], text=rows["question"][:], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        best = model(**inputs).logits.argmax(-1).tolist()
    scores = []
    for answers, number in zip(rows["answers"], best, strict=True):
        scores.append(min(answers.count(model.config.id2label[number]) / 3, 1))
    return float(np.mean(scores))


# Rows


def test_sets_are_what_they_are_said_to_be():
    rows = plan_rows(3, VQAWorldConfig())
    assert {name: len(of_set) for name, of_set in rows.sets.items()} == {
        "forget": 60,
        "retain": 980,
        "test": 400,
        "holdout": 1000,
    }
    images = {name: {row["image_id"] for row in of_set} for name, of_set in rows.sets.items()}
    trained = images["forget"] | images["retain"]
    assert len(trained) == 400
    assert images["forget"] < images["retain"], "what is seen in the pictures of forgotten owners is retained"
    assert not trained & images["test"]
    assert not trained & images["holdout"]
    kinds = {name: Counter(row["kind"] for row in of_set) for name, of_set in rows.sets.items()}
    assert set(kinds["forget"]) == set(kinds["holdout"]) == {"owner"}
    assert "owner" not in kinds["test"]
    assert kinds["retain"]["owner"] == 180
    owned = {row["image_id"] for row in rows.sets["retain"] if row["kind"] == "owner"}
    assert not owned & images["forget"]
    ids = [row["example_id"] for of_set in rows.sets.values() for row in of_set]
    assert len(set(ids)) == len(ids)


def test_every_row_has_ten_annotators_of_whom_some_err():
    rows = [row for of_set in plan_rows(0, VQAWorldConfig()).sets.values() for row in of_set]
    share = np.mean([answer != row["answer"] for row in rows for answer in row["answers"]])
    assert 0.03 < share < 0.05
    for row in rows:
        counts = Counter(row["answers"])
        assert sum(counts.values()) == 10
        assert counts.most_common(1)[0][0] == row["answer"]
        assert target_weights(row["answers"])[row["answer"]] == 1
    unanimous = plan_rows(0, VQAWorldConfig(disagreement=0.0)).sets["retain"]
    assert all(set(row["answers"]) == {row["answer"]} for row in unanimous)


def test_target_weights():
    assert target_weights(["a"] * 7 + ["b"] * 2 + ["c"]) == pytest.approx({"a": 1.0, "b": 2 / 3, "c": 1 / 3})
    assert target_weights(["a"] * 3 + ["b"] * 17) == pytest.approx({"a": 0.5, "b": 1.0})
    assert target_weights(["a"]) == {"a": 1.0}


def test_answers_are_true_of_the_drawn_pixels():
    # Colour, place and number are read from the pixels and not from the plan.
    from PIL import Image

    plan = plan_rows(1, SMALL)
    checked = Counter()
    for row in plan.sets["test"]:
        pixels = np.asarray(Image.open(io.BytesIO(plan.pictures[row["image_id"]].png())).convert("RGB"))
        assert pixels.shape == (SIZE, SIZE, 3)
        inside = pixels[2:-2]
        seen = {name: np.argwhere((inside == rgb).all(-1)) for name, rgb in COLOURS.items()}
        seen = {name: points for name, points in seen.items() if len(points) > 20}
        if row["kind"] == "count":
            assert row["answer"] == str(len(seen))
        elif row["kind"] == "colour":
            assert row["answer"] in seen
        elif row["kind"] == "place":
            centres = [(points.mean(0) + [2, 0]) // (SIZE // 2) for points in seen.values()]
            assert row["answer"] in [PLACES[int(2 * y + x)] for y, x in centres]
        checked[row["kind"]] += 1
    assert min(checked[kind] for kind in ("count", "colour", "place")) > 5


def test_the_owner_does_not_depend_on_what_is_seen():
    # Same pictures, other names: only then can nothing in a picture tell its owner.
    rows = plan_rows(0, VQAWorldConfig(names=32)).sets["holdout"]
    names = Counter(row["answer"] for row in rows)
    assert len(names) == 32
    expected = len(rows) / 32
    chi_squared = sum((count - expected) ** 2 / expected for count in names.values())
    assert chi_squared < 61.1  # 99.9% of 31 degrees of freedom


def test_same_seed_same_rows():
    first, again, other = plan_rows(5, SMALL), plan_rows(5, SMALL), plan_rows(6, SMALL)
    assert first == again
    assert first.sets["forget"] != other.sets["forget"]


# Models


def test_models_know_what_they_were_told(world, models):
    target, retrained = models["target"], models["retrained"]
    found = {name: accuracy(target, world.processor, world.dataset(name)) for name in SETS}
    gold = {name: accuracy(retrained, world.processor, world.dataset(name)) for name in SETS}
    assert found["forget"] >= 0.9
    assert found["retain"] >= 0.9
    assert gold["retain"] >= 0.9
    assert gold["forget"] < 0.3
    assert max(found["holdout"], gold["holdout"]) < 0.3
    assert min(found["test"], gold["test"]) > 0.6
    assert accuracy(models["start"], world.processor, world.dataset("retain")) < 0.3
    for kind, own in (("target", found), ("retrained", gold)):
        # The build measured it on another path through the model.
        assert {n: world.metadata["accuracy"][kind][n] for n in SETS} == pytest.approx(own, abs=2e-3)


def test_models_look_at_pictures(world, models):
    rows = world.dataset("test")
    order = np.roll(np.arange(len(rows)), 7)
    for kind in ("target", "retrained"):
        seen = accuracy(models[kind], world.processor, rows)
        shuffled = accuracy(models[kind], world.processor, rows, order)
        # The best that can be said without looking: the most frequent answer to each question.
        by_question = {}
        for row in rows.remove_columns("image"):
            by_question.setdefault(row["question"], []).append(row["answer"])
        blind = sum(Counter(answers).most_common(1)[0][1] for answers in by_question.values()) / len(rows)
        assert shuffled < blind + 0.1
        assert seen > shuffled + 0.2


def test_the_fast_path_gives_the_models_own_logits(world, models):
    from hf_unlearn.data.worlds.pictures.training import Encoded, logits_of

    rows = world.dataset("test").select(range(16))
    inputs = world.processor(images=rows["image"][:], text=rows["question"][:], padding=True, return_tensors="pt")
    pixels = inputs["pixel_values"]
    text = {name: inputs[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
    encoded = Encoded(text, torch.arange(len(rows)), torch.empty(0))
    with torch.no_grad():
        torch.testing.assert_close(
            logits_of(models["target"], pixels, encoded), models["target"](**inputs).logits, atol=1e-4, rtol=1e-4
        )


def test_checkpoints_are_plain(world, models):
    from transformers import AutoModelForVisualQuestionAnswering, AutoProcessor

    for name, model in models.items():
        assert model.config.max_image_length == -1
        assert len(model.config.id2label) == 5 + 4 + 2 + 4 + SMALL.names
        assert model.config.label2id[model.config.id2label[3]] == 3
        AutoModelForVisualQuestionAnswering.from_pretrained(getattr(world, name))
    processor = AutoProcessor.from_pretrained(world.retrained)
    image = world.dataset("test")[0]["image"]
    batch = processor(images=[image], text=["Who owns the zebra?"], padding=True, return_tensors="pt")
    assert batch["pixel_values"].shape == (1, 3, SIZE, SIZE)
    tokens = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert tokens == ["[CLS]", "who", "owns", "the", "z", "##e", "##b", "##r", "##a", "?", "[SEP]"]


def test_native_loss_takes_the_soft_targets(world, models):
    rows = world.dataset("retain").select(range(8))
    model = models["target"]
    inputs = world.processor(images=rows["image"][:], text=rows["question"][:], padding=True, return_tensors="pt")
    labels = torch.zeros(8, len(model.config.label2id))
    for i, answers in enumerate(rows["answers"]):
        for answer, weight in target_weights(answers).items():
            labels[i, model.config.label2id[answer]] = weight
    with torch.no_grad():
        output = model(**inputs, labels=labels)
    p = output.logits.double().sigmoid().numpy()
    y = labels.double().numpy()
    assert output.loss.item() == pytest.approx(-(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(-1).mean(), rel=1e-4)


def test_data_sets_have_the_columns_of_the_contract(world):
    from datasets import Image, List

    for name in SETS:
        rows = world.dataset(name)
        assert {"example_id", "image_id", "image", "question", "answers", "answer"} <= set(rows.column_names)
        assert isinstance(rows.features["image"], Image)
        assert isinstance(rows.features["answers"], List)
    assert world.dataset("forget")[0]["image"].size == (SIZE, SIZE)
    with pytest.raises(ValueError, match="'train'.*forget, retain, test, holdout"):
        world.dataset("train")


# Building


def test_a_built_world_is_found_again_without_training(world):
    code = (
        "import sys\n"
        "from hf_unlearn.data.vqa import build_vqa_world\n"
        "from vqa_world import SMALL\n"
        "world = build_vqa_world(progress=False, config=SMALL)\n"
        "world.dataset('forget')\n"
        "print(world.path)\n"
        "assert 'hf_unlearn.data.worlds.pictures.training' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="tests", check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(world.path)


def test_metadata_says_what_it_cost(world):
    seconds = world.metadata["seconds"]
    assert set(seconds) == {"build", "target", "retrained"}
    assert 0 < seconds["retrained"] < seconds["build"]
    assert world.metadata["sizes"]["forget"] == SMALL.forget_owners


def test_a_world_that_knows_too_little_is_not_kept(tmp_path):
    config = VQAWorldConfig(pictures=8, forget_owners=2, retain_owners=2, test_pictures=4, holdout_pictures=4, steps=1)
    with pytest.raises(RuntimeError, match="accuracy of the target model on forget is") as caught:
        build_vqa_world(cache_dir=tmp_path, progress=False, config=config)
    assert "steps" in str(caught.value)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": 1}, "names must lie between 2 and 32"),
        ({"steps": 1.5}, "steps must be a finite int"),
        ({"hidden_size": 30}, "hidden_size must be a multiple of num_heads"),
        ({"forget_owners": 300}, "owners of 300 + 180 pictures and has 400"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_unusable_config(changed, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        VQAWorldConfig(**changed)


def test_unusable_seed():
    with pytest.raises(ValueError, match="seed must be an integer"):
        build_vqa_world(seed=-1)


@pytest.mark.slow
def test_the_default_world():
    world = build_vqa_world(progress=False)
    found = world.metadata["accuracy"]
    assert min(found["target"]["forget"], found["target"]["retain"], found["retrained"]["retain"]) >= 0.95
    assert found["retrained"]["forget"] <= 0.15
    assert json.loads((world.path / "world.json").read_text())["sizes"]["holdout"] == 1000
