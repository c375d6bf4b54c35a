# SPDX-License-Identifier: Apache-2.0
"""States of decoder layers: taken out, put back, read by a head, in whatever architecture."""

import numpy as np
import pytest
import torch
from conftest import lora, make_model, weights
from zoo import small

from hf_unlearn.audit.representation.directions import prompt_means, units, without
from hf_unlearn.audit.representation.lens import check_decodes, lens
from hf_unlearn.audit.representation.states import (
    Rows,
    answer_states,
    decoded,
    patched_answers,
    replaced,
    restored_answers,
)
from hf_unlearn.audit.scoring import score_rows
from hf_unlearn.models.activations import layers_of


def make_rows(seed: int = 0, lengths=(9, 7, 12), prompt: int = 4) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(3, 100, (n,), generator=generator).tolist() for n in lengths]
    return Rows([{"input_ids": row, "labels": [-100] * prompt + row[prompt:]} for row in ids], batch_size=2)


def every(states) -> list[list[int]]:
    return [list(range(row.shape[1])) for row in states]


# Heads with a cap, a scale, projections around the layers; scaled embeddings; local and global layers.
@pytest.mark.parametrize(
    "name", ["llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "cohere", "granite", "opt-350m", "qwen3", "mixtral"]
)
def test_a_models_own_states_change_nothing_in_any_layer(name):
    model, rows = small(name), make_rows()
    states = answer_states(model, rows)
    for row in patched_answers(model, rows, states, every(states), range(3)):
        # The last layer too: its states are those before the final norm.
        assert row == pytest.approx([row[0]] * 4, abs=1e-6)
    # And others' states do.
    other = [row.flip(-1) for row in states]
    moved = patched_answers(model, rows, other, every(states), range(3))
    assert all(abs(row[1:] - row[0]).min() > 1e-5 for row in moved)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "cohere", "granite", "opt-350m"])
def test_the_last_layer_read_by_the_head_is_what_the_model_says(name):
    model, rows = small(name), make_rows()
    states = answer_states(model, rows)
    check_decodes(model, rows)
    for row, scores, state in zip(rows.rows, score_rows(model, rows.rows, progress=False), states, strict=True):
        logps, ranks = decoded(model, state[-1], torch.tensor(row["labels"][4:]), batch_size=2)
        assert logps == pytest.approx(scores.logps, abs=1e-4)
        assert ((ranks == 0) == scores.correct).all()


def test_a_layer_is_read_through_the_models_own_norm_and_head():
    model, rows = make_model(layers=3), make_rows()
    states = answer_states(model, rows)
    found = lens(model, rows, states, 1, [[0, 2], [], [1]])
    logits = model.lm_head(model.model.norm(states[0][1]))
    logps = logits.log_softmax(-1)[[0, 2], rows.rows[0]["labels"][4:7:2]]
    assert found.scores["readable"][0] == pytest.approx(logps.mean().exp().item(), rel=1e-5)
    places = [(logits[t] > logits[t, rows.rows[0]["labels"][4 + t]]).sum().item() for t in (0, 2)]
    assert found.scores["top10"][0] == np.mean([place < 10 for place in places])
    assert found.scores["readable"][1] is None
    assert found.scores["top10"][1] is None


def test_a_model_that_does_more_with_its_states_is_refused(monkeypatch):
    model, rows = make_model(), make_rows()
    forward = model.forward

    def shifted(*args, **kwargs):
        output = forward(*args, **kwargs)
        if output.logits.shape[1] > 1:
            output.logits = output.logits * 20
        return output

    monkeypatch.setattr(model, "forward", shifted)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM: what its head makes .* Leave `lens` out of `parts`\.$"):
        check_decodes(model, rows)


def test_what_the_shape_of_a_batch_rounds_is_no_reason():
    # 30 layers in bfloat16 differ by 0.24 nats between a batch and a row alone; here by more, whatever the processor.
    model, rows = make_model(initializer_range=0.5), make_rows()

    def other_rounding(module, args, output):
        return output * (1.0 if output.shape[0] == 1 else 1.3)

    layers_of(model)[0].mlp.register_forward_hook(other_rounding)
    alone, together = answer_states(model, Rows(rows.rows[2:])), answer_states(model, rows)
    assert (alone[0] - together[2]).abs().max() > 0.1
    check_decodes(model, rows)


def test_tuples_and_lists_keep_their_other_parts():
    class Two(torch.nn.Module):
        def forward(self, x):
            return x, "kept"

    module = Two()
    with replaced({module: lambda x: x + 1}):
        assert module(torch.tensor(1))[0] == 2
        assert module(torch.tensor(1))[1] == "kept"
    assert module(torch.tensor(1))[0] == 1


def test_a_whole_layers_states_of_another_model_make_it_that_model():
    model, source, rows = make_model(0, layers=3), make_model(1, layers=3), make_rows()
    # Upper layers of the source's own: what it says from there on.
    for mine, theirs in zip(layers_of(model)[1:], layers_of(source)[1:], strict=True):
        mine.load_state_dict(theirs.state_dict())
    model.model.norm.load_state_dict(source.model.norm.state_dict())
    model.lm_head.load_state_dict(source.lm_head.state_dict())
    places = every(answer_states(model, rows))
    said = [score.logps.mean() for score in score_rows(source, rows.rows, progress=False)]
    found = restored_answers(model, source, rows, places, [0, 1, 2])
    assert [row[1:] for row in found] == [pytest.approx([one] * 3, abs=1e-5) for one in said]
    assert all(abs(row[0] - one) > 1e-3 for row, one in zip(found, said, strict=True))


def test_padding_and_batches_do_not_matter():
    model, rows = make_model(), make_rows()
    alone = [answer_states(model, Rows([row]))[0] for row in rows.rows]
    for one, other in zip(alone, answer_states(model, rows), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    means = [prompt_means(model, Rows([row])) for row in rows.rows]
    assert torch.allclose(torch.stack(means).mean(0), prompt_means(model, rows), atol=1e-6)


def test_states_are_read_through_an_adapter():
    from peft import get_peft_model

    rows, model = make_rows(), get_peft_model(make_model(), lora(init_lora_weights=False)).eval()
    states = answer_states(model, rows)
    merged = model.merge_and_unload()
    for one, other in zip(states, answer_states(merged, rows), strict=True):
        assert torch.allclose(one, other, atol=1e-4)


def test_without_a_direction_no_layer_moves_along_it():
    model, rows = make_model(), make_rows()
    vectors = prompt_means(model, rows)
    vectors[1] = 0
    directions = units(vectors)
    assert [*directions] == [0]
    with without(model, directions):
        states = answer_states(model, rows)
    along = torch.cat([row[0] for row in states]) @ directions[0]
    assert along.abs().max() < 1e-4
    assert (torch.cat([row[0] for row in answer_states(model, rows)]) @ directions[0]).abs().max() > 0.01


def test_nothing_is_left_behind_after_an_exception():
    model, rows = make_model().train(), make_rows()
    before, layers = weights(model), layers_of(model)

    def fail(hidden):
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), replaced({layers[0]: fail}):
        answer_states(model, rows)
    with pytest.raises(IndexError):
        decoded(model, torch.zeros(1, 32), torch.tensor([100]))
    assert model.training
    assert layers_of(model) is layers
    assert len(layers) == 2
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())
