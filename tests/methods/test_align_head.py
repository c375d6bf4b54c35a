# SPDX-License-Identifier: Apache-2.0
"""The head never reads ahead, padding changes nothing, and the two losses are their formulas."""

import json
import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from hf_unlearn.methods.align_then_unlearn.head import AlignHead, HeadShape, load_head, save_head
from hf_unlearn.methods.align_then_unlearn.losses import alignment_loss, concept_hinge, nearest_concept
from hf_unlearn.methods.align_then_unlearn.stages import ALIGN, UNLEARN, StagedOptimizer, make_stages, stage_at


def make_head(variant="causal", **kwargs) -> AlignHead:
    torch.manual_seed(0)
    return AlignHead(
        HeadShape(input_size=12, output_size=6, size=8, layers=3, heads=2, variant=variant, **kwargs)
    ).eval()


def batch():
    torch.manual_seed(1)
    return torch.randn(2, 7, 12), torch.ones(2, 7, dtype=torch.bool)


@torch.no_grad()
@pytest.mark.parametrize("changed", range(1, 7))
def test_a_later_token_never_changes_an_earlier_prediction(changed):
    head, (states, mask) = make_head(), batch()
    other = states.clone()
    other[:, changed:] += 3
    before, after = head(states, mask), head(other, mask)
    assert torch.equal(before[:, :changed], after[:, :changed])
    assert (before[:, changed] - after[:, changed]).abs().min() > 1e-6


def test_gradients_of_a_prediction_stay_behind_it():
    head, (states, mask) = make_head(), batch()
    states.requires_grad_()
    head(states, mask)[:, 3].sum().backward()
    assert (states.grad[:, 4:] == 0).all()
    assert (states.grad[:, :4] != 0).any(-1).all()


@torch.no_grad()
def test_the_published_form_reads_ahead():
    causal, published = make_head(), make_head("published")
    assert [p.shape for p in causal.parameters()] == [p.shape for p in published.parameters()]
    states, mask = batch()
    other = states.clone()
    other[:, -1] += 3
    assert ((published(states, mask) - published(other, mask))[:, :-1].abs().amax(-1) > 1e-6).all()
    # The last token has nothing after it, so there the first layer's attention is the same in both.
    assert not torch.allclose(causal(states, mask)[:, 0], published(states, mask)[:, 0], atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["causal", "published"])
def test_padding_is_ignored(variant):
    head, (states, mask) = make_head(variant), batch()
    alone = head(states[:, :4], mask[:, :4])
    mask[:, 4:] = False
    for filler in (0.0, 100.0):
        padded = states.clone()
        padded[:, 4:] = filler
        torch.testing.assert_close(head(padded, mask)[:, :4], alone)


def test_the_published_size():
    # The reference's parameter counts of Phi-3-mini with MPNet, and of a smaller pair.
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in AlignHead(HeadShape(d, out)).parameters()) for d, out in ((3072, 768), (2048, 384))
        ]
    assert sizes == [59_661_312, 58_579_584]


def test_a_saved_head_is_the_same(tmp_path):
    head, (states, mask) = make_head("published"), batch()
    folder = save_head(head, tmp_path)
    assert json.loads((folder / "config.json").read_text())["variant"] == "published"
    loaded = load_head(tmp_path)
    assert torch.equal(loaded(states, mask), head(states, mask))
    with pytest.raises(ValueError, match="holds no align_head"):
        load_head(tmp_path / "elsewhere")


# Losses


def cosine(a, b) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def test_losses_equal_slow_formulas():
    torch.manual_seed(2)
    predicted, targets, concept = torch.randn(9, 4), torch.randn(9, 4), torch.randn(3, 4)
    rows = [(p.tolist(), t.tolist()) for p, t in zip(predicted.double(), targets.double(), strict=True)]
    assert alignment_loss(predicted, targets).item() == pytest.approx(-sum(cosine(*row) for row in rows) / 9, rel=1e-5)
    nearest = [max(cosine(p, c.tolist()) for c in concept.double()) for p, _ in rows]
    found = nearest_concept(predicted, concept)
    assert found.tolist() == pytest.approx(nearest, rel=1e-5)
    wanted = sum(max(0.0, cos - 0.1) for cos in nearest) / 9
    assert 0 < wanted
    assert concept_hinge(found, 0.1).item() == pytest.approx(wanted, rel=1e-5)


def test_the_hinge_is_zero_below_its_threshold_with_no_gradient():
    cosines = torch.tensor([0.2, 0.5, 0.49, -1.0], requires_grad=True)
    loss = concept_hinge(cosines, 0.5)
    assert loss.item() == 0
    loss.backward()
    assert (cosines.grad == 0).all()
    cosines = torch.tensor([0.2, 0.6, 0.9], requires_grad=True)
    concept_hinge(cosines, 0.5).backward()
    torch.testing.assert_close(cosines.grad, torch.tensor([0, 1 / 3, 1 / 3]))


def test_no_tokens_give_zero_losses():
    empty = torch.zeros(0, 4, requires_grad=True)
    for loss in (
        alignment_loss(empty, torch.zeros(0, 4)),
        concept_hinge(nearest_concept(empty, torch.ones(1, 4)), 0.5),
    ):
        assert loss.item() == 0
        loss.backward()


def test_alignment_of_equal_vectors_is_minus_one():
    vectors = torch.randn(5, 4)
    assert alignment_loss(vectors, 3 * vectors).item() == pytest.approx(-1, abs=1e-6)


# Stages


def test_stages_are_the_published_sequence():
    stages = make_stages(10, 15_000, 1000, 1000)
    assert [stage.kind for stage in stages] == [ALIGN, UNLEARN] * 10
    assert sum(stage.stop - stage.start for stage in stages if stage.kind == ALIGN) == 24_000
    assert sum(stage.stop - stage.start for stage in stages if stage.kind == UNLEARN) == 10_000
    assert all(one.stop == other.start for one, other in pairwise(stages))
    at = {step: stage_at(stages, step) for step in (0, 14_999, 15_000, 16_000, 33_999, 40_000)}
    assert [(stage.kind, stage.round) for stage in at.values()] == [
        (ALIGN, 0), (ALIGN, 0), (UNLEARN, 0), (ALIGN, 1), (UNLEARN, 9), (UNLEARN, 9),
    ]  # fmt: skip


def test_only_the_active_optimizer_steps_and_both_come_back():
    model, head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)

    def make():
        own = {UNLEARN: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)}
        return StagedOptimizer({**own, ALIGN: torch.optim.Adam(head.parameters(), lr=0.1)}, active=ALIGN)

    staged = make()
    schedule = torch.optim.lr_scheduler.LambdaLR(staged, lambda step: 1 / (step + 1))
    for active, moves in ((ALIGN, head), (UNLEARN, model), (ALIGN, head)):
        staged.active = active
        before = {part: part.weight.detach().clone() for part in (model, head)}
        F.mse_loss(head(model(torch.ones(1, 2))), torch.zeros(1, 2)).backward()
        staged.step()
        schedule.step()
        staged.zero_grad()
        assert model.weight.grad is None
        for part, was in before.items():
            assert torch.equal(part.weight, was) == (part is not moves)
    rates = [group["lr"] for group in staged.param_groups]
    assert rates == [group["lr"] for optimizer in staged.optimizers.values() for group in optimizer.param_groups]
    assert rates == pytest.approx([0.1 / 4] * 2)
    assert staged.optimizers[ALIGN].state[head.weight]["step"] == 2

    other = make()
    other.load_state_dict(staged.state_dict())
    assert [group["lr"] for group in other.param_groups] == rates
    for name, optimizer in staged.optimizers.items():
        for parameter, state in optimizer.state.items():
            loaded = other.optimizers[name].state[parameter]
            assert all(torch.equal(torch.as_tensor(state[key]), torch.as_tensor(loaded[key])) for key in state)
    for group in other.param_groups:
        group["lr"] = 0.5
    assert all(group["lr"] == 0.5 for optimizer in other.optimizers.values() for group in optimizer.param_groups)
