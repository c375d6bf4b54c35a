# SPDX-License-Identifier: Apache-2.0
"""SCRUB with rewind, Fisher forgetting, Amnesiac and retraining with a recorder: two processes give what one gives."""

import json

import pytest
import torch
from conftest import TESTS
from processes import run
from safetensors.torch import load_file


WORKER = TESTS / "distributed" / "baselines.py"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the runs of one process and of two."""
    folders = {}
    for processes in (1, 2):
        folder = folders[processes] = tmp_path_factory.mktemp(str(processes))
        cache = str(folder / "cache")
        status, said = run(WORKER, str(folder), processes=processes, HF_UNLEARN_CACHE=cache)
        assert status == 0, said[-6000:]
    wrapped = [json.loads((folders[n] / "world.json").read_text()) for n in (1, 2)]
    assert wrapped == [[1, "LlamaForCausalLM"], [2, "DistributedDataParallel"]]
    return folders


def log(folder, method: str) -> list[dict]:
    return json.loads((folder / f"{method}.json").read_text())["log"]


@pytest.mark.parametrize("method", ["scrub", "fisher", "amnesiac", "retrain"])
def test_two_processes_train_the_model_of_one(runs, method):
    one, two = (load_file(runs[n] / method / "model.safetensors") for n in (1, 2))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-4, msg=name)
    logs = [[entry for entry in log(runs[n], method) if "train_runtime" not in entry] for n in (1, 2)]
    assert len(logs[0]) == len(logs[1]) > 2
    for first, second in zip(*logs, strict=True):
        assert first.keys() == second.keys()
        for key in (key for key in first if "/" in key):
            assert second[key] == pytest.approx(first[key], rel=1e-2, abs=1e-4), key


def test_they_rewind_to_the_same_epoch(runs):
    one, two = (json.loads((runs[n] / "scrub" / "rewind.json").read_text()) for n in (1, 2))
    assert one["epoch"] == two["epoch"]
    assert two["wanted"] == pytest.approx(one["wanted"], rel=1e-4)
    assert list(two["forget"].values()) == pytest.approx(list(one["forget"].values()), rel=1e-4)


def test_a_step_is_tainted_on_all_processes_by_the_rows_of_one(runs):
    one, two = (json.loads((runs[n] / "record" / "record.json").read_text()) for n in (1, 2))
    assert one["steps"] == two["steps"]
    assert 0 < len(one["steps"]) < 6
    sums = [load_file(runs[n] / "record" / "amnesiac_sum.safetensors") for n in (1, 2)]
    for name in sums[0]:
        torch.testing.assert_close(sums[1][name], sums[0][name], rtol=1e-3, atol=1e-4)
