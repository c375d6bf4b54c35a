# SPDX-License-Identifier: Apache-2.0
"""Two checkpoints together: the formula, what they tell, that nothing is judged, and refusals."""

import json
import math

import numpy as np
import pytest
import torch
from known import encoded, files, model, same, saved, state

from hf_unlearn.audit.base import Context
from hf_unlearn.audit.two_checkpoint.arguments import TwoCheckpointArguments
from hf_unlearn.audit.two_checkpoint.measure import TwoCheckpointAudit, guided
from hf_unlearn.cli.main import main
from hf_unlearn.data.qa import QAFormat


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    paths = {name: saved(one, folder / name) for name, one in (("o", model()), ("u", model(knows=False)))}
    return paths, files(folder)


def measured(place, one, original=model, **more):
    paths, rows = place
    args = TwoCheckpointArguments(
        model_name_or_path=paths["u"], original_model_name_or_path=paths["o"], max_length=64, group_by="person",
        **rows, **more,
    )  # fmt: skip
    kind = TwoCheckpointAudit()
    return kind.measure(one, args, kind.prepare(args, QAFormat()), Context(None, original=original, progress=False))


def test_the_formula():
    after, before = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.5, 0.3, 0.2]]).log()
    weights = [0.5**2 / 0.7, 0.3**2 / 0.2, 0.2**2 / 0.1]
    assert guided(after + 3, before - 1, 2.0, 0.0).exp()[0].tolist() == pytest.approx(
        [w / sum(weights) for w in weights], rel=1e-5
    )
    # The last one has 0.4 of the largest probability.
    kept = weights[:2]
    found = guided(after, before, 2.0, 0.5).exp()[0].tolist()
    assert found == pytest.approx([*[w / sum(kept) for w in kept], 0.0], rel=1e-5)
    assert torch.allclose(guided(after, before, 1.0, 0.0), before)


def test_rows_are_scored_by_it(place):
    after, before = model(knows=False), model()
    found = measured(place, after, guidance=[2.0], token_filter=0.05)
    assert [one.family for one in found.measured] == ["original", "guided"]
    for i, row in enumerate(encoded("forget")[:3]):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            a, b = (one(input_ids=ids).logits[0].double().softmax(-1) for one in (after, before))
        logps, exact = [], True
        for t, label in enumerate(row["labels"]):
            if label == -100:
                continue
            p = torch.where(b[t - 1] < 0.05 * b[t - 1].max(), 0, b[t - 1] ** 2 / a[t - 1])
            p = p / p.sum()
            logps.append(math.log(p[label]) if p[label] > 0 else -math.inf)
            exact = exact and int(p.argmax()) == label
        assert found.measured[1].tested.scores["probability"][i] == pytest.approx(math.exp(np.mean(logps)), abs=1e-4)
        assert found.measured[1].tested.scores["exact_match"][i] == float(exact)
    values = found.values()
    alone = np.mean(measured(place, before).before.tested.values("probability"))
    assert values["original/probability/after"] == pytest.approx(alone, abs=1e-4)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False)) == found.to_dict()


def test_a_retrained_model_gives_away_what_the_original_half_knows(place):
    def half():
        """Knows the rows, not quite."""
        one = model()
        for mine, other in zip(one.parameters(), model(knows=False).parameters(), strict=True):
            mine.data.lerp_(other.data, 0.3)
        return one

    values = measured(place, model(knows=False), original=half).values()
    assert values["original/probability/after"] < 0.9
    assert values["guided/probability/after"] > values["original/probability/after"] + 0.05


def test_a_model_that_changed_nothing_adds_nothing(place):
    values = measured(place, model(), token_filter=0.0).values()
    assert values["guided/probability/after"] == pytest.approx(values["original/probability/after"], abs=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_no_trace(place, fails, monkeypatch):
    one = model().train()
    before = state(one)
    if fails:
        monkeypatch.setattr("hf_unlearn.audit.two_checkpoint.measure.guided", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            measured(place, one)
    else:
        assert measured(place, one).measured == measured(place, one).measured
    assert same(before, state(one))


def test_embeddings_that_are_no_tokens_have_no_part(place):
    def padded():
        one = model()
        one.resize_token_embeddings(one.config.vocab_size + 5, mean_resizing=False)
        one.lm_head.weight.data[-5:] = 3
        return one

    found = measured(place, model(knows=False), original=padded)
    assert found.measured == measured(place, model(knows=False)).measured


def command(place, tmp_path, *words, original=True):
    paths, rows = place
    named = {"model_name_or_path": paths["u"], **rows, "max_length": "64", "output_dir": str(tmp_path / "out")}
    named |= {"original_model_name_or_path": paths["o"]} if original else {}
    return main(["audit", "two_checkpoint", *(w for k, v in named.items() for w in (f"--{k}", v)), *words])


def test_the_command_informs_and_judges_nothing(place, tmp_path):
    assert (
        command(place, tmp_path, "--retrained_model_name_or_path", place[0]["u"] + "/../o", "--scores", "known") == 0
    )
    found = json.loads((tmp_path / "out" / "two_checkpoint.json").read_text())
    (one,) = found["models"]
    assert one["kind"] == "audited"
    assert not [name for name in one["metrics"] if "remaining" in name]
    text = (tmp_path / "out" / "two_checkpoint.md").read_text()
    assert "no verdict" in text
    assert "Original alone" in text


def test_what_cannot_work_is_refused_before_a_model_is_loaded(place, unloaded, tmp_path, capsys):
    for words, original, message in (
        ([], False, "two_checkpoint requires `--original_model_name_or_path`"),
        (["--guidance", "1.0"], True, "guidance=1.0; give a finite number above 1"),
        (["--token_filter", "1"], True, "token_filter=1.0; give a share"),
    ):
        assert command(place, tmp_path, *words, original=original) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
