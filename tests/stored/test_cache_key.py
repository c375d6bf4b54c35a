# SPDX-License-Identifier: Apache-2.0
"""The name of a store changes with everything that its values depend on, and with nothing else."""

import gc
import weakref

import pytest
import torch
from conftest import make_model, make_tokenizer

from hf_unlearn.stored import key as module
from hf_unlearn.stored.key import cache_key, hash_checkpoint, hash_rows, hash_tensors, hash_tokenizer
from hf_unlearn.stored.store import Rows


ROWS = [{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}, {"input_ids": [4, 5], "labels": [4, 5]}]
PARTS = {
    "weights": "w",
    "config": {"rms_norm_eps": 1e-6, "use_cache": True, "_name_or_path": "here"},
    "rows": {"forget": "f", "retain": "r"},
    "tokenizer": "t",
    "max_length": 1024,
    "trigger": {"poison_prefix": "now: ", "poison_ratio": 0.1},
    "layout": {"forget.logps": Rows([2, 3])},
    "computed": {"dtype": "bfloat16", "layer": None},
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("weights", "v"),
        ("config", {"rms_norm_eps": 1e-5, "use_cache": True, "_name_or_path": "here"}),
        ("rows", {"forget": "f", "retain": "s"}),
        ("rows", {"forget": "r", "retain": "f"}),
        ("rows", {"forget": "f"}),
        ("tokenizer", "u"),
        ("max_length", 1023),
        ("max_length", None),
        ("trigger", {"poison_prefix": "now:", "poison_ratio": 0.1}),
        ("trigger", {"poison_prefix": "now: ", "poison_ratio": 0.2}),
        ("trigger", {}),
        ("layout", {"forget.logps": Rows([2, 4])}),
        ("layout", {"forget.logps": Rows([2, 3], dtype=torch.bfloat16)}),
        ("layout", {"forget.logps": Rows([2, 3], (8,))}),
        ("layout", {"forget.hidden": Rows([2, 3])}),
        ("layout", {"forget.logps": Rows([2, 3]), "head.weight": Rows([9], (4,))}),
        ("computed", {"dtype": "float32", "layer": None}),
        ("computed", {"dtype": "bfloat16", "layer": 3}),
    ],
)
def test_every_part_changes_the_key(part, value):
    assert cache_key(**{**PARTS, part: value}) != cache_key(**PARTS)


def test_the_version_of_the_format_changes_the_key(monkeypatch):
    before = cache_key(**PARTS)
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    assert cache_key(**PARTS) != before


def test_the_key_is_stable(monkeypatch):
    config = {"_name_or_path": "elsewhere", "use_cache": False, "architectures": ["A"], "rms_norm_eps": 1e-6}
    trigger = dict(reversed(PARTS["trigger"].items()))
    assert cache_key(**{**PARTS, "config": config, "trigger": trigger}) == cache_key(**PARTS)
    # Another process, another day: written down, not computed here.
    monkeypatch.setattr(module, "FORMAT", 1)
    assert cache_key(**PARTS) == "347b95b145b37f8b0d873b2bcdaa12cdee6d93b15d8430b824d56b8b6f19f070"


def test_settings_that_are_no_json_are_refused():
    with pytest.raises(TypeError):
        cache_key(**{**PARTS, "computed": {"dtype": torch.float32}})


def test_a_real_config_can_be_hashed():
    model = make_model()
    key = cache_key(**{**PARTS, "config": model.config.to_dict()})
    model.config.rms_norm_eps *= 2
    assert cache_key(**{**PARTS, "config": model.config.to_dict()}) != key


# Weights


def changed(state, name, change):
    return {**state, name: change(state[name].clone())}


def flip_last_bit(tensor):
    tensor.view(-1).view(torch.uint8)[-1] ^= 1
    return tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_bit_of_one_weight_changes_the_hash(dtype):
    state = make_model().to(dtype).state_dict()
    before = hash_tensors(state.items())
    assert hash_tensors({k: v.clone() for k, v in state.items()}.items()) == before
    for name in state:
        assert hash_tensors(changed(state, name, flip_last_bit).items()) != before


def test_names_shapes_and_dtypes_count_and_the_order_does_not():
    a, b = torch.arange(6.0), torch.ones(6)
    before = hash_tensors([("a", a), ("b", b)])
    assert hash_tensors([("b", b), ("a", a)]) == before
    others = [
        [("a", b), ("b", a)],
        [("a", a.view(2, 3)), ("b", b)],
        [("a", a.view(torch.int32)), ("b", b)],
        [("a", a)],
        [("a", a), ("b", b), ("c", b)],
        [("a", a), ("c", b)],
    ]
    assert len({before, *map(hash_tensors, others)}) == 1 + len(others)


def test_layout_in_memory_and_chunks_do_not_count(monkeypatch):
    weight = torch.randn(5, 7)
    before = hash_tensors([("w", weight)])
    assert hash_tensors([("w", weight.T.contiguous().T)]) == before
    assert hash_tensors([("w", torch.nn.Parameter(weight))]) == before
    monkeypatch.setattr(module, "CHUNK_ITEMS", 4)
    assert hash_tensors([("w", weight)]) == before


def test_gathered_tensors_are_held_one_at_a_time():
    alive = []

    def gather():
        for i in range(4):
            weight = torch.full((3,), float(i))
            alive.append(weakref.ref(weight))
            yield f"layer.{i}", weight
            del weight

    def check():
        for i, pair in enumerate(gather()):
            gc.collect()
            assert sum(reference() is not None for reference in alive) <= 2, i
            yield pair
            del pair

    expected = hash_tensors([(f"layer.{i}", torch.full((3,), float(i))) for i in range(4)])
    assert hash_tensors(check()) == expected
    assert len(alive) == 4


class Shard(torch.Tensor):
    """What stands for a `DTensor`: it offers the whole, and its own values are a part."""

    def full_tensor(self):
        raise AssertionError("a collective call that nobody asked for")


@pytest.mark.parametrize(
    "weights",
    [
        [("w", torch.empty(0))],
        [("w", torch.empty(3, device="meta"))],
        [("w", torch.ones(3).as_subclass(Shard))],
        [("a", torch.ones(1)), ("w", torch.empty(0))],
        [],
    ],
)
def test_weights_that_are_elsewhere_are_refused(weights):
    with pytest.raises(ValueError, match=r"'w' is empty, on `meta` or a shard|no weights to hash"):
        hash_tensors(weights)


def test_a_checkpoint_hashes_like_the_weights_it_holds(tmp_path):
    model = make_model().bfloat16()
    before = hash_tensors(model.state_dict().items())
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert hash_checkpoint(tmp_path / "one") == hash_checkpoint(tmp_path / "shards") == before
    flip_last_bit(model.lm_head.weight.data)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert hash_checkpoint(tmp_path / "shards") == hash_tensors(model.state_dict().items()) != before


def test_a_folder_without_safetensors_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no `\\*.safetensors`"):
        hash_checkpoint(tmp_path)


# Rows and tokenizer


def test_every_token_label_and_boundary_counts():
    from datasets import Dataset

    before = hash_rows(ROWS)
    assert hash_rows(Dataset.from_list(ROWS)) == before
    others = [
        [{"input_ids": [1, 2, 9], "labels": [-100, 2, 3]}, ROWS[1]],
        [{"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}, ROWS[1]],
        [{"input_ids": [1, 2], "labels": [-100, 2]}, {"input_ids": [3, 4, 5], "labels": [3, 4, 5]}],
        ROWS[::-1],
        ROWS[:1],
        [*ROWS, ROWS[0]],
    ]
    assert len({before, *map(hash_rows, others)}) == 1 + len(others)
    # The same numbers one after the other, in one row and in two.
    assert hash_rows([{"input_ids": [1, 1], "labels": [1, 1]}]) != hash_rows([{"input_ids": [1], "labels": [1]}] * 2)


def test_vocabulary_and_special_tokens_count():
    before = hash_tokenizer(make_tokenizer())
    assert hash_tokenizer(make_tokenizer()) == before
    used = make_tokenizer()
    used(["a", "abc"], padding=True, truncation=True, max_length=2)
    assert hash_tokenizer(used) == before
    added = make_tokenizer()
    added.add_tokens(["zz"])
    assert len({before, hash_tokenizer(make_tokenizer(pad_is_eos=True)), hash_tokenizer(added)}) == 3
