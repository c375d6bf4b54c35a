# SPDX-License-Identifier: Apache-2.0
"""What add-ons take: as `plan` says, against real runs."""

import gc
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, make_model

from hf_unlearn import NPOTrainer
from hf_unlearn.addons.steps.neighbours import Neighbours
from hf_unlearn.forward.needs import LOGPS
from hf_unlearn.plan.addons import costs_of, step_times, total
from hf_unlearn.plan.engines import Engine
from hf_unlearn.plan.memory import estimate
from hf_unlearn.plan.shapes import shape_of
from hf_unlearn.plan.table import as_dict, describe
from hf_unlearn.plan.workload import Workload, read_workload
from hf_unlearn.runs.recipe import parse_recipe


# Of one length.
ROWS = {role: [{"text": f"{role} {i:02d} of Ada"} for i in range(4)] for role in ("forget", "retain")}
SAM, SMOOTHING = {"sam_rho": 0.05}, {"smoothing_std": 0.01, "smoothing_draws": 2}
LAT = {"lat_epsilon": 1.0, "lat_layers": [1], "lat_steps": 4}


@pytest.fixture
def made(build, tmp_path):
    def made(out="out", train=True, **settings):
        rows = {f"{role}_dataset": [{"text": row["text"].ljust(20)} for row in own] for role, own in ROWS.items()}
        settings = {"retain_loss": "nll", "reference": "live", "max_steps": 2, "forward_passes": "one"} | settings
        trainer = build(NPOTrainer, given=rows, output_dir=tmp_path / out, **settings)
        if train:
            trainer.train()
        return trainer

    return made


def workload_of(trainer) -> Workload:
    return Workload(
        shape_of(trainer.model.config), Engine(), rows=trainer.args.per_device_train_batch_size, row_length=32,
        accumulation=trainer.args.gradient_accumulation_steps, needs=dict.fromkeys(ROWS, LOGPS),
        addons=tuple(trainer.addons.values()),
    )  # fmt: skip


@pytest.mark.parametrize(
    "settings", [SAM, SAM | {"sam_terms": "all"}, SMOOTHING, LAT, SAM | LAT, {"average_every": 1}], ids=str
)
def test_the_arithmetic_of_a_step_is_what_a_run_counts(made, settings):
    trainer, plain = made(**settings), made(out="plain")
    assert step_times(workload_of(plain)) == 1
    counted = trainer.state.total_flos / plain.state.total_flos
    assert counted == pytest.approx(step_times(workload_of(trainer)), rel=0.15)


def live() -> int:
    gc.collect()
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


@pytest.mark.parametrize("settings", [SAM, SAM | {"sam_terms": "all"}, SMOOTHING], ids=str)
def test_a_repeated_pass_holds_what_the_plan_says(made, settings, monkeypatch):
    seen, repeated, before = [], Neighbours._repeated, Neighbours.before_optimizer

    def at_entry(self, step):
        # These are given up.
        gradients = [weight.grad for weight in step.parameters.values()]
        seen.append([live() - sum(gradient.nbytes for gradient in gradients)])
        del gradients
        before(self, step)

    def in_pass(self, *args):
        seen[-1].append(live())
        return repeated(self, *args)

    monkeypatch.setattr(Neighbours, "before_optimizer", at_entry)
    monkeypatch.setattr(Neighbours, "_repeated", in_pass)
    trainer = made(optim="sgd", **settings)
    held = max(seen[-1][1:]) - seen[-1][0]
    assert held == pytest.approx(total(workload_of(trainer), "repeated"), rel=0.02)


def test_copies_of_masks_and_means_are_what_the_plan_says(made):
    trainer = made(mask_by="gradient", mask_share=0.3, average_every=1)
    mask, average = trainer.addons["mask"], trainer.addons["average"]
    held = [*mask.masks.values(), *mask.kept.values(), *average.mean.values()]
    assert sum(one.nbytes for one in held) == pytest.approx(total(workload_of(trainer), "held"), rel=1e-3)
    need = estimate(workload_of(trainer), on_gpu=False)
    assert need.held["add-ons"] == total(workload_of(trainer), "held")


def test_both_gradients_of_a_projection_are_held():
    def work(accumulation):
        from hf_unlearn.addons.gradient_conflict import GradientConflict

        return Workload(
            shape_of(make_model().config), Engine(), needs=dict.fromkeys(ROWS, LOGPS), accumulation=accumulation,
            addons=(GradientConflict("project"),),
        )  # fmt: skip

    for accumulation in (1, 4):
        own, plain = (
            estimate(one, on_gpu=False) for one in (work(accumulation), replace(work(accumulation), addons=()))
        )
        gradient = 4 * work(accumulation).shape.trainable
        assert own.moments["backward"]["add-ons, gradients"] == gradient * (2 if accumulation == 1 else 1)
        together = [sum(need.held.values()) + sum(need.moments["backward"].values()) for need in (own, plain)]
        assert together[0] - together[1] == 2 * gradient


def planned(recipe, *words):
    return read_workload(parse_recipe(["--config", str(ROOT / "recipes" / recipe), *words]), Engine(), 100)


def test_inner_steps_go_to_the_head_whatever_the_method_reads():
    lat = ("--lat_epsilon", "2.0", "--lat_layers", "5", "--lat_steps", "16", "--kl_coeff", "0.0")
    found = planned("wmdp/zephyr-7b/rmu.yaml", *lat)
    work, need = found.workload, estimate(found.workload, on_gpu=False)
    assert work.shape.layers < work.whole.layers == 32
    inner = need.moments["inner"]
    # A perturbation, its gradient and two moments, of the forget rows' tokens.
    assert inner["perturbations"] == 4 * 4 * work.rows * 100 * 4096
    assert inner["logits and head"] > 0
    assert inner["activations"] > need.moments["forward"]["activations"]
    assert need.moment == "inner"
    assert "add-ons: LAT; a step takes about" in describe(found)
    told = as_dict(found, need, [], 80.0)["addons"]
    assert told["names"] == ["lat"]
    assert told["arithmetic"] == step_times(work) > 16


def test_a_start_by_scores_is_a_moment_of_its_own():
    lora = ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj", "--lora_init", "fila")
    found = planned("tofu/llama-3.2-1b/npo.yaml", *lora, "--retain_loss", "nll").workload
    # 16 layers, of whose heads a quarter have values of their own.
    assert found.shape.below == 16 * (2048 * 2048 + 512 * 2048)
    need = estimate(found, on_gpu=False)
    assert need.moments["start"]["scores of weights"] == 16 * found.shape.below - need.held["optimizer states"]
    assert not costs_of(planned("tofu/llama-3.2-1b/npo.yaml", *lora[:5]).workload)
