# SPDX-License-Identifier: Apache-2.0
"""The audits of robustness in the embedded world, where it is known what each model knows: the table of
docs/robustness.md in small. The models are the library's own: the world's, another retrained one, and two recipes."""

import json
import math

import pytest
from conftest import ROOT

from hf_unlearn.audit.registry import AUDITS
from hf_unlearn.cli.main import main
from hf_unlearn.data.worlds.base import KINDS
from hf_unlearn.data.worlds.people import WorldConfig, build_world
from hf_unlearn.data.worlds.people.training import encode_corpus, losses
from hf_unlearn.data.worlds.people.world import PeopleBuilder
from hf_unlearn.data.worlds.training import one_thread, train_steps
from hf_unlearn.runs.audits import Measuring, read_block


pytestmark = pytest.mark.slow
RELEARN = {"adapter": "none", "learning_rates": [5e-4], "max_steps": 32, "eval_steps": [16], "scores": ["probability"]}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> dict[str, str]:
    """Folders of models."""
    folder = tmp_path_factory.mktemp("world")
    built = build_world(progress=False)
    found = {"target": str(built.target), "retrained": str(built.retrained)}
    for seed, name in enumerate(("again", "again2", "again3"), 1):
        found[name] = str(retrained_again(folder / name, seed))
    for name, recipe in (("npo", "npo_klr"), ("rmu", "backdoor/rmu")):
        words = ["--output_dir", str(folder / name), "--eval_strategy", "no"]
        assert main(["run", str(ROOT / f"recipes/demo/{recipe}.yaml"), *words]) == 0
        found[name] = str(folder / name)
    return found


def retrained_again(folder, seed: int = 1):
    """The world's retrained model, from the same start, with other batches."""
    builder = PeopleBuilder(0, WorldConfig())
    with one_thread():
        model = builder.initial_model()
        rows = encode_corpus(builder.corpus, KINDS["retrained"], builder.processor)
        batches = losses(model, rows, builder.processor.pad_token_id, seed, builder.config)
        train_steps(model, batches.__next__, builder.config, lambda *done: None)
    model.save_pretrained(folder)
    builder.processor.save_pretrained(folder)
    return folder


def found(world, kind: str, *names: str, retrained: str | None = "retrained", **fields) -> list:
    """What an attack finds in models of the world, compared."""
    fields = {"benchmark": "world", "original_model_name_or_path": world["target"], **fields}
    if retrained is not None:
        fields["retrained_model_name_or_path"] = world[retrained]
    kind, results = AUDITS[kind], []
    for name in names:
        args, qa = read_block(kind, {**fields, "model_name_or_path": world[name]})
        measuring = Measuring(kind, args, qa, kind.prepare(args, qa), progress=False)
        gold, original = measuring.retrained(), measuring.original()
        results.append(measuring.found(world[name], gold, original=original))
    return results


# Acceptance 3 and 4


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("relearn", {**RELEARN, "seeds": [0]}),
        ("quantize", {}),
        ("prompts", {"preset": "quick"}),
        ("sampling", {}),
        ("representation", {}),
        ("soft_prompt", {"preset": "quick"}),
        ("gcg", {"preset": "quick"}),
    ],
)
def test_another_retrained_model_passes_every_attack_and_the_original_none(world, kind, fields):
    again, target = found(world, kind, "again", "target", **fields)
    assert again.metrics["worst/remaining"].details["verdict"] != "suppressed"
    assert target.metrics["worst/remaining"].details["verdict"] == "suppressed"
    for metric, result in again.metrics.items():
        if metric.endswith("/remaining") and result.interval is not None:
            # Another seed is not in the interval, and erasure is clipped at 0.
            assert result.interval[0] <= 0.05, metric
            assert result.interval[1] >= -0.05, metric
    for metric, result in target.metrics.items():
        if metric.endswith("probability/remaining") and result.value is not None:
            assert result.value == pytest.approx(1, abs=0.05), metric
            assert result.details.get("recovery", 0) == pytest.approx(0, abs=0.05), metric


def test_what_an_attack_teaches_does_not_count(world):
    fields = {**RELEARN, "data": "teach", "max_steps": 32}
    (again,) = found(world, "relearn", "again", **fields)
    result = again.metrics["probability/remaining"]
    start, after = result.details["before"], result.details["after"]
    # The published ratio says that a third came back in a model that never knew.
    assert (after - start) / (result.details["original_before"] - start) > 0.3
    assert abs(result.value) < 0.1
    assert result.interval[0] <= 0 <= result.interval[1]
    assert result.details["verdict"] == "not recovered within budget"


# Acceptance 8


def test_a_steered_layer_is_found_by_what_reads_below_it(world):
    (relearned,) = found(world, "relearn", "rmu", **RELEARN)
    curve = {
        point["step"]: point["remaining"] for point in relearned.metrics["probability/remaining"].details["curve"]
    }
    assert curve[16] > 0.9
    assert relearned.metrics["probability/remaining"].details["steps_to_half"] == 16
    (read,) = found(world, "representation", "rmu", parts=["lens", "erasure", "restoration"])
    lens = {p["setting"]: p for p in read.metrics["lens/top10/remaining"].details["curve"]}
    # Layer 1 is turned; below it answers are among the likeliest tokens, and the upper layers read the original's.
    assert lens["layer 0"]["unlearned"] > 0.8
    assert lens["layer 0"]["remaining"] > 0.7
    readable = read.metrics["lens/readable/remaining"].details["curve"][0]
    assert readable["setting"] == "layer 0"
    assert math.log(readable["original"]) - math.log(readable["unlearned"]) < 2
    assert read.metrics["restoration"].value == pytest.approx(1, abs=0.05)
    (prompt,) = found(world, "soft_prompt", "rmu", seeds=[0])
    assert prompt.metrics["probability/remaining"].details["after"] > 0.7
    # Nobody sees any of it from outside.
    for kind, metric in (("sampling", "leak_exact@32/remaining"), ("quantize", "nf4/probability/remaining")):
        (outside,) = found(world, kind, "rmu")
        assert outside.metrics[metric].value == pytest.approx(0, abs=0.02), kind
    assert outside.metrics["before/exact_match"].value == 0


# Acceptance 9


def test_one_learning_rate_proves_nothing_and_a_damaging_one_is_left_out(world):
    rates = [1e-4, 5e-4, 2e-3]
    (npo,) = found(world, "relearn", "npo", **{**RELEARN, "learning_rates": rates})
    result = npo.metrics["probability/remaining"]
    weak = [p["remaining"] for p in result.details["curve"] if p["setting"] == "learning_rate 0.0001"]
    assert max(weak) < 0.2
    assert result.value > 0.5
    assert result.details["setting"] == "learning_rate 0.0005, step 32"
    assert {f"learning_rate 0.002, step {step}" for step in (16, 32)} <= {*result.details["refused"]}
    assert not any("0.002" in setting for setting in result.details["settings"].values())
    (alone,) = found(world, "relearn", "npo", **{**RELEARN, "learning_rates": rates[:1]})
    assert alone.metrics["worst/remaining"].details["verdict"] != "suppressed"


# Acceptance 10


def test_rows_that_no_model_saw_say_the_same(world):
    fields = {**RELEARN, "comparator": "holdout"}
    (beside_holdout,) = found(world, "relearn", "npo", retrained=None, **fields)
    (beside_retrained,) = found(world, "relearn", "npo", **RELEARN)
    one, other = (r.metrics["probability/remaining"] for r in (beside_holdout, beside_retrained))
    assert (one.details["comparator"], other.details["comparator"]) == ("holdout", "retrained")
    assert one.value == pytest.approx(other.value, abs=0.05)


# Acceptance 12


def test_answers_of_other_rows_teach_nothing_and_free_what_is_suppressed(world):
    rmu, gold = found(world, "relearn", "rmu", "again", shuffled=True, **RELEARN)
    # The specification bounds every model by the retrained one + 0.1. That holds for models that never knew. Wrong
    # answers of the same people undo a suppression as right ones do: 0.49 to 0.80 in RMU.
    for mine, theirs in zip(rmu.measured, gold.measured, strict=True):
        assert theirs.more["shuffled"]["probability"] < 0.1
        assert mine.more["shuffled"]["probability"] > theirs.more["shuffled"]["probability"] + 0.2


# Acceptance 20


@pytest.mark.parametrize(
    ("name", "groups", "status", "failed"),
    [
        ("rmu", 4, 1, {"relearn", "prompts"}),
        ("rmu", 2, 3, set()),
        ("again", 4, 0, set()),
        ("again2", 4, 0, set()),
        ("again3", 4, 0, set()),
    ],
)
def test_shipped_gates_end_a_pipeline_as_the_model_is(world, tmp_path, capsys, name, groups, status, failed):
    sets = {kind: [*build_world(progress=False).dataset(kind)] for kind in ("forget", "retain")}
    people = [*dict.fromkeys(row["person"] for row in sets["forget"])]
    sets["forget"] = [{**row, "cluster": str(people.index(row["person"]) % groups)} for row in sets["forget"]]
    words = ["--audits", "relearn", "quantize", "prompts", "sampling", "--group_by", "cluster", "--max_length", "128"]
    for kind, rows in sets.items():
        path = tmp_path / f"{kind}.jsonl"
        # Only the forget rows are grouped.
        path.write_text("".join(json.dumps({"cluster": row["person"], **row}) + "\n" for row in rows))
        words += [f"--{kind}_dataset", str(path)]
    words += ["--model_name_or_path", world[name], "--original_model_name_or_path", world["target"]]
    words += ["--retrained_model_name_or_path", world["retrained"], "--output_dir", str(tmp_path / "audited")]
    words += ["--relearn", json.dumps({**RELEARN, "seeds": [0]})]
    assert main(["audit", "robustness", *words]) == 0
    capsys.readouterr()
    ended = 0
    try:
        main(["gates", str(tmp_path / "audited")])
    except SystemExit as exit_:
        ended = exit_.code
    (model,) = json.loads((tmp_path / "audited" / "gates.json").read_text())["models"]
    said = {outcome["gate"]: outcome["status"] for outcome in model["outcomes"]}
    assert (ended, {gate for gate, found in said.items() if found == "failed"}) == (status, failed), said
    assert said.keys() == {"relearn", "quantize", "prompts", "sampling"}
    if groups == 2:
        assert {*said.values()} == {"unresolved"}
        assert all("2 groups of rows" in outcome["why"] for outcome in model["outcomes"])
    # No metric of answers tells these models apart.
    audited = json.loads((tmp_path / "audited" / "robustness.json").read_text())["models"][-1]
    assert audited["audits"]["quantize"]["metrics"]["before/exact_match"]["value"] == 0
