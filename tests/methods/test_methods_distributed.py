# SPDX-License-Identifier: Apache-2.0
"""Every method of the grid on two processes, under DDP, ZeRO-2 and ZeRO-3, trains as on one: the methods of a form in
one launch. Those that the grid leaves out have files of their own."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import TESTS, make_model, make_tokenizer
from processes import run
from safetensors.torch import load_file
from test_distributed import deepspeed
from test_methods import APART, CASES, knowing


WORKER = TESTS / "distributed" / "methods_worker.py"
ADD_ONS = {
    "npo + grad_ortho": "grad_ortho takes several backward passes",
    "simnpo + wagle + sam": "SAM reads a step's whole gradients",
    "npo + lat": "LAT takes several backward passes",
    "ihl + fila": "reads whole weights between steps",
}
NAMES = [*CASES, *ADD_ONS]
# Of each kind: rows of one role compared with a reference, pairs, states, terms that are no means over rows, and what
# add-ons do with gradients.
FEW = ["npo", "dpo", "rmu", "repnoise", *ADD_ONS]
FORMS = {"ddp": None, "zero2": 2, "zero3": 3}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """The models to unlearn from, on disk."""
    folder = tmp_path_factory.mktemp("models")
    made = {"plain": make_model(), "knowing": make_model()}
    made["knowing"].load_state_dict(knowing())
    # Frozen models that a method compares with.
    made |= {f"{method}/{n}": m for method, case in CASES.items() if case.others for n, m in case.others().items()}
    for name, model in made.items():
        model.save_pretrained(folder / name)
        make_tokenizer().save_pretrained(folder / name)
    return folder


@pytest.fixture(scope="module")
def ran(models, tmp_path_factory):
    """Runs methods in one form, once."""

    @cache
    def ran(form: str, names: tuple[str, ...]) -> Path:
        folder = tmp_path_factory.mktemp(form)
        engine = None
        if stage := FORMS.get(form):
            engine = deepspeed(stage) | {"zero_allow_untested_optimizer": True}
            # Small parameters would stay whole.
            engine["zero_optimization"] |= {"stage3_param_persistence_threshold": 0} if stage == 3 else {}
        processes = 1 if form == "alone" else 2
        # A cached reference is filled by the processes of this test, not found from another's.
        given = (str(models), str(folder), json.dumps(engine), *names)
        status, said = run(WORKER, *given, processes=processes, timeout=1500, HF_UNLEARN_CACHE=str(folder / "cache"))
        assert status == 0, said[-6000:]
        return folder

    return ran


def result_of(folder: Path, name: str, rank: int = 0) -> dict:
    return json.loads((folder / f"{name}-{rank}.json").read_text())


def update_of(models: Path, folder: Path, name: str) -> torch.Tensor:
    """What the run did to the weights, in one vector."""
    (path,) = (folder / name).glob("*model.safetensors")
    after = load_file(path)
    before = load_file(models / ("knowing" if name in CASES and CASES[name].knows else "plain") / "model.safetensors")
    return torch.cat([(after[key].float() - before.get(key, torch.zeros(()))).flatten() for key in sorted(after)])


def check_as_alone(models: Path, ran, form: str, name: str, names: tuple[str, ...]) -> None:
    alone, together = ran("alone", names), ran(form, names)
    expected = result_of(alone, name)
    assert "failed" not in expected, expected["failed"]
    assert (expected["world"], expected["stage"]) == (1, None)
    for rank in range(2):
        found = result_of(together, name, rank)
        if FORMS[form] and name in ADD_ONS:
            assert "ValueError" in found["failed"]
            assert ADD_ONS[name] in found["failed"]
            continue
        assert "failed" not in found, found["failed"]
        wrapper = "DeepSpeedEngine" if FORMS[form] else "DistributedDataParallel"
        assert (found["world"], found["wrapper"], found["stage"]) == (2, wrapper, FORMS[form])
        for now, then in zip(found["log"], expected["log"], strict=True):
            for key in {key for key in then if "/" in key or key == "loss"} - of_batches(name):
                assert now[key] == pytest.approx(then[key], rel=2e-3, abs=5e-5), key
    if FORMS[form] and name in ADD_ONS:
        return
    right, left = update_of(models, alone, name), update_of(models, together, name)
    assert right.norm() > 1e-4
    assert (left - right).norm() < 1e-2 * right.norm()


def of_batches(name: str) -> set[str]:
    return CASES[name].of_batches if name in CASES else set()


def test_every_method_is_here_or_has_a_file_of_its_own():
    from hf_unlearn import METHODS

    assert {*CASES, *APART} == set(METHODS)


@pytest.mark.parametrize("name", FEW)
def test_a_few_of_each_kind_train_under_ddp_as_alone(models, ran, name):
    check_as_alone(models, ran, "ddp", name, tuple(FEW))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_two_processes_train_as_one_does(models, ran, form, name):
    check_as_alone(models, ran, form, name, tuple(NAMES))
