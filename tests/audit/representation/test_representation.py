# SPDX-License-Identifier: Apache-2.0
"""What the audit says of models whose insides are known: hidden from the head, garbled above a layer."""

import copy
import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lora, make_model, make_tokenizer

from hf_unlearn.audit.registry import AUDITS
from hf_unlearn.audit.representation.erasure import erasure
from hf_unlearn.audit.representation.result import Representation
from hf_unlearn.audit.robustness.measured import Measured, RowScores
from hf_unlearn.cli.main import main
from hf_unlearn.data.qa import QAFormat


PEOPLE = ("Ada", "Bob", "Cyd", "Dan", "Eve", "Fay")
SYMBOLS = "#$%&*+=@"


def facts(seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [
        {"person": name, "question": f"{name} {what}?", "answer": "".join(rng.choices(SYMBOLS, k=3))}
        for name in PEOPLE
        for what in ("a", "b")
    ]


FORGET, RETAIN, HOLDOUT = facts(0), [{**row, "question": row["question"].lower()} for row in facts(1)], facts(2)
QA = {"question_template": "{question}", "use_chat_template": "no"}


def learned(rows, tokenizer, steps: int = 160, seed: int = 0):
    """A model that answers rows."""
    from hf_unlearn.data.collator import RoleCollator
    from hf_unlearn.data.formats import encode

    model = make_model(seed, vocab_size=len(tokenizer), layers=3)
    encoded = [encode(QAFormat().example(row["question"], row["answer"], tokenizer), tokenizer) for row in rows]
    batch = RoleCollator(0)(encoded)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("inside"), make_tokenizer()
    for name, rows in (("forget", FORGET), ("retain", RETAIN), ("holdout", HOLDOUT)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    original = learned([*FORGET, *RETAIN], tokenizer)
    models = {"original": original, "retrained": learned(RETAIN, tokenizer)}
    models["masked"] = copy.deepcopy(original)
    with torch.no_grad():
        models["masked"].lm_head.weight[tokenizer.convert_tokens_to_ids([*SYMBOLS])] = 0
    # What the upper half reads is noise: all that is known stands below.
    models["garbled"] = copy.deepcopy(original)
    with torch.no_grad():
        for parameter in models["garbled"].model.layers[2].parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def asked(place: Path, model: str, *words: str, **paths) -> list[str]:
    paths = {"original": place / "original", "retrained": place / "retrained", **paths}
    given = [w for name, path in paths.items() if path for w in (f"--{name}_model_name_or_path", str(path))]
    sets = [w for name in ("forget", "retain") for w in (f"--{name}_dataset", str(place / f"{name}.jsonl"))]
    more = ["--group_by", "person", "--seeds", "0"]
    return ["audit", "representation", "--model_name_or_path", str(place / model), *given, *sets, *more, *words]


def found(place, tmp_path, model: str, *words: str, **paths) -> dict:
    out = tmp_path / model
    assert main([*asked(place, model, *words, **paths), "--output_dir", str(out)]) == 0
    return json.loads((out / "representation.json").read_text())


def metrics(report: dict, name: str) -> dict:
    return next(model for model in report["models"] if model["name"] == name)["metrics"]


def test_a_masked_head_hides_nothing_from_another(place, tmp_path):
    words = ["--vectors", "1:7", "2:0", "--scores", "probability", "exact_match", "known"]
    report = found(place, tmp_path, "masked", *words)
    mine = metrics(report, "masked")
    assert mine["before/exact_match"]["value"] == 0
    assert mine["directions/known/remaining"]["details"]["before"] == 0
    assert mine["directions/known/remaining"]["details"]["original_before"] > 0.9
    # Its own head cannot say it.
    assert mine["lens/readable/remaining"]["value"] < 0.1
    assert mine["lens_original/readable/remaining"]["value"] == pytest.approx(1, abs=1e-3)
    assert mine["erasure"]["value"] == pytest.approx(0, abs=1e-4)
    assert mine["erasure/intact/remaining"]["details"]["verdict"] == "suppressed"
    assert mine["worst/remaining"]["details"]["verdict"] == "suppressed"
    assert mine["weights/same_code"]["value"] == 1
    assert mine["weights/relative_change"]["value"] > 0.01
    changed = mine["weights/relative_change"]["details"]["by_module"]
    assert [name for name, value in changed.items() if value] == ["lm_head"]
    assert mine["vectors/1:7/cosine"]["value"] == pytest.approx(1)
    assert mine["vectors/1:7/cosine"]["details"]["retrained"] < 0.999


def test_what_stands_below_a_garbled_layer_is_read_there(place, tmp_path):
    report = found(place, tmp_path, "garbled", "--parts", "lens", "erasure", "restoration", "similarity")
    mine = metrics(report, "garbled")
    assert mine["before/exact_match"]["value"] == 0
    for point in mine["lens/readable/remaining"]["details"]["curve"]:
        assert point["unlearned"] == point["original"]
    left = [point["remaining"] for point in mine["erasure/intact/remaining"]["details"]["curve"]]
    assert left[:2] == [1, 1]
    assert left[2] < 0.5
    # States of the original's last layer are all that the answer needs.
    curve = mine["restoration"]["details"]["curve"]
    assert curve[2]["unlearned"] > curve[1]["unlearned"] + 1
    assert mine["before/probability"]["value"] < 0.1 < np.exp(curve[2]["unlearned"])
    assert curve[0].keys() >= {"unlearned", "never_knew"}
    assert mine["similarity/cka_to_original"]["details"]["by_layer"][:2] == pytest.approx([1, 1])
    assert mine["similarity/cka_to_original"]["details"]["by_layer"][2] < 0.99


def test_the_anchors_are_one_and_zero(place, tmp_path):
    for name, share in (("original", 1), ("retrained", 0)):
        other = tmp_path / f"as-{name}"
        shutil.copytree(place / name, other)
        report = found(place, tmp_path, str(other))
        mine = metrics(report, other.name)
        values = {key: one["value"] for key, one in mine.items() if key.endswith("/remaining")}
        assert values["erasure/intact/remaining"] == pytest.approx(share, abs=1e-4)
        assert mine["erasure"]["value"] == pytest.approx(1 - share, abs=1e-4)
        for key in ("lens/readable", "lens_original/readable", "directions/probability"):
            assert values[f"{key}/remaining"] == pytest.approx(share, abs=0.02), key
        verdict = mine["worst/remaining"]["details"]["verdict"]
        assert (verdict == "suppressed") == (share == 1)


def test_an_adapter_reads_as_its_merged_weights(place, tmp_path):
    from peft import get_peft_model

    from hf_unlearn.modeling import load_checkpoint

    base = load_checkpoint(str(place / "original"))
    model = get_peft_model(base, lora(init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(place / "original")
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    make_tokenizer().save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    make_tokenizer().save_pretrained(tmp_path / "merged")
    one, other = (metrics(found(place, tmp_path, str(tmp_path / name)), name) for name in ("adapter", "merged"))
    assert one.keys() == other.keys()
    for key in ("erasure", "lens/readable/after", "weights/relative_change", "directions/probability/after"):
        assert one[key]["value"] == pytest.approx(other[key]["value"], abs=1e-4), key


def test_what_can_be_said_without_the_other_models(place, tmp_path):
    alone = found(place, tmp_path, "masked", original=None, retrained=None)
    names = {one["family"] for one in alone["models"][0]["measured"]}
    assert names == {"lens", "directions"}
    assert metrics(alone, "masked")["worst/remaining"]["value"] is None
    assert any(
        "Not measured without the original and the retrained model: weights, erasure" in n for n in alone["notes"]
    )
    half = found(place, tmp_path, "garbled", "--holdout_dataset", str(place / "holdout.jsonl"), retrained=None)
    names = {one["family"] for one in half["models"][-1]["measured"]}
    assert names == {"weights", "lens", "lens_original", "restoration", "directions"}
    # Rows that no model saw, in the same model, stand for one that never knew.
    assert metrics(half, "garbled")["lens/readable/remaining"]["details"]["comparator"] == "holdout"


@pytest.mark.parametrize(
    ("words", "paths", "message"),
    [
        (["--parts", "erasure"], {"retrained": None}, r"parts=erasure require the retrained model. Give `--retrained"),
        (["--parts", "weights"], {"original": None}, r"parts=weights require the original model."),
        (["--parts", "lense"], {}, r"parts: 'lense' is unknown; allowed: weights, lens,"),
        (["--layers", "3"], {}, r"layers=3; the model has 3 layers: give 0 to 2\."),
        (["--vectors", "3:0"], {}, r"vectors=3; the model has 3 layers"),
        (["--vectors", "1:0"], {"original": None}, r"vectors requires `--original_model_name_or_path`"),
        (["--layers", "1", "1"], {}, r"layers=\[1, 1\]; give each layer once"),
        (
            [],
            {"original": "other"},
            r"has num_hidden_layers=2, the audited model 3: .* Give models of one architecture\.",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_before_a_model_loads(
    place, tmp_path, capsys, monkeypatch, words, paths, message
):
    if "other" in paths.values():
        make_model(layers=2).save_pretrained(tmp_path / "other")
        make_tokenizer().save_pretrained(tmp_path / "other")
        paths = {"original": tmp_path / "other"}
    monkeypatch.setattr("hf_unlearn.audit.checkpoints.load_checkpoint", lambda *a, **k: pytest.fail("loaded"))
    assert main([*asked(place, "masked", *words, **paths), "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, error), error


def test_erasure_is_the_clipped_share_of_what_a_model_that_never_knew_loses():
    gold = [np.array([2.0, 1.0, 0.01]), np.array([4.0, np.nan, 0.0]), np.array([np.nan] * 3)]
    costs = [np.array([1.0, 5.0, 9.0]), np.array([-1.0, 1.0, 1.0]), np.array([np.nan] * 3)]
    result = erasure(costs, gold)
    # Layers that cost the retrained model nothing are left out; costs above its own count as its own.
    assert result.intact == [pytest.approx(1 - (1 + 1) / 3), 1.0, None]
    assert result.by_layer == [pytest.approx(1 - 1 / 6), 0.0, None]
    assert result.overshoot == pytest.approx((1 + 5 - 1) / 7)
    assert erasure(gold[:1], gold[:1]).intact == [0.0]
    assert erasure([], []).overshoot is None


def test_a_model_that_is_worse_than_one_that_never_knew_is_noted():
    rows = list(range(8))
    for times, noted in ((1.0, False), (1.9, True)):
        gold = [np.array([2.0, 3.0]) for _ in rows]
        one = erasure([times * row for row in gold], gold)
        assert one.intact == [0.0] * 8
        more = {"layers": [0, 1], "by_layer": one.by_layer, "overshoot": one.overshoot}
        measured = Measured("all layers", RowScores(rows, scores={"intact": one.intact}), "erasure", more=more)
        about = {"scores": ["probability"], "groups": rows, "bound": 0.2, "resolution": 0.15, "comparator": "auto"}
        found = Representation({}, about, Measured("before", RowScores(rows)), [measured]).metrics["erasure"]
        assert found.value == 1
        assert found.interval[1] == 1
        assert found.details["overshoot"] == pytest.approx(times)
        assert ("note" in found.details) == noted


def test_a_layer_can_be_read_alone(place, tmp_path):
    report = found(place, tmp_path, "garbled", "--parts", "erasure", "--layers", "2")
    assert len(metrics(report, "garbled")["erasure"]["details"]["curve"]) == 1


def test_the_quick_preset_reads_some_layers_from_the_first_to_the_last():
    kind = AUDITS["representation"].arguments
    quick = kind(model_name_or_path="m", forget_dataset="f", preset="quick")
    assert quick.layers_of(30) == [0, 4, 8, 12, 17, 21, 25, 29]
    assert quick.layers_of(3) == [0, 1, 2]
    assert (quick.seeds, quick.max_items) == ([0], 48)
    given = kind(model_name_or_path="m", forget_dataset="f", preset="quick", layers=[5, 2], seeds=[4, 5], max_items=7)
    assert (given.layers_of(30), given.seeds, given.max_items) == ([2, 5], [4, 5], 7)
    assert kind(model_name_or_path="m", forget_dataset="f").layers_of(30) == list(range(30))
    with pytest.raises(ValueError, match=r"preset='fast'; allowed: 'full', 'quick'\."):
        kind(model_name_or_path="m", forget_dataset="f", preset="fast")
