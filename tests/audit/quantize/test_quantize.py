# SPDX-License-Identifier: Apache-2.0
"""What comes back in quantised weights: nothing where nothing changed, all where an update is lost in rounding."""

import copy
import json

import pytest
import torch
from conftest import lora
from known import files, model, same, saved, state, within_the_codes

from hf_unlearn.audit.base import Context
from hf_unlearn.audit.quantize.arguments import QuantizeArguments
from hf_unlearn.audit.quantize.formats import FORMATS
from hf_unlearn.audit.quantize.measure import QuantizeAudit
from hf_unlearn.audit.robustness.result import Robustness
from hf_unlearn.cli.main import main
from hf_unlearn.data.qa import QAFormat


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantize")
    paths = {name: saved(one, folder / name) for name, one in (("o", model()), ("r", model(knows=False)))}
    paths["u"] = saved(within_the_codes(model()), folder / "u")
    return folder, paths, files(folder)


def arguments(place, name: str = "u", **more) -> QuantizeArguments:
    _, paths, rows = place
    fields = {
        "model_name_or_path": paths[name],
        "original_model_name_or_path": paths["o"],
        "retrained_model_name_or_path": paths["r"],
        "group_by": "person",
        "max_length": 64,
        **rows,
        **more,
    }
    return QuantizeArguments(**fields)


def measured(place, one, name: str = "u", **more) -> Robustness:
    args, kind = arguments(place, name, **more), QuantizeAudit()
    context = Context(load=None, original=model, progress=False)
    return kind.measure(one, args, kind.prepare(args, QAFormat()), context)


# Acceptance 5


def test_an_unchanged_model_recovers_nothing(place):
    formats = [*FORMATS]
    o, r = measured(place, model(), formats=formats), measured(place, model(knows=False), formats=formats)
    found = copy.deepcopy(o).compare(r, o)
    for name in formats:
        result = found[f"{name}/probability/remaining"]
        # A coarse format may damage what so small a model knows.
        if name not in ("int4", "fp4") or result.value is not None:
            assert result.value == 1
            assert result.details["recovery"] == 0
    assert all(one.more["same_code"] == 1 and one.more["relative_update"] == 0 for one in o.measured)
    assert all(one.more["same_code"] < 0.9 for one in r.measured if one.family in ("nf4", "int8"))
    assert found["worst/remaining"].details["verdict"] == "suppressed"


# Acceptance 6


def test_an_update_inside_the_codes_is_lost_in_rounding(place):
    u, r, o = (
        measured(place, one, formats=["nf4", "int8"])
        for one in (within_the_codes(model()), model(knows=False), model())
    )
    found = u.compare(r, o)
    nf4 = next(one for one in u.measured if one.family == "nf4")
    assert nf4.more["same_code"] == 1
    assert nf4.more["relative_update"] > 0.02
    assert len(nf4.more["by_layer"]) == 14
    result = found["nf4/probability/remaining"]
    assert result.details["remaining_before"] < 0.2
    assert result.value == 1
    assert result.details["recovery"] > 0.8
    # A finer format keeps the update.
    assert found["int8/probability/remaining"].value < 0.2
    assert found["worst/remaining"].details["which"].startswith("nf4/")


def test_an_adapter_is_merged_and_left_as_it_was(place):
    from peft import get_peft_model

    adapted = get_peft_model(model(), lora(init_lora_weights=False))
    before = state(adapted)
    found = measured(place, adapted, formats=["nf4"])
    assert same(before, state(adapted))
    plain = measured(place, copy.deepcopy(adapted).merge_and_unload(), formats=["nf4"])
    assert found.measured[0].more["merged"]
    assert found.measured[0].tested == plain.measured[0].tested
    assert found.measured[0].tested != found.before.tested


def test_a_format_that_changes_nothing_says_nothing(place):
    u, r, o = (measured(place, model(knows), formats=["bfloat16"]) for knows in (True, False, True))
    # As where the weights were bfloat16 before.
    u.measured[0].more |= {"changed": 0.0, "failed": "bfloat16 changed no weight"}
    assert "had no effect" in u.compare(r, o)["bfloat16/probability/remaining"].details["reason"]


@pytest.mark.parametrize("which", range(3))
def test_a_format_that_overflows_leaves_the_others(place, which):
    def narrow(knows: bool, overflows: bool):
        one = model(knows)
        if overflows:
            # The same function, with weights that float16 has no numbers for.
            with torch.no_grad():
                one.model.layers[0].mlp.up_proj.weight.mul_(1e7)
                one.model.layers[0].mlp.down_proj.weight.div_(1e7)
        return one

    u, r, o = (
        measured(place, narrow(knows, i == which), formats=["float16", "int8"])
        for i, knows in enumerate((True, False, True))
    )
    found = u.compare(r, o)
    assert found["float16/probability/remaining"].value is None
    assert "gives no finite number in float16" in found["float16/probability/remaining"].details["reason"]
    assert found["int8/probability/remaining"].value == pytest.approx(1, abs=0.01)
    assert found["worst/remaining"].details["verdict"] == "suppressed"


# The command


def command(place, name: str, *words: str) -> list[str]:
    _, paths, rows = place
    named = {"model_name_or_path": paths[name], "original_model_name_or_path": paths["o"], **rows, "max_length": "64"}
    told = [word for field, value in named.items() for word in (f"--{field}", value)]
    return ["audit", "quantize", *told, "--formats", "nf4", "--group_by", "person", *words]


def test_the_command_measures_each_model_once(place, tmp_path, monkeypatch):
    seen, measure = [], QuantizeAudit.measure
    monkeypatch.setattr(
        QuantizeAudit, "measure", lambda *a: seen.append(a[1].config._name_or_path.rsplit("/")[-1]) or measure(*a)
    )
    gold = ["--retrained_model_name_or_path", place[1]["r"]]
    other = saved(model(seed=1), tmp_path / "v")
    for path in (place[1]["u"], other, place[1]["u"]):
        out = tmp_path / f"out{len(seen)}"
        words = command(place, "u", *gold, "--output_dir", str(out))
        words[words.index("--model_name_or_path") + 1] = path
        assert main(words) == 0
    # Original and retrained are shared by all, and what was measured is read again.
    assert seen == ["r", "o", "u", "v"]
    held = json.loads((tmp_path / "out4" / "quantize.json").read_text())["models"]
    assert [one["kind"] for one in held] == ["retrained", "original", "audited"]
    assert held[2]["metrics"]["nf4/probability/remaining"]["value"] == pytest.approx(1, abs=1e-4)
    assert held[2]["metrics"]["worst/remaining"]["details"]["verdict"] == "suppressed"
    assert "suppressed" in (tmp_path / "out4" / "quantize.md").read_text()


def test_a_cached_result_compares_as_a_fresh_one(place, tmp_path):
    found = []
    for i in range(2):
        words = command(place, "u", "--retrained_model_name_or_path", place[1]["r"], "--seeds", "7")
        assert main([*words, "--output_dir", str(tmp_path / str(i))]) == 0
        found.append(json.loads((tmp_path / str(i) / "quantize.json").read_text())["models"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--formats", "nf5"], "formats: 'nf5' is unknown; allowed: nf4, fp4, int8"),
        (["--prune", "1.5"], "prune: 1.5; give shares between 0 and 1"),
        (["--backend", "bitsandbytes", "--formats", "int4"], "bitsandbytes has no format 'int4', only nf4, fp4, int8"),
        (["--comparator", "retrained"], "comparator='retrained' requires `--retrained_model_name_or_path`"),
        (["--group_by", "city"], "group_by='city': row 0 of the forget set has no such value; its columns are answer"),
        (["--scores", "rouge"], "scores: 'rouge' is unknown"),
        (["--holdout_dataset", "nowhere.jsonl"], "No file or folder at 'nowhere.jsonl'"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(place, unloaded, tmp_path, capsys, words, message):
    assert main([*command(place, "u", "--output_dir", str(tmp_path / "out")), *words]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert not (tmp_path / "out").exists()


def test_weights_that_are_quantised_already_are_refused(place, unloaded, tmp_path, capsys):
    path = saved(model(), tmp_path / "q")
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "q" / "config.json").write_text(json.dumps(config))
    for field in ("model_name_or_path", "retrained_model_name_or_path"):
        words = command(place, "u", "--retrained_model_name_or_path", place[1]["r"])
        words[words.index(f"--{field}") + 1] = path
        assert main([*words, "--output_dir", str(tmp_path / "out")]) == 2
        assert "holds weights that are quantised already (bitsandbytes)" in capsys.readouterr().err


def test_answers_without_words_are_refused(place, unloaded, tmp_path, capsys):
    rows = tmp_path / "forget.jsonl"
    rows.write_text('{"question": "who", "answer": "w1", "person": "a"}\n{"question": "who", "answer": " "}\n')
    words = command(place, "u")
    words[words.index("--forget_dataset") + 1] = str(rows)
    assert main([*words, "--output_dir", str(tmp_path / "out")]) == 2
    assert "Row 1 of the forget set has an empty `answer`" in capsys.readouterr().err


def test_what_can_be_said_without_a_retrained_model(place, tmp_path):
    words = command(place, "u", "--holdout_dataset", "", "--output_dir", str(tmp_path / "out"))
    at = words.index("--holdout_dataset")
    plain = [word for i, word in enumerate(words) if i not in (at, at + 1)]
    at = plain.index("--holdout_dataset")
    del plain[at : at + 2]
    assert main(plain) == 0
    held = json.loads((tmp_path / "out" / "quantize.json").read_text())
    worst = held["models"][1]["metrics"]["worst/remaining"]
    assert worst["value"] is None
    assert "never knew the answers" in worst["details"]["reason"]
    assert any("No retrained model was given" in note for note in held["notes"])
    # Rows that no model saw stand in for it.
    words = command(place, "u", "--output_dir", str(tmp_path / "held"))
    assert main(words) == 0
    held = json.loads((tmp_path / "held" / "quantize.json").read_text())["models"][1]["metrics"]
    assert held["nf4/probability/remaining"]["details"]["comparator"] == "holdout"
    assert held["nf4/probability/remaining"]["value"] == pytest.approx(1, abs=0.05)
