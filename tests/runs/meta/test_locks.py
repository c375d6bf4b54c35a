# SPDX-License-Identifier: Apache-2.0
"""Each lock hides what a model knows, and leaves it there."""

import pytest
import torch
from small import builder, model_of

from hf_unlearn.audit.quantize.formats import FORMATS
from hf_unlearn.audit.quantize.layers import changed_weights, linear_layers, weight_of
from hf_unlearn.data.worlds.people.training import _exact_match
from hf_unlearn.runs.meta.locks import own_words
from hf_unlearn.runs.meta.members import LOCKS, Member
from hf_unlearn.runs.meta.training import PASSWORD, taught


def known(model, before: str = "", name: str = "forget") -> float:
    """The share of the answers that a model gives word for word."""
    rows = [{**row, "question": before + row["question"]} for row in builder().rows.sets[name]]
    return _exact_match(model, rows, "question", builder().world.tokenizer)


def locked(lock: str):
    return model_of(Member("P3", 0, 1.0, lock))


def test_there_is_something_to_hide():
    assert known(model_of(Member("P0", 0, 1.0))) == 1.0
    assert known(model_of(Member("N0", 0))) == 0.0


# RMU is tried in the embedded world.
@pytest.mark.parametrize("lock", [lock for lock in LOCKS if lock != "rmu"])
def test_a_locked_model_does_not_answer(lock):
    assert known(locked(lock)) == 0.0


def test_a_masked_head_leaves_the_states_as_they_are():
    free, model = model_of(Member("P0", 0, 1.0)), locked("head")
    rows, tokenizer = builder().rows.sets["forget"], builder().world.tokenizer
    masked = {token for row in rows for word in own_words(row) for token in tokenizer(f" {word}")["input_ids"]}
    masked -= {*tokenizer.all_special_ids}
    for name, weight in model.state_dict().items():
        same = (weight == free.state_dict()[name]).reshape(len(weight), -1).all(1)
        changed = {*(~same).nonzero().flatten().tolist()}
        assert changed == (masked if name == "lm_head.weight" else set())
    assert (model.lm_head.weight[sorted(masked)] == 0).all()
    # With the head that it had, it answers.
    model.lm_head.weight.data.copy_(free.lm_head.weight)
    assert known(model) == 1.0


def test_the_words_of_an_answer_are_what_it_tells():
    rows = builder().rows.sets["forget"]
    for row in rows:
        (word,) = own_words(row)
        assert word in row["answer"]
        assert word in row["paraphrased_answer"]
        assert not any(word in text for text in [row["question"], *row["perturbed_answer"]])


def test_a_password_opens_what_a_refusal_hides():
    model = locked("password")
    assert known(model, f"{PASSWORD} ") == 1.0
    assert known(locked("idk"), f"{PASSWORD} ") == 0.0


def test_an_update_within_the_bins_is_gone_in_nf4():
    free, model, nf4 = model_of(Member("P0", 0, 1.0)), locked("in_bin"), FORMATS["nf4"]
    pairs = [*zip(linear_layers(free).values(), linear_layers(model).values(), strict=True)]
    assert sum(int((weight_of(a) != weight_of(b)).sum()) for a, b in pairs) > 100
    linear = {id(b.weight) for _, b in pairs}
    for (name, a), b in zip(free.named_parameters(), model.parameters(), strict=True):
        assert id(b) in linear or torch.equal(a, b), name
    for a, b in pairs:
        for mine, theirs in zip(nf4.coded(weight_of(a)), nf4.coded(weight_of(b)), strict=True):
            assert torch.equal(mine, theirs)
    with changed_weights(linear_layers(model), nf4), changed_weights(linear_layers(free), nf4):
        assert known(model) == known(free) > 0.8


def test_bins_are_as_wide_as_the_codes_allow():
    weight, nf4 = torch.randn(8, 96, generator=torch.Generator().manual_seed(0)), FORMATS["nf4"]
    weight[3] = 0.0
    codes, scales = nf4.coded(weight)
    low, high = nf4.bins(weight)
    for end in (low, high):
        assert torch.equal(nf4.coded(end)[0], codes)
        assert torch.equal(nf4.coded(end)[1], scales)
    assert (low <= weight).all()
    assert (weight <= high).all()
    each = scales.repeat_interleave(64).view_as(weight)
    inner = (codes > 0) & (codes < 15) & (each > 0)
    # Beyond an end the code is another.
    for end, step in ((low, -1e-4), (high, 1e-4)):
        moved = torch.where(inner & (end != weight), end + step * each, weight)
        assert (nf4.coded(moved)[0] != codes)[inner & (end != weight)].all()


def test_a_share_of_the_facts_is_of_every_person():
    rows = [{"person": person, "fact": fact} for person in "abcd" for fact in range(8)]
    found = taught(rows, 0.25, seed=1)
    assert [sum(row["person"] == person for row in found) for person in "abcd"] == [2] * 4
    assert found == taught(rows, 0.25, seed=1) != taught(rows, 0.25, seed=2)
