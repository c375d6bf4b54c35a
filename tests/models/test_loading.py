# SPDX-License-Identifier: Apache-2.0
"""A model is loaded as its files say, all of it and nothing else, or one line says which file is wrong."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import lora, make_args, make_model, make_tokenizer
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from hf_unlearn import NPOConfig, NPOTrainer
from hf_unlearn.cli.main import main
from hf_unlearn.models.checkpoint_files import CheckpointError
from hf_unlearn.models.checkpoint_paths import check_checkpoint_path
from hf_unlearn.models.loading import load_checkpoint, load_model, load_processor


WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A whole model, a sharded one, an adapter on the first, and models that are others."""
    root = tmp_path_factory.mktemp("saved")
    make_model().save_pretrained(root / "whole")
    make_model().save_pretrained(root / "sharded", max_shard_size="30KB")
    for name in ("whole", "sharded"):
        make_tokenizer().save_pretrained(root / name)
    make_model(hidden_size=16).save_pretrained(root / "narrow")
    make_model(layers=1).save_pretrained(root / "shallow")
    make_model(layers=3).save_pretrained(root / "deep")
    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(root / "whole"), lora())
    adapter.save_pretrained(root / "adapter")
    return root


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of a saved model to be damaged."""

    def copy(name: str) -> Path:
        return shutil.copytree(saved / name, tmp_path / name)

    return copy


def edit(name: str, **fields):
    """Changes fields of a JSON file; those given as `...` are taken out."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | fields
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return change


def reweigh(change, name: str = WEIGHTS):
    """Changes the tensors of a safetensors file in place."""

    def apply(folder: Path) -> None:
        tensors = load_file(folder / name)
        change(tensors)
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return apply


def write(name: str, content: bytes | str):
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return apply


def cut(pattern: str, keep: float):
    """Keeps a share of the first file that matches."""

    def apply(folder: Path) -> None:
        file = min(folder.glob(pattern))
        content = file.read_bytes()
        file.write_bytes(content[: int(keep * len(content))])

    return apply


def remove(pattern: str):
    def apply(folder: Path) -> None:
        for file in folder.glob(pattern):
            file.unlink()

    return apply


def pickled(payload: bool):
    class Payload:
        def __reduce__(self):
            return os.mkdir, ("payload-was-run",)

    def apply(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS) | ({"x": Payload()} if payload else {})
        (folder / WEIGHTS).unlink()
        torch.save(tensors, folder / "pytorch_model.bin")

    return apply


def fill(name: str, value: float):
    return lambda tensors: tensors[name].view(-1)[:1].fill_(value)


def both(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def single_beside_shards(folder: Path) -> None:
    make_model(seed=1).save_pretrained(folder.parent / "other")
    shutil.copy(folder.parent / "other" / WEIGHTS, folder)


# What the files show is refused before anything is loaded.
FILES = {
    "weights cut short": ("whole", cut(WEIGHTS, 0.5), r"model.safetensors is no whole safetensors file \(.* bytes;"),
    "a header cut short": ("whole", cut(WEIGHTS, 0.001), "model.safetensors is no whole safetensors file"),
    "empty weights": ("whole", cut(WEIGHTS, 0), r"model.safetensors is no whole safetensors file \(it is empty\)"),
    "garbage": ("whole", write(WEIGHTS, b"\xff" * 4000), "model.safetensors is no whole safetensors file"),
    "a pointer": ("whole", write(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n"), "pointer of Git LFS"),
    "no weights": ("whole", remove(WEIGHTS), "holds a config.json and no weights: neither model.safetensors nor"),
    "only gguf": ("whole", lambda f: (f / WEIGHTS).rename(f / "q4.gguf"), r"no weights: .*\(there is q4.gguf\)"),
    "a shard cut short": ("sharded", cut("*-of-*", 0.5), "model-00001-of-.* is no whole safetensors file"),
    "a shard missing": ("sharded", remove("model-00002*"), "lacks model-00002-of-00004.safetensors, which model.saf"),
    "no index": ("sharded", remove("*.index.json"), r"no weights: .*\(there is model-00001-of-00004.safetensors, "),
    "an empty index": ("sharded", write(INDEX, ""), f"{INDEX} is empty. Copy it again"),
    "an index cut short": ("sharded", cut(INDEX, 0.5), f"{INDEX} is no valid JSON"),
    "an index that is a list": ("sharded", write(INDEX, "[]"), f"{INDEX} holds no JSON object"),
    "an index of nothing": ("sharded", write(INDEX, "{}"), f"{INDEX} names no shards"),
    "two checkpoints": ("sharded", single_beside_shards, "holds two checkpoints, model.safetensors and the shards of"),
    "an empty config": ("whole", write("config.json", ""), "config.json is empty. Copy it again"),
    "a config cut short": ("whole", cut("config.json", 0.5), "config.json is no valid JSON"),
    "a config that is no text": ("whole", write("config.json", b'{"a": "\xe9"}'), "config.json is no valid JSON"),
    "a config that is a list": ("whole", write("config.json", "[]"), "config.json holds no JSON object"),
    "a model and an adapter": ("whole", both, "holds a full model and an adapter"),
    "a pickle with a payload": ("whole", pickled(True), "pytorch_model.bin is not loaded: .* could run code"),
    "a pickle that is none": (
        "whole",
        lambda f: (remove(WEIGHTS)(f), write("pytorch_model.bin", "xx")(f)),
        "pytorch_model.bin is not loaded: it is damaged",
    ),
    "an adapter without weights": ("adapter", remove("*.safetensors"), r"no weights \(adapter_model.safetensors\)"),
    "an adapter cut short": ("adapter", cut("*.safetensors", 0.5), "adapter_model.safetensors is no whole"),
    "an empty adapter config": ("adapter", write("adapter_config.json", ""), "adapter_config.json is empty"),
    "an adapter of nothing": (
        "adapter",
        write("adapter_config.json", "{}"),
        "does not say which model it belongs on: write its path",
    ),
    "an adapter whose base moved": (
        "adapter",
        edit("adapter_config.json", base_model_name_or_path="/no/base"),
        "stands on '/no/base', and there is no such folder",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_not_whole_are_named_before_anything_is_loaded(case, copy, monkeypatch, tmp_path):
    name, damage, message = FILES[case]
    folder = copy(name)
    damage(folder)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message) as error:
        check_checkpoint_path(str(folder))
    assert "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(folder))
    assert not (tmp_path / "payload-was-run").exists()


# What only loading shows is one line, too.
LOADED = {
    "a config of fewer layers": (
        "whole",
        edit("config.json", num_hidden_layers=1),
        "holds weights that a LlamaForCausalLM of its config has no place for: model.layers.1.input_layernorm",
    ),
    "a config of more layers": ("whole", edit("config.json", num_hidden_layers=3), "has no weights of model.layers.2"),
    "biases that the config leaves out": (
        "whole",
        reweigh(lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)})),
        "has no place for: model.layers.0.self_attn.q_proj.bias. It would be another model",
    ),
    "another width": (
        "whole",
        edit("config.json", hidden_size=16),
        r"are of two models. lm_head.weight has the shape \[100, 32\], and .* needs \[100, 16\]; 20 others differ",
    ),
    "another vocabulary": ("whole", edit("config.json", vocab_size=90), r"the shape \[100, 32\], and .* \[90, 32\]"),
    "no head": ("whole", reweigh(lambda tensors: tensors.pop("lm_head.weight")), "has no weights of lm_head.weight"),
    "weights that are NaN": (
        "whole",
        reweigh(fill("model.layers.1.mlp.up_proj.weight", float("nan"))),
        "has weights that are NaN or infinite: model.layers.1.mlp.up_proj.weight. Training diverged",
    ),
    "a weight that is infinite": (
        "whole",
        reweigh(fill("model.norm.weight", float("-inf"))),
        "NaN or infinite: model.norm.weight",
    ),
    "an unknown kind of model": ("whole", edit("config.json", model_type="foo"), "No config can be read from .*`foo`"),
    "no kind of model": ("whole", write("config.json", "{}"), "No config can be read from .* `model_type`"),
    "an unknown classifier": (
        "whole",
        edit("config.json", architectures=["FooForSequenceClassification"]),
        "transformers has no class FooForSequenceClassification",
    ),
    "a count that is a word": ("whole", edit("config.json", num_hidden_layers="two"), "expected int, got str"),
    "an unknown activation": ("whole", edit("config.json", hidden_act="nope"), "No model can be loaded from .*nope"),
    "unknown numbers": ("whole", edit("config.json", dtype="float99"), "No config can be read from .*float99"),
    "an adapter of a wider model": (
        "adapter",
        lambda folder: edit("adapter_config.json", base_model_name_or_path=str(folder.parent / "narrow"))(folder),
        "cannot be put on its base model '.*narrow'.*size mismatch",
    ),
    "an adapter of a deeper model": (
        "adapter",
        lambda folder: edit("adapter_config.json", base_model_name_or_path=str(folder.parent / "shallow"))(folder),
        "has weights for no part of LlamaForCausalLM: .*layers.1.self_attn.q_proj.lora_A.weight",
    ),
    "an adapter of a shallower model": (
        "adapter",
        lambda folder: edit("adapter_config.json", base_model_name_or_path=str(folder.parent / "deep"))(folder),
        "lacks weights that it needs of LlamaForCausalLM: .*layers.2.self_attn.q_proj.lora_A",
    ),
    "an adapter of other modules": (
        "adapter",
        edit("adapter_config.json", target_modules=["q_proj"]),
        "has weights for no part of LlamaForCausalLM: .*v_proj.lora_A.weight",
    ),
    "an adapter of no module": ("adapter", edit("adapter_config.json", target_modules=["x"]), "{'x'} not found"),
    "an adapter of another rank": ("adapter", edit("adapter_config.json", r=8), "size mismatch"),
    "an adapter of an unknown kind": ("adapter", edit("adapter_config.json", peft_type="FOO"), "KeyError: 'FOO'"),
    "half an adapter": (
        "adapter",
        reweigh(lambda tensors: tensors.pop(min(tensors)), "adapter_model.safetensors"),
        "lacks weights that it needs of LlamaForCausalLM: .*lora_A.weight. Give a whole",
    ),
    "an adapter that is NaN": (
        "adapter",
        reweigh(lambda tensors: tensors[min(tensors)].fill_(float("nan")), "adapter_model.safetensors"),
        "adapter has weights that are NaN or infinite: base_model.model.model.layers.0",
    ),
}


@pytest.mark.parametrize("case", LOADED)
def test_a_model_that_is_not_what_its_folder_says_is_refused(case, copy, saved, caplog):
    name, damage, message = LOADED[case]
    folder = copy(name)
    for other in ("narrow", "shallow", "deep"):
        (folder.parent / other).symlink_to(saved / other)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(str(folder))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700
    assert "LOAD REPORT" not in caplog.text


@pytest.mark.parametrize("case", ["a config of fewer layers", "weights that are NaN", "another width"])
def test_a_trainer_refuses_it_too(case, copy, tmp_path):
    name, damage, message = LOADED[case]
    folder = copy(name)
    damage(folder)
    args = make_args(NPOConfig, tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        NPOTrainer(model=str(folder), args=args, forget_dataset=[{"text": "Ada is a spy."}])


def test_float16_that_overflows_is_refused_with_what_to_do(copy):
    folder = copy("whole")
    reweigh(fill("model.norm.weight", 1e6))(folder)
    load_checkpoint(str(folder), dtype="float32")
    with pytest.raises(CheckpointError, match="infinite: model.norm.weight. float16 holds no number above 65504"):
        load_checkpoint(str(folder), dtype="float16")


@pytest.mark.parametrize("dtype", ["float99", "int64", "nn", 16])
def test_numbers_that_weights_cannot_be_are_refused(saved, dtype):
    with pytest.raises(ValueError, match=r"dtype=.*; allowed: 'auto', 'float32', 'bfloat16', 'float16'"):
        load_checkpoint(str(saved / "whole"), dtype=dtype)
    with pytest.raises(ValueError, match="dtype="):
        load_model(str(saved / "whole"), NPOConfig(use_cpu=True, model_init_kwargs={"dtype": dtype}))


def leave_constants(tensors: dict) -> None:
    """What older versions of transformers saved beside the weights."""
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    tensors["model.layers.0.self_attn.masked_bias"] = torch.tensor(-1e4)
    tensors["model.layers.0.self_attn.bias"] = torch.ones(1, 1, 8, 8)


@pytest.mark.parametrize(
    "harmless",
    [
        lambda folder: None,
        pickled(False),
        reweigh(leave_constants),
        edit("config.json", architectures=...),
        edit("config.json", architectures=["LlamaModel"]),
        remove("generation_config.json"),
        # Left behind when one file took the place of shards.
        write(INDEX, json.dumps({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})),
    ],
)
def test_what_does_not_change_the_model_is_allowed(copy, harmless):
    folder = copy("whole")
    harmless(folder)
    check_checkpoint_path(str(folder))
    loaded, expected = load_checkpoint(str(folder)), make_model()
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))


def test_shards_and_tied_heads_are_whole_models(saved, tmp_path):
    assert torch.equal(load_checkpoint(str(saved / "sharded")).lm_head.weight, make_model().lm_head.weight)
    tied = make_model(tie=True)
    tied.save_pretrained(tmp_path / "tied")
    reweigh(lambda tensors: tensors.update({"lm_head.weight": tied.lm_head.weight.detach().clone()}))(
        tmp_path / "tied"
    )
    assert torch.equal(load_checkpoint(str(tmp_path / "tied")).lm_head.weight, tied.lm_head.weight)


def test_a_model_that_predicts_no_next_token_is_refused(tmp_path):
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=100)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder model"):
        load_checkpoint(str(tmp_path))


# Tokenizers

TOKENIZERS = {
    "none": remove("tokenizer*"),
    "none but its settings": remove("tokenizer.json"),
    "an empty one": write("tokenizer.json", ""),
    "one cut short": cut("tokenizer.json", 0.5),
    "settings that are garbage": write("tokenizer_config.json", "{x"),
    "one without a vocabulary": write("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE"}}'),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_that_cannot_be_read_is_one_line(copy, case):
    folder = copy("whole")
    TOKENIZERS[case](folder)
    with pytest.raises(CheckpointError, match=f"^No tokenizer can be loaded from '{folder}': ") as error:
        load_processor(str(folder))
    assert "\n" not in str(error.value)


def test_an_adapter_without_a_tokenizer_has_its_bases(saved):
    assert len(load_processor(str(saved / "adapter"))) == len(make_tokenizer())


# Adapters beside added tokens

ADDED = {
    "plain": {},
    "embeddings that are adapted": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "embeddings that train": {"modules_to_save": ["embed_tokens"]},
    "all embeddings that train": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "rows that train": {"trainable_token_indices": [100, 103]},
}


@pytest.mark.parametrize(
    ("case", "tie"), [*((case, False) for case in ADDED), ("plain", True), ("embeddings that train", True)]
)
def test_an_adapter_beside_added_tokens_is_the_model_that_was_saved(tmp_path, case, tie):
    make_model(tie=tie).save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model.resize_token_embeddings(104)
    model = get_peft_model(model, lora(**ADDED[case])).eval()
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.3)
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[1, 5, 100, 103, 7]])
    loaded = load_checkpoint(str(tmp_path / "adapter"))
    torch.testing.assert_close(loaded(ids).logits, model(ids).logits)


def test_rows_of_added_tokens_that_were_not_saved_are_missed(tmp_path, saved):
    model = AutoModelForCausalLM.from_pretrained(saved / "whole")
    model.resize_token_embeddings(104)
    adapter = get_peft_model(model, lora(modules_to_save=["embed_tokens"]))
    adapter.save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(CheckpointError, match=r"beside 104 embeddings, its base model has 100, .* rows of lm_head"):
        load_checkpoint(str(tmp_path))


def test_an_adapter_on_an_adapter_stands_on_both(tmp_path, saved):
    first = get_peft_model(AutoModelForCausalLM.from_pretrained(saved / "whole"), lora())
    torch.nn.init.normal_(first.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    first.save_pretrained(tmp_path / "first")
    second = get_peft_model(first.merge_and_unload(), lora(target_modules=["k_proj"])).eval()
    torch.nn.init.normal_(second.base_model.model.model.layers[1].self_attn.k_proj.lora_B["default"].weight)
    second.save_pretrained(tmp_path / "second")
    edit("adapter_config.json", base_model_name_or_path=str(tmp_path / "first"))(tmp_path / "second")
    ids = torch.tensor([[1, 5, 9]])
    torch.testing.assert_close(load_checkpoint(str(tmp_path / "second"))(ids).logits, second(ids).logits)
    # As one model, by the command.
    assert main(["merge", str(tmp_path / "second"), "--output_dir", str(tmp_path / "merged")]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(ids).logits, second(ids).logits)
    assert len(load_processor(str(tmp_path / "merged"))) == len(make_tokenizer())
