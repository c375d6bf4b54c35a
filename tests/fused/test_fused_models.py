# SPDX-License-Identifier: Apache-2.0
"""Fused losses through the forward of real models: equal to the losses over the model's own logits."""

import copy
import pickle

import pytest
import torch

from hf_unlearn import fused, losses
from hf_unlearn.fused.predicted import Predicted


def tiny(name, tie=False, **changes):
    import transformers as t

    common = {
        "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": tie, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    gpt = {"vocab_size": 61, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1,
           "eos_token_id": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip
    mpt = {"vocab_size": 61, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64, "logit_scale": 7.0}
    own = {
        "Llama": {},
        "Gemma2": {"head_dim": 8, "final_logit_softcapping": 0.4},
        "Cohere": {"logit_scale": 0.0625},
        "Granite": {"logits_scaling": 8.0},
        "GPTNeoX": {"hidden_dropout": 0.0},
        "Phi": {"resid_pdrop": 0.0},
        "MiniCPM3": {"dim_model_base": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4,
                     "qk_rope_head_dim": 4, "v_head_dim": 8},
    }  # fmt: skip
    kwargs = gpt if name == "GPT2" else mpt if name == "Mpt" else {**common, **own[name]}
    torch.manual_seed(0)
    config = getattr(t, f"{name}Config")(**{**kwargs, **changes})
    model = getattr(t, "GPT2LMHeadModel" if name == "GPT2" else f"{name}ForCausalLM")(config)
    with torch.no_grad():
        # Configs' initial weights are so small that every prediction is close to uniform.
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1).add_(0.05 * torch.randn_like(parameter))
    return model.double().eval()


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 61, (4, 10), generator=g)
    labels = ids.clone()
    labels[:, :3] = labels[1, 7:] = -100
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}, labels


def objective(labels, ref_hidden, ref_head, keep_bytes=2**28):
    """NPO on the first half of the rows, KL and uniform KL on the second."""

    def compute(hidden, head):
        half = len(labels) // 2
        rows = Predicted.of(labels[half:])
        picked = rows.pick(hidden[half:])
        kl = fused.row_kl_to_reference(picked, head, rows.pick(ref_hidden[half:]), ref_head, rows.targets)
        answers = Predicted.of(labels[:half])
        logps = fused.row_logps(answers.pick(hidden[:half]), answers.targets, head, keep_bytes=keep_bytes)
        npo = losses.npo_loss(answers.spread(logps).sum(-1), torch.full((half,), -20.0), 0.1)
        uniform = fused.row_uniform_kl(picked, head).loss
        return {"loss": npo + kl.loss + uniform, "kl": kl.loss.detach(), "logps": kl.logps}

    return compute


def plain_objective(logits, ref_logits, labels):
    half = len(labels) // 2
    mask = losses.prediction_mask(labels)[half:]
    npo = losses.npo_loss(losses.sequence_logps(logits[:half], labels[:half]), torch.full((half,), -20.0), 0.1)
    retain, ref_retain = logits[half:], ref_logits[half:]
    return npo + losses.kl_to_reference(retain, ref_retain, mask) + losses.uniform_kl(retain, mask)


def reference_of(model, inputs):
    with torch.no_grad():
        hidden = fused.head_forward(model, inputs, lambda hidden, head: {"hidden": hidden})["hidden"]
    return hidden, fused.head_of(model)


MODELS = ["Llama", "Llama tied", "Gemma2 tied", "Cohere tied", "Granite", "GPTNeoX", "GPT2", "Phi", "Mpt", "MiniCPM3"]


@pytest.mark.parametrize("name", MODELS)
def test_model(name, inputs):
    name, *tied = name.split()
    model, ref_model = tiny(name, bool(tied)), tiny(name, bool(tied))
    with torch.no_grad():
        for parameter in ref_model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    batch, labels = inputs
    fused.check_head(model)

    ours = fused.head_forward(model, batch, objective(labels, *reference_of(ref_model, batch)))
    ours["loss"].backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    logits, ref_logits = model(**batch).logits, ref_model(**batch).logits
    plain = plain_objective(logits, ref_logits, labels)
    plain.backward()

    torch.testing.assert_close(ours["loss"], plain)
    half = len(labels) // 2
    logps, mask = losses.per_token_logps(logits[half:], labels[half:])
    torch.testing.assert_close(ours["logps"], logps[mask].detach())
    assert grads.keys() == {n for n, p in model.named_parameters() if p.grad is not None}
    for n, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(grads[n], p.grad, rtol=1e-6, atol=1e-12)


def test_head_of_reads_configs():
    assert fused.head_of(tiny("Gemma2", True)).softcap == 0.4
    assert fused.head_of(tiny("Cohere", True)).scale == 0.0625
    assert fused.head_of(tiny("Granite")).scale == 1 / 8
    assert fused.head_of(tiny("Mpt")).scale == 1, "MPT has a logit_scale and does not use it"
    assert fused.head_of(tiny("MiniCPM3")).scale == 1, "MiniCPM3 scales hidden states, not logits"
    phi = tiny("Phi")
    assert fused.head_of(phi).bias is phi.lm_head.bias


def test_check_head_finds_what_the_config_hides():
    model = tiny("Llama")
    plain = type(model).forward

    class Other(type(model)):
        def forward(self, *args, **kwargs):
            out = plain(self, *args, **kwargs)
            out.logits = out.logits * 1.5
            return out

    model.__class__ = Other
    model.train()
    with pytest.raises(ValueError, match=r"logits of Other cannot be computed .* difference is 0\.\d+"):
        fused.check_head(model)
    assert model.training


def test_model_that_bypasses_its_head(inputs):
    model = tiny("Llama")

    class Other(type(model)):
        def forward(self, **kwargs):
            return self.model(**kwargs)

    model.__class__ = Other
    with pytest.raises(ValueError, match="Other did not call its output embeddings"):
        fused.head_forward(model, inputs[0], lambda hidden, head: {"hidden": hidden})


def test_several_results(inputs):
    """Each can be differentiated alone; without gradients they come as they are."""
    model, (batch, labels) = tiny("Gemma2", True), inputs

    def compute(hidden, head):
        nll = fused.nll_loss(hidden, labels, head)
        return {"nll": nll, "uniform": fused.uniform_kl(hidden, labels != -100, head), "log": nll.detach()}

    out = fused.head_forward(model, batch, compute)
    logits = model(**batch).logits
    plain = {"nll": losses.nll_loss(logits, labels), "uniform": losses.uniform_kl(logits, labels != -100)}
    weights = list(model.parameters())
    for name, loss in plain.items():
        torch.testing.assert_close(out[name], loss)
        ours = torch.autograd.grad(out[name], weights, retain_graph=True)
        for a, b in zip(ours, torch.autograd.grad(loss, weights, retain_graph=True), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)
    assert not out["log"].requires_grad
    with torch.no_grad():
        again = fused.head_forward(model, batch, compute)
    assert not any(x.requires_grad for x in again.values())
    torch.testing.assert_close(again["nll"], plain["nll"].detach())


def test_nothing_is_left_on_the_model(inputs):
    model = tiny("Llama")
    batch, labels = inputs
    before = pickle.dumps(model), model(**batch).logits
    fused.head_forward(model, batch, objective(labels, *reference_of(model, batch)))["loss"].backward()
    model.zero_grad()

    def fail(hidden, head):
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        fused.head_forward(model, batch, fail)
    assert "forward" not in vars(model.lm_head)
    assert not model.lm_head._forward_hooks
    assert pickle.dumps(model) == before[0]
    torch.testing.assert_close(copy.deepcopy(model)(**batch).logits, before[1], rtol=0, atol=0)


def test_models_without_a_plain_head():
    from transformers import LlamaModel

    backbone = LlamaModel(tiny("Llama").config)
    with pytest.raises(ValueError, match="LlamaModel has no output embeddings"):
        fused.head_of(backbone)
    model = tiny("Llama")
    model.lm_head.forward = model.lm_head.forward
    with pytest.raises(ValueError, match="replaced on the instance"):
        fused.head_of(model)
    model = tiny("Llama")
    model.config.unpadded_vocab_size = 50
    with pytest.raises(ValueError, match="cuts its logits to 50 of 61"):
        fused.head_of(model)


def peft_model(**options):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    model = get_peft_model(tiny("Llama"), LoraConfig(r=2, init_lora_weights=False, lora_dropout=0.0, **options))
    return model.eval()


def test_adapter_and_its_reference(inputs):
    """The head is not trained, and the reference is the same model with the adapter off."""
    batch, labels = inputs
    model = peft_model(target_modules=["q_proj", "down_proj"])
    with model.disable_adapter():
        ref_hidden, ref_head = reference_of(model, batch)
        ref_logits = model(**batch).logits
    assert ref_head.weight is model.base_model.model.lm_head.weight
    ours = fused.head_forward(model, batch, objective(labels, ref_hidden, ref_head))["loss"]
    ours.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    plain = plain_objective(model(**batch).logits, ref_logits, labels)
    plain.backward()
    torch.testing.assert_close(ours, plain)
    for n, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(grads[n], p.grad, rtol=1e-6, atol=1e-12)


def test_adapter_with_a_full_head(inputs):
    batch, labels = inputs
    model = peft_model(target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapper = model.base_model.model.lm_head
    trained, original = wrapper.modules_to_save["default"], wrapper.original_module
    with torch.no_grad():
        trained.weight.add_(0.1 * torch.randn_like(trained.weight))
    assert fused.head_of(model).weight is trained.weight
    with model.disable_adapter():
        ref_hidden, ref_head = reference_of(model, batch)
        ref_logits = model(**batch).logits
    assert ref_head.weight is original.weight
    fused.head_forward(model, batch, objective(labels, ref_hidden, ref_head))["loss"].backward()
    ours = trained.weight.grad.clone()
    model.zero_grad()
    plain_objective(model(**batch).logits, ref_logits, labels).backward()
    torch.testing.assert_close(ours, trained.weight.grad, rtol=1e-6, atol=1e-12)
    for module in (trained, original):
        assert "forward" not in vars(module)
        assert not module._forward_hooks


def test_adapter_on_the_head():
    with pytest.raises(ValueError, match=r"lora.* not a plain linear layer.*modules_to_save"):
        fused.head_of(peft_model(target_modules=["q_proj", "lm_head"]))
