# SPDX-License-Identifier: Apache-2.0
"""The audit of visual questions against slow formulas, and on a world whose truth is known."""

import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import jensenshannon
from vqa_world import SMALL

from hf_unlearn.audit import Audit
from hf_unlearn.audit.distance import covariance_distance, mean_shift
from hf_unlearn.audit.vqa.measure import audit_classifier, shuffled_accuracy
from hf_unlearn.audit.vqa.predictions import predict_rows
from hf_unlearn.data.vqa import build_vqa_world
from hf_unlearn.data.worlds.pictures.processor import build_processor


LABELS = ["yes", "no", "red", "2", "blue"]


def make_vilt(seed, hidden_size=16, **changed):
    from transformers import ViltConfig, ViltForQuestionAnswering

    config = ViltConfig(
        vocab_size=200,
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
        max_image_length=-1,
        initializer_range=0.5,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
        **changed,
    )
    torch.manual_seed(seed)
    return ViltForQuestionAnswering(config)


@pytest.fixture(scope="module")
def processor():
    return build_processor(["what colour is it?", "is it red?"])


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    found = []
    for i in range(11):
        # Of two shapes, so that batches are padded; one is a photograph without colour.
        pixels = rng.integers(0, 256, (32, 32 + 16 * (i % 2), 3), dtype=np.uint8)
        found.append(
            {
                "example_id": f"row-{i}",
                "image": Image.fromarray(pixels).convert("L" if i == 4 else "RGB"),
                "question": "is it red?" if i % 3 else "what colour is the zebra?",
                "answers": rng.choice(["yes", "no", "red", "green"], 10).tolist(),
                "answer": "yes",
            }
        )
    found[7]["answers"] = ["green"] * 10
    return found


def slow(model, processor, row, gold):
    """Everything that is measured of one row, by the formulas, one row at a time."""
    inputs = processor(images=[row["image"].convert("RGB")], text=[row["question"]], return_tensors="pt")
    with torch.no_grad():
        z, z0 = (m.eval()(**inputs).logits[0].double().numpy() for m in (model, gold))
        h, h0 = (m.vilt(**inputs).pooler_output[0].double().numpy() for m in (model, gold))
    p, q = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in (z, z0))
    counts = Counter(row["answers"])
    weights = {LABELS.index(a): min(n / 3, 1) for a, n in counts.items() if a in LABELS}
    sigmoid = 1 / (1 + np.exp(-z))
    return {
        "accuracy": weights.get(int(z.argmax()), 0.0),
        "probability": sum(w * sigmoid[i] for i, w in weights.items()) / sum(weights.values()) if weights else None,
        "prediction_entropy": -(p * np.log(p)).sum() / np.log(len(LABELS)),
        "p_max": p.max(),
        "divergence": jensenshannon(p, q, base=2) ** 2,
        "agreement": float(z.argmax() == z0.argmax()),
        "logit_mse": sum((a - b) ** 2 for a, b in zip(z, z0, strict=True)) / len(LABELS),
        "representation_mse": sum((a - b) ** 2 for a, b in zip(h, h0, strict=True)) / len(h),
        "states": (h, h0),
        "answer": LABELS[int(z.argmax())],
    }


def test_metrics_are_the_formulas(processor, rows):
    model, gold = make_vilt(0).train(), make_vilt(1).eval()
    audit = audit_classifier(model, processor, {"forget": rows}, retrained=gold, batch_size=4, progress=False)
    assert model.training, "left in the mode it was found in"
    assert not gold.training
    expected = [slow(model, processor, row, gold) for row in rows]
    for name in (
        "accuracy",
        "probability",
        "prediction_entropy",
        "p_max",
        "divergence",
        "agreement",
        "logit_mse",
        "representation_mse",
    ):
        result = audit.metrics[f"forget/{name}"]
        values = [row[name] for row in expected]
        defined = [value for value in values if value is not None]
        assert [value is None for value in result.per_item] == [value is None for value in values], name
        found = [value for value in result.per_item if value is not None]
        assert found == pytest.approx(defined, rel=1e-5, abs=1e-5), name
        assert result.value == pytest.approx(np.mean(defined), abs=1e-5)
        assert (result.n, result.undefined) == (len(defined), len(values) - len(defined))
        assert result.interval is None or result.interval[0] <= result.value <= result.interval[1]
    assert audit.metrics["forget/probability"].undefined == 1
    p_max = [row["p_max"] for row in expected]
    assert audit.metrics["forget/p_max"].details == pytest.approx(
        {"percentile_99": np.percentile(p_max, 99), "highest": max(p_max)}, abs=1e-5
    )
    answers = [row["answer"] for row in expected]
    most, count = Counter(answers).most_common(1)[0]
    assert audit.metrics["forget/dominant_answer"].value == pytest.approx(count / len(rows))
    assert answers.count(audit.metrics["forget/dominant_answer"].details["answer"]) == count
    assert audit.items["forget"]["prediction"] == answers
    assert audit.items["forget"]["example_id"] == [row["example_id"] for row in rows]
    mine, theirs = (np.stack([row["states"][i] for row in expected]) for i in (0, 1))
    for name, value in (
        ("mean_shift", mean_shift(mine, theirs)),
        ("covariance_distance", covariance_distance(mine, theirs)),
    ):
        result = audit.metrics[f"forget/{name}"]
        assert result.value == pytest.approx(value, rel=1e-4), name
        assert value > 0.1
        assert (result.n, result.undefined, result.interval) == (len(rows), 0, None)
    assert len({row["accuracy"] for row in expected}) > 2, "soft scores, or the test says little"
    assert most in LABELS


def test_directions_and_roles(processor, rows):
    sets = {"forget": rows[:3], "retain": rows[3:6], "test": rows[6:9], "holdout": rows[9:], "mine": rows[:2]}
    audit = audit_classifier(make_vilt(0), processor, sets, roles={"mine": "forget"}, progress=False)
    direction = {name: result.direction for name, result in audit.metrics.items()}
    assert [direction[f"{name}/accuracy"] for name in sets] == ["lower", "higher", "higher", "none", "lower"]
    assert direction["forget/prediction_entropy"] == "closer_to_retrained"
    shuffled = [name for name in direction if name.endswith("shuffled_accuracy")]
    assert shuffled == ["retain/shuffled_accuracy", "test/shuffled_accuracy"]
    beside = ("divergence", "agreement", "logit_mse", "representation_mse", "mean_shift", "covariance_distance")
    assert not any(name.endswith(beside) for name in direction)
    assert audit.settings["sets"]["test"]["role"] == "retain"


def test_answers_to_be_shown(processor, rows):
    audit = audit_classifier(make_vilt(0), processor, {"retain": rows}, num_answers=3, progress=False)
    other = audit_classifier(make_vilt(1), processor, {"retain": rows}, num_answers=3, progress=False)
    assert [set(row) for row in audit.answers] == [{"set", "question", "expected", "answer"}] * 3
    assert [row["question"] for row in audit.answers] == [rows[i]["question"] for i in (0, 5, 10)]
    assert [row["answer"] for row in audit.answers] == [audit.items["retain"]["prediction"][i] for i in (0, 5, 10)]
    assert [row["question"] for row in other.answers] == [row["question"] for row in audit.answers]


def test_audit_is_kept_and_the_same_again(processor, rows, tmp_path):
    first, again = (
        audit_classifier(make_vilt(0), processor, {"retain": rows}, batch_size=size, progress=False) for size in (4, 4)
    )
    assert first.to_dict() == again.to_dict()
    assert Audit.load(first.save(tmp_path / "audit.json")).to_dict() == first.to_dict()


def test_a_diverged_model_is_one_line_and_no_report(processor, rows):
    model = make_vilt(0)
    with torch.no_grad():
        model.classifier[-1].bias[2] = float("nan")
    with pytest.raises(ValueError, match=r"gives no finite logits for any of \d+ rows: its weights are NaN"):
        audit_classifier(model, processor, {"retain": rows}, progress=False)


def test_collapse_shows(processor, rows):
    model = make_vilt(0)
    with torch.no_grad():
        model.classifier[-1].bias[3] = 1000.0
    audit = audit_classifier(model, processor, {"retain": rows}, progress=False)
    assert audit.metrics["retain/dominant_answer"].value == 1.0
    assert audit.metrics["retain/dominant_answer"].details == {"answer": "2"}
    assert audit.metrics["retain/prediction_entropy"].value == pytest.approx(0, abs=1e-6)


def test_uniform_predictions_have_entropy_one_and_no_divergence_from_themselves(processor, rows):
    model = make_vilt(0)
    with torch.no_grad():
        model.classifier[-1].weight.zero_()
        model.classifier[-1].bias.fill_(-3.0)
    audit = audit_classifier(model, processor, {"forget": rows}, retrained=model, progress=False)
    assert audit.metrics["forget/prediction_entropy"].value == pytest.approx(1)
    assert audit.metrics["forget/p_max"].value == pytest.approx(1 / len(LABELS))
    assert audit.metrics["forget/probability"].value == pytest.approx(1 / (1 + np.exp(3)))
    assert audit.metrics["forget/divergence"].value == pytest.approx(0, abs=1e-12)
    assert audit.metrics["forget/agreement"].value == 1.0


DISTANCES = ("logit_mse", "representation_mse", "mean_shift", "covariance_distance")


def test_the_same_model_is_at_no_distance(processor, rows):
    model = make_vilt(0)
    audit = audit_classifier(model, processor, {"forget": rows}, retrained=model, progress=False)
    # ViLT draws the order of its patches anew, which moves the last digits.
    assert [audit.metrics[f"forget/{name}"].value for name in DISTANCES] == pytest.approx([0] * 4, abs=1e-5)


def test_rows_on_which_a_model_diverged_are_left_out_and_counted(processor, rows):
    broken, gold = make_vilt(0), make_vilt(1)
    colour = processor.tokenizer.convert_tokens_to_ids("colour")
    with torch.no_grad():
        broken.vilt.embeddings.text_embeddings.word_embeddings.weight[colour] = float("nan")
    sound = [row for row in rows if "zebra" not in row["question"]]
    assert 0 < len(sound) < len(rows)
    found = audit_classifier(broken, processor, {"forget": rows}, retrained=gold, progress=False).metrics
    alone = audit_classifier(broken, processor, {"forget": sound}, retrained=gold, progress=False).metrics
    for name in DISTANCES:
        result = found[f"forget/{name}"]
        assert (result.n, result.undefined) == (len(sound), len(rows) - len(sound)), name
        assert result.value == pytest.approx(alone[f"forget/{name}"].value, rel=1e-3), name


def test_a_model_of_other_width_has_no_distance_of_representations(processor, rows):
    wide = make_vilt(0, hidden_size=24)
    audit = audit_classifier(make_vilt(0), processor, {"forget": rows}, retrained=wide, progress=False)
    assert audit.metrics["forget/logit_mse"].value > 0
    assert not {"forget/representation_mse", "forget/mean_shift", "forget/covariance_distance"} & set(audit.metrics)


def test_distances_cost_no_further_forward_pass(processor, rows):
    models = [make_vilt(0), make_vilt(1)]
    calls = [0, 0]

    def counted(place):
        def count(module, args):
            calls[place] += 1

        return count

    for place, model in enumerate(models):
        model.vilt.register_forward_pre_hook(counted(place))
    audit_classifier(models[0], processor, {"forget": rows}, retrained=models[1], batch_size=4, progress=False)
    assert calls == [3, 3]
    assert not any(model.classifier._forward_pre_hooks for model in models), "the hooks are gone"


def test_opposite_models_diverge_by_one_bit(processor, rows):
    models = [make_vilt(0), make_vilt(0)]
    with torch.no_grad():
        for i, model in enumerate(models):
            model.classifier[-1].bias[i] = 1000.0
    audit = audit_classifier(models[0], processor, {"forget": rows}, retrained=models[1], progress=False)
    assert audit.metrics["forget/divergence"].value == pytest.approx(1)
    assert audit.metrics["forget/agreement"].value == 0.0


def test_pictures_are_exchanged_without_leaving_any_in_place(processor, rows):
    # A model that sees only the picture's brightness: its predictions follow the picture and not the row.
    marked = [{**row, "image": Image.new("RGB", (32, 32), (20 * i, 20 * i, 20 * i))} for i, row in enumerate(rows)]
    model = make_vilt(0)
    own = predict_rows(model, processor, marked, progress=False)
    moved = predict_rows(model, processor, marked, pictures=[(i + 1) % 11 for i in range(11)], progress=False)
    assert sum(a.entropy == pytest.approx(b.entropy, abs=1e-6) for a, b in zip(own, moved, strict=True)) == 0

    seen = []

    def watched(images, **kwargs):
        seen.extend(images)
        return processor(images=images, **kwargs)

    shown = shuffled_accuracy(model, watched, marked, progress=False)
    levels = [image.getpixel((0, 0))[0] // 20 for image in seen]
    assert sorted(levels) == list(range(11))
    assert all(level != i for i, level in enumerate(levels))
    assert shown.n == 11
    with pytest.raises(ValueError, match="at least two rows"):
        shuffled_accuracy(model, processor, marked[:1])


@pytest.mark.parametrize(
    ("sets", "options", "message"),
    [
        ({}, {}, "No sets to audit"),
        ({"forget": []}, {}, "The set 'forget' is empty"),
        ({"forget": "rows"}, {}, "The set 'forget' is a str"),
        ({"forget": [{"image": None, "question": "?"}]}, {}, "lacks answers"),
        ({"other": [{}]}, {}, "No role is known for the sets ['other']"),
    ],
)
def test_unusable_sets(processor, sets, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        audit_classifier(make_vilt(0), processor, sets, **options)


def test_retrained_model_of_other_classes(processor, rows):
    other = make_vilt(1)
    other.config.label2id = {label: i for i, label in enumerate(reversed(LABELS))}
    with pytest.raises(ValueError, match=r"same `config.label2id`"):
        audit_classifier(make_vilt(0), processor, {"forget": rows}, retrained=other)


def test_random_patches_are_warned_of(processor, rows, caplog):
    model = make_vilt(0)
    model.config.max_image_length = 3
    audit_classifier(model, processor, {"forget": rows}, progress=False)
    assert "max_image_length=3" in caplog.text


def test_no_trainer_is_imported():
    code = "import sys, hf_unlearn.audit.vqa.measure\n"
    code += "assert not {'hf_unlearn.training.trainer', 'trl'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_audit_of_the_world():
    from transformers import ViltForQuestionAnswering

    world = build_vqa_world(progress=False, config=SMALL)
    target, retrained = (ViltForQuestionAnswering.from_pretrained(p) for p in (world.target, world.retrained))
    sets = {name: world.dataset(name) for name in ("forget", "retain", "test", "holdout")}
    audit = audit_classifier(target, world.processor, sets, retrained=retrained, progress=False)
    found = audit.values()
    for name in sets:
        assert found[f"{name}/accuracy"] == pytest.approx(world.metadata["accuracy"]["target"][name], abs=2e-3)
    assert found["test/shuffled_accuracy"] < found["test/accuracy"] - 0.2
    assert found["forget/agreement"] < 0.5 < found["retain/agreement"]
    assert found["forget/divergence"] > found["retain/divergence"]
    assert found["forget/prediction_entropy"] < found["holdout/prediction_entropy"]
    assert found["forget/probability"] > found["holdout/probability"] + 0.2
