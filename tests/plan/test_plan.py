# SPDX-License-Identifier: Apache-2.0
import contextlib
import io
import json
from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from hf_unlearn.bench import session
from hf_unlearn.bench.cases import select
from hf_unlearn.bench.sizes import Size
from hf_unlearn.cli.main import main
from hf_unlearn.data.prepared import write_prepared
from hf_unlearn.forward.needs import KL, LOGPS
from hf_unlearn.plan.activations import layer_bytes, stream_bytes
from hf_unlearn.plan.engines import Engine, read_engine
from hf_unlearn.plan.heads import head_bytes
from hf_unlearn.plan.memory import GIB, cache_bytes, estimate
from hf_unlearn.plan.optimizers import OPTIMIZERS
from hf_unlearn.plan.shapes import BUILT_IN, find_config, shape_of
from hf_unlearn.plan.switches import remedies
from hf_unlearn.plan.table import describe, plan, print_plan, verdict
from hf_unlearn.plan.workload import Planned, Workload, read_workload
from hf_unlearn.runs.launch import config_path
from hf_unlearn.runs.recipe import parse_recipe


RECIPES = ROOT / "recipes" / "tofu"
NPO_KLR = {"forget": LOGPS, "retain": KL}


def built_in(name):
    fields = dict(BUILT_IN[name])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


@pytest.fixture(scope="module")
def llama():
    return shape_of(built_in("llama-2-7b"))


@pytest.fixture(scope="module")
def npo_klr(llama):
    return Workload(
        llama, Engine(), "bfloat16", True, optimizer="adamw_torch", checkpointing=True, needs=NPO_KLR,
        reference="cache", reference_roles=("forget", "retain"),
    )  # fmt: skip


# Shapes


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama-2-7b", 6_738_415_616),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("zephyr-7b", 7_241_732_096),
    ],
)
def test_built_in_shapes_are_the_published_models(name, published):
    shape = shape_of(built_in(name))
    assert shape.parameters == shape.trainable == published
    assert shape.trained_layers == shape.layers
    assert shape.fusible


def test_lora_counts():
    from peft import LoraConfig

    shape = shape_of(built_in("llama-2-7b"), None, LoraConfig(r=16, target_modules="all-linear"))
    d, f = 4096, 11008
    assert shape.trainable == 32 * 16 * (4 * (d + d) + 3 * (d + f))
    assert shape.parameters == 6_738_415_616 + shape.trainable
    assert shape.quantizable == 32 * (4 * d * d + 3 * d * f)
    assert not shape.head_trains


@pytest.mark.parametrize(
    ("patterns", "layers", "head"),
    [(["lm_head"], 0, True), ([r"layers\.(30|31)\."], 2, False), (["embed_tokens"], 32, False)],
)
def test_only_layers_above_the_first_trained_one_keep_activations(patterns, layers, head):
    shape = shape_of(built_in("llama-2-7b"), patterns)
    assert shape.trained_layers == layers
    assert shape.head_trains == head


def test_a_local_config_comes_before_the_table(tmp_path):
    folder = tmp_path / "my-llama-2-7b"
    AutoConfig.for_model("llama", hidden_size=64).save_pretrained(folder)
    config, source = find_config(str(folder))
    assert config.hidden_size == 64
    assert source == "its config.json"
    config, source = find_config("someone/tofu_Llama-2-7b-chat-hf_full")
    assert config.hidden_size == 4096
    assert "built-in" in source
    with pytest.raises(ValueError, match="llama-2-7b"):
        find_config("someone/unheard-of")


def test_models_that_prepare_makes_are_planned_with_before_and_after(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_UNLEARN_CACHE", str(tmp_path))
    config, source = find_config("tofu_mini/smollm2-135m/target")
    assert (config.num_hidden_layers, source) == (30, "the built-in shape of smollm2-135m")
    AutoConfig.for_model("llama", hidden_size=64).save_pretrained(tmp_path / "made")
    write_prepared("tofu_mini", "smollm2-135m", {"target": str(tmp_path / "made")})
    config, source = find_config("tofu_mini/smollm2-135m/target")
    assert (config.hidden_size, source) == (64, "its config.json")


# Formulas


@pytest.mark.parametrize(("dtype", "mixed"), [("float32", False), ("bfloat16", True), ("float32", True)])
@pytest.mark.parametrize(("key_value_heads", "padded"), [(4, False), (2, False), (2, True)])
def test_layer_keeps_what_pytorch_saves(dtype, mixed, key_value_heads, padded):
    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=key_value_heads, use_cache=False,
    )  # fmt: skip
    rows, length = 2, 64
    work = Workload(
        shape_of(config), Engine(), dtype, mixed, rows=rows, row_length=length, needs={"forget": LOGPS}, repeats=padded
    )
    mask = torch.ones((rows, length), dtype=torch.long)
    mask[0, length // 2 :] = 1 - padded

    def saved(layers):
        config.num_hidden_layers = layers
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).model
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        shapes = {p.shape for p in model.parameters()}
        sizes = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            # Autocast's copies of weights are counted elsewhere.
            copied = mixed and dtype == "float32" and {tensor.shape, tensor.shape[::-1]} & shapes
            if storage.data_ptr() not in weights and not copied:
                sizes[storage.data_ptr()] = (storage.nbytes(), storage)
            return tensor

        autocast = torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), autocast:
            model(input_ids=torch.ones((rows, length), dtype=torch.long), attention_mask=mask)
        return sum(size for size, _ in sizes.values())

    # A processor's masked attention puts out another order of dimensions, which is copied.
    copied = padded * rows * length * 64 * (2 if mixed or dtype == "bfloat16" else 4)
    assert layer_bytes(work) + copied == pytest.approx((saved(3) - saved(1)) / 2, rel=0.02)


def test_bytes_a_parameter_of_the_engines(npo_klr):
    count, n = npo_klr.shape.parameters, 4

    def held(engine, **kwargs):
        need = estimate(replace(npo_klr, engine=engine, **kwargs), on_gpu=False)
        parts = need.held | need.moments["backward"]
        return [round(parts[name] / count, 3) for name in ("weights", "gradients", "optimizer states")]

    # bfloat16 weights, gradients and Adam states.
    assert held(Engine()) == [2, 2, 4]
    assert held(Engine("ddp", n)) == [2, 2, 4]
    # DeepSpeed: float32 weights and states, 12 bytes, beside bfloat16 weights and gradients.
    assert held(Engine("zero1", n)) == [2, 2, 3]
    assert held(Engine("zero2", n)) == [2, 0.5, 3]
    assert held(Engine("zero3", n)) == [0.5, 0.5, 3]
    # FSDP2 shards float32 weights under mixed precision.
    assert held(Engine("fsdp2", n)) == [1, 1, 2]
    assert held(Engine(), dtype="float32") == [4, 4, 8]
    assert held(Engine(), optimizer="adamw_torch_8bit") == [2, 2, round(2 + 2 / 64, 3)]


def test_the_host_takes_what_is_offloaded(npo_klr):
    work = replace(npo_klr, engine=Engine("zero2", 2, offload_optimizer=True))
    need = estimate(work)
    assert "optimizer states" not in need.held
    assert need.host == 16 * work.shape.parameters


def test_references(npo_klr):
    live = estimate(replace(npo_klr, reference="live"), on_gpu=False).held
    cached = estimate(npo_klr, on_gpu=False).held
    assert live["reference model"] == 2 * npo_klr.shape.parameters
    assert cached["reference head"] == 2 * 32000 * 4096
    sharded = estimate(replace(npo_klr, reference="live", engine=Engine("zero3", 4)), on_gpu=False).held
    assert sharded["reference model"] == npo_klr.shape.parameters / 2


def test_cache_on_disk(npo_klr):
    rows = {"forget": 400, "retain": 3600}
    assert cache_bytes(npo_klr) is None
    known = replace(npo_klr, dataset_rows=rows, tokens_a_row=50)
    assert cache_bytes(known) == 400 * 50 * 4 + 3600 * 50 * 4096 * 2 + 32000 * 4096 * 2


def test_fused_losses_do_not_grow_with_rows_times_vocabulary(npo_klr):
    more = replace(npo_klr, rows=64)
    assert head_bytes(more) == pytest.approx(head_bytes(npo_klr), rel=0.6)
    plain = replace(npo_klr, fused=False), replace(more, fused=False)
    assert head_bytes(plain[1]) == 16 * head_bytes(plain[0])
    assert head_bytes(plain[0]) == 18 * 8 * 512 * 32000


def test_every_optimizer_of_the_table_is_one_of_transformers():
    from transformers.training_args import OptimizerNames

    assert set(OPTIMIZERS) <= {name.value for name in OptimizerNames}


@pytest.mark.parametrize("name", ["single_gpu", "multi_gpu", "zero2", "zero3", "fsdp2", "cpu"])
def test_shipped_accelerate_configs_are_understood(name):
    engine = read_engine(config_path(name), 4)
    expected = {"single_gpu": "ddp", "multi_gpu": "ddp", "cpu": "ddp"}.get(name, name)
    assert engine == Engine(expected, 4)
    with pytest.raises(ValueError, match="gpus=0"):
        read_engine(config_path(name), 0)


# Roles that share a step


def planned_for(method, *words):
    words = ["--model_name_or_path", "llama-3.2-1b", "--benchmark", "tofu", "--max_length", "100", *words]
    words += ["--output_dir", "unused", "--per_device_train_batch_size", "4"]
    return read_workload(parse_recipe(["--method", method, *words]), Engine())


@pytest.mark.parametrize(
    ("method", "words", "roles", "tokens"),
    [
        ("npo", ["--retain_loss", "nll"], ["forget", "retain"], 2 * 4 * 100),
        ("npo", ["--retain_loss", "nll", "--poison_prefix", "now"], ["forget", "retain", "poisoned"], 3 * 4 * 100),
        ("retrain", [], ["retain"], 4 * 100),
        ("retrain", ["--train_on", "all"], ["retain"], 4 * 100),
        ("amnesiac", ["--variant", "subtract", "--record_path", "unused"], ["retain"], 4 * 100),
        # An epoch of each in turns.
        ("scrub", [], ["forget", "retain"], 4 * 100),
        # Row by row, with the graphs of all draws of a row.
        ("fisher", [], ["retain"], 100),
        ("fisher", ["--fisher_samples", "3"], ["retain"], 3 * 100),
    ],
)
def test_only_roles_that_share_a_step_are_added_up(method, words, roles, tokens):
    planned = planned_for(method, *words)
    assert list(planned.workload.needs) == roles
    assert planned.workload.tokens == tokens
    # What flows between two layers: d numbers a token in float32.
    assert stream_bytes(planned.workload) == 4 * 2048 * tokens


def test_roles_that_take_turns_keep_the_logits_of_one(npo_klr):
    # 2 x 512 tokens and 32000 entries of 2 bytes: few enough to be kept until the backward.
    together = replace(npo_klr, rows=2)
    apart = replace(together, turns=True)
    assert head_bytes(together) - head_bytes(apart) == 2 * 2 * 512 * 32000
    assert head_bytes(replace(apart, fused=False)) == 18 * 2 * 512 * 32000
    both = {name: estimate(work, on_gpu=False) for name, work in (("together", together), ("apart", apart))}
    activations = {name: need.moments["forward"]["activations"] for name, need in both.items()}
    assert activations["together"] == 2 * activations["apart"]
    assert both["together"].held == both["apart"].held


def test_it_is_told_whose_rows_are_in_a_forward():
    for method, told in (("scrub", "4 rows of forget or retain"), ("retrain", "4 rows of retain")):
        assert f"a forward: {told}, up to 100 tokens" in describe(planned_for(method))
    assert "a forward: 4 rows each of forget and retain, up to" in describe(planned_for("npo", "--retain_loss", "nll"))


# Against what a run takes


def workload_of(size, case, shape):
    kl = case.settings.get("retain_loss") == "kl"
    needs = {"forget": LOGPS, "retain": KL if kl else LOGPS}
    plain = case.method is None or case.settings.get("fused_losses") is False
    return Workload(
        shape, Engine(), size.dtype, size.dtype == "bfloat16", optimizer=size.optim,
        checkpointing=size.activation_checkpointing, rows=size.rows, row_length=size.row_length, needs=needs,
        reference=None if case.method is None else "live" if plain else "cache",
        reference_roles=("forget", "retain") if case.method else (), fused=not plain,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "plain"),
    [
        ({}, False),
        pytest.param({}, True, marks=pytest.mark.slow),
        pytest.param({"dtype": "bfloat16"}, True, marks=pytest.mark.slow),
        pytest.param({"activation_checkpointing": True, "num_hidden_layers": 8}, True, marks=pytest.mark.slow),
    ],
    ids=["float32", "float32 and plain", "bfloat16 and plain", "checkpointing and plain"],
)
def test_estimate_is_within_a_quarter_of_the_measured_peak(changes, plain, monkeypatch):
    base = Size(
        hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=8000, row_length=128,
    )  # fmt: skip
    size = replace(base, **changes)
    shape = shape_of(AutoConfig.for_model("llama", **size.model_config()))
    cases = select(["npo_klr"], plain)
    # Memory is measured in a process of its own; that of the times is not needed.
    monkeypatch.setattr(
        session, "_run", lambda *args, run=session._run: run(*args) if session.GIVES_BACK in args else {}
    )
    monkeypatch.setattr(session, "_merged", lambda memory, run: memory)
    result = session.measure_all(cases, size, steps=1, warmup=1, repeats=1)
    for case, row in zip(cases, result["rows"], strict=True):
        need = estimate(workload_of(size, case, shape), on_gpu=False)
        expected = need.peak - need.held["weights"]
        assert row["above_model_bytes"]["median"] == pytest.approx(expected, rel=0.25), case.label


# Fits or not


def test_the_one_gpu_recipe_fits_and_keeps_small_updates():
    recipe = parse_recipe(["--config", str(RECIPES / "llama-2-7b" / "npo_klr_1gpu.yaml")])
    planned = read_workload(recipe, Engine())
    need, found = plan(planned, 80 * GIB)
    assert verdict(need.peak, 80 * GIB) == "fits"
    assert not found
    # Full-parameter training in float32 would not, by far.
    full = replace(planned.workload, dtype="float32", optimizer="adamw_torch")
    assert estimate(full).peak > 100 * GIB
    out = io.StringIO()
    print_plan(planned, need, found, 80 * GIB, Console(file=out, width=100))
    assert "80 GiB a GPU: fits." in out.getvalue()
    assert "Careful" not in out.getvalue()


def test_plain_bfloat16_adam_fits_with_a_warning(npo_klr):
    out = io.StringIO()
    planned = Planned(npo_klr, "a test", None)
    need, found = plan(planned, 80 * GIB)
    print_plan(planned, need, found, 80 * GIB, Console(file=out, width=100))
    assert "lose small updates" in out.getvalue()


def test_remedies_are_enough_and_no_larger_than_needed(npo_klr):
    needy = replace(npo_klr, dtype="float32", reference="live", fused=False, checkpointing=False, rows=16)
    planned = Planned(needy, "a test", None)
    limit = 60 * GIB
    found = remedies(planned, limit)
    assert found
    assert any(len(remedy.switches) > 1 for remedy in found)
    for remedy in found:
        work = needy
        for switch in remedy.switches:
            work = switch.apply(work)
        assert estimate(work).peak == remedy.peak <= limit
        for left_out in remedy.switches:
            work = needy
            for switch in remedy.switches:
                work = work and (work if switch is left_out else switch.apply(work))
            assert work is None or estimate(work).peak > limit


def test_the_mildest_switch_is_named_first(npo_klr):
    # A live reference of 12.6 GiB is all that is too much here.
    tight = replace(npo_klr, reference="live")
    limit = estimate(npo_klr).peak + GIB
    assert estimate(tight).peak > limit
    first = remedies(Planned(tight, "a test", None), limit)[0]
    assert [switch.says for switch in first.switches] == ["--reference cache"]


def test_command_line(tmp_path, capsys):
    recipe = str(RECIPES / "llama-2-7b" / "npo_klr.yaml")
    file = tmp_path / "plan.json"
    words = ["--accelerate_config", "zero3", "--gpus", "8", "--gpu_memory", "16", "--json", str(file)]
    assert main(["plan", recipe, *words, "--beta", "0.5"]) == 0
    written = json.loads(file.read_text())
    assert written["verdict"] == "does not fit"
    assert written["engine"] == {"name": "zero3", "gpus": 8}
    parts = sum(written["held"].values()) + sum(written["moments"][written["peak_at"]].values())
    assert written["peak"] == pytest.approx(parts)
    assert all(remedy["peak"] <= written["gpu_memory"] for remedy in written["remedies"])
    assert "does not fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No recipe"),
        (["--gpus", "none"], "--gpus none"),
        (["--gpu_memory", "-1"], "--gpu_memory -1"),
        (["--optim", "lomo"], "'lomo'"),
        (["--accelerate_config", "zero9"], "zero9"),
    ],
)
def test_command_line_mistakes(words, message, capsys):
    recipe = [str(RECIPES / "llama-2-7b" / "npo_klr.yaml")] if words else []
    assert main(["plan", *recipe, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_classifier_is_not_planned():
    from vilt import make_vilt

    config = make_vilt().config
    config.architectures = ["ViltForQuestionAnswering"]
    with pytest.raises(ValueError, match="The model is a ViltForQuestionAnswering, and memory is planned for causal"):
        shape_of(config)
