# SPDX-License-Identifier: Apache-2.0
import copy
import io
import json
from dataclasses import replace

import pytest
import torch
from conftest import make_model
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from hf_unlearn.bench.adding import added, read_alike
from hf_unlearn.bench.cases import APART, CASES, select
from hf_unlearn.bench.flops import model_flops, peak_flops
from hf_unlearn.bench.measured import measured as measured_file
from hf_unlearn.bench.memory import PeakMemory
from hf_unlearn.bench.observe import ForwardCounter
from hf_unlearn.bench.session import measure_all
from hf_unlearn.bench.sizes import PRESETS, Size
from hf_unlearn.bench.summary import summarise
from hf_unlearn.bench.table import markdown, notes, print_table
from hf_unlearn.cli.main import main
from hf_unlearn.methods import METHODS


CPU = torch.device("cpu")
TINY = Size(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
    vocab_size=500, rows=2, row_length=16,
)  # fmt: skip


def labels(*args):
    return [case.label for case in select(*args)]


def run(label, repeat, seconds, above=100.0, **kwargs):
    return {
        "label": label, "repeat": repeat, "step_seconds": seconds, "cpu_seconds": seconds,
        "above_model_bytes": above, "peak_bytes": above,
        "tokens_per_second": 1.0, "flops_per_second": 1e9, "utilisation": None, "policy_forwards": 1.0,
        "reference_forwards": 0.0, "preparation_tokens": [0], "parameters": 10, "model_bytes": 40, "loaded_bytes": 50,
    } | kwargs  # fmt: skip


# What is measured


def test_each_method_comes_after_fine_tuning_on_its_rows():
    assert labels(["npo", "npo_klr"], False) == ["sft (forget rows)", "npo", "sft", "npo_klr"]
    assert labels(["sft"], True) == ["sft"]


def test_plain_path_stands_beside_each_method():
    cases = select(["ga_kl"], True)
    assert [case.label for case in cases] == ["sft", "ga_kl", "ga_kl (plain)"]
    assert cases[2].settings == {"retain_loss": "kl", "fused_losses": False, "reference": "live"}


def test_plain_rmu_has_a_whole_second_model_and_computes_what_does_not_change():
    _, ours, plain = select(["rmu"], True)
    assert not ours.second_model
    assert plain.second_model
    assert plain.settings == {"fused_losses": False, "reference": "live", "cache_frozen": False}


@pytest.mark.parametrize(
    ("layers", "layer", "trained"), [(32, 7, [5, 6, 7]), (16, 3, [2, 3]), (8, 1, [1]), (2, 0, [0]), (1, 0, [0])]
)
def test_rmu_reads_as_deep_a_layer_as_in_the_paper(layers, layer, trained):
    settings = CASES["rmu"].settings_for(layers)
    assert settings == {"layer_id": layer, "layer_ids": trained}
    assert CASES["npo"].settings_for(layers) == CASES["npo"].settings


def test_unknown_method_names_the_nearest():
    with pytest.raises(ValueError, match="'npo_klr'"):
        select(["npo_krl"], True)


def test_every_method_has_a_case_or_a_reason():
    assert {case.method for case in CASES.values()} == set(METHODS) - {*APART}, (
        "Give a new method a case in hf_unlearn/bench/cases.py, or say in APART there why it has no ratio."
    )
    assert {*APART} < {*METHODS}


def test_all_is_every_case():
    assert labels(["all"], False) == labels([*CASES], False)
    assert labels(["npo", "all"], False).count("npo") == 1


def test_the_large_presets_are_the_published_models():
    from transformers import AutoConfig, AutoModelForCausalLM

    published = {"7b": 6_738_415_616, "1b": 1_235_814_400}
    for name, count in published.items():
        config = AutoConfig.for_model("llama", **PRESETS[name].model_config())
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == count


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="same even width"):
        replace(TINY, hidden_size=30, num_attention_heads=4)
    with pytest.raises(ValueError, match="row_length=1"):
        replace(TINY, row_length=1)
    with pytest.raises(ValueError, match="float16"):
        replace(TINY, dtype="float16")


# How it is measured


def test_counter_sees_copies_and_tells_the_policy_from_the_reference():
    model = make_model()
    twin = copy.deepcopy(model)
    ids = torch.ones((2, 3), dtype=torch.long)
    counter = ForwardCounter()
    with counter.watching(type(model.base_model)):
        model(input_ids=ids)
        with torch.no_grad():
            twin(input_ids=ids)
            twin.model(input_ids=ids)
    model(input_ids=ids)
    assert counter.counts == {"policy": 1, "reference": 2, "tokens": 18}


def test_peak_memory_sees_what_was_freed_again():
    size = 64 * 2**20
    ballast = torch.ones(size // 4)
    memory = PeakMemory(CPU)
    assert memory.peak() - memory.before < size // 8
    del ballast
    torch.ones(2 * size // 4)
    # A new tensor may take the room of one that was freed since.
    assert size // 2 < memory.peak() - memory.before < 3 * size


@pytest.mark.parametrize("tie", [False, True])
def test_model_flops_are_what_pytorch_counts(tie):
    model = make_model(tie=tie)
    model.set_attn_implementation("eager")
    rows, length = 2, 16
    ids = torch.ones((rows, length), dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    # Eager attention multiplies what causality masks too: twice the half that has to be.
    config = model.config
    wasted = 6 * config.num_hidden_layers * config.hidden_size * length * rows * length
    assert model_flops(model, rows, length) + wasted == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_peak_rates():
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") < peak_flops("NVIDIA H100 80GB HBM3", "bfloat16")
    assert peak_flops("NVIDIA H100 80GB HBM3", "float32") is None
    assert peak_flops("AMD EPYC", "bfloat16") is None


@pytest.fixture
def measured(tmp_path):
    """Runs a case in this process; a reference cache is shared between calls."""
    from hf_unlearn.bench.worker import measure

    def call(name, plain=False, size=TINY):
        case = next(case for case in select([name], True) if case.label == (f"{name} (plain)" if plain else name))
        return measure(case, size, CPU, steps=2, warmup=1, folder=str(tmp_path / "run"), cache=str(tmp_path / "cache"))

    return call


@pytest.mark.parametrize("name", ["ga_kl", "npo_klr", "rmu"])
def test_a_step_is_one_policy_forward_and_no_reference_forward(measured, name):
    first, second = measured(name), measured(name)
    for found in (first, second):
        assert found["policy_forwards"] == 1
        assert found["reference_forwards"] == 0
    # The second run finds the first one's reference: no row goes through the model before the first step, but for a
    # few tokens that try the model and its head.
    tried = 2 * 16 + 2 * (16 + 3) + 2 * 16
    rows = 4 * TINY.rows * TINY.row_length
    assert first["preparation_tokens"][0] >= rows
    assert second["preparation_tokens"][0] < TINY.row_length + 1 + tried < rows


@pytest.mark.parametrize("name", ["npo_klr", "rmu"])
def test_the_plain_path_runs_a_second_model_every_step(measured, name):
    found = measured(name, plain=True)
    assert found["policy_forwards"] == 1
    assert found["reference_forwards"] == 1


@pytest.mark.slow
def test_rmu_takes_about_a_quarter_of_the_time_and_memory_of_its_plain_form():
    # Processor time, for the machine may be busy.
    size = Size(hidden_size=256, intermediate_size=688, num_attention_heads=4, num_key_value_heads=4, row_length=128)
    cases = select(["rmu"], True)
    result = measure_all(cases, size, steps=3, warmup=1, repeats=1, threads=1)
    _, ours, plain = result["rows"]
    assert plain["cpu_time_ratio"]["median"] > 4 * ours["cpu_time_ratio"]["median"]
    # 3.93 and 3.98 on one machine: what an allocator keeps differs.
    assert plain["above_model_bytes"]["median"] > 3.5 * ours["above_model_bytes"]["median"]


def test_fine_tuning_takes_the_same_rows(measured):
    ours, theirs = measured("grad_diff"), measured("sft")
    assert ours["parameters"] == theirs["parameters"]
    assert theirs["policy_forwards"] == 1
    tokens = 2 * TINY.rows * TINY.row_length
    for found in (ours, theirs):
        assert found["tokens_per_second"] == pytest.approx(tokens / found["step_seconds"])
        assert len(found["all_step_seconds"]) == 2


# What is made of it


def test_ratios_are_taken_within_a_repeat():
    cases = select(["ga_kl"], False)
    # The machine is four times slower in the second repeat; the ratio is not.
    runs = [run("sft", 0, 1.0), run("ga_kl", 0, 1.2, 110.0), run("sft", 1, 4.0), run("ga_kl", 1, 4.4, 130.0)]
    _, row = summarise(runs, cases)
    assert row["time_ratio"] == {"median": pytest.approx(1.15), "min": pytest.approx(1.1), "max": pytest.approx(1.2)}
    assert row["memory_ratio"]["max"] == pytest.approx(1.3)
    assert row["step_seconds"]["max"] == 4.4
    # Where fine-tuning was timed in the same process, it is that which counts; memory is of processes of their own.
    for one, seconds in zip(runs[1::2], (1.0, 2.0), strict=True):
        one["beside"] = {"step_seconds": seconds, "cpu_seconds": seconds}
    _, row = summarise(runs, cases)
    assert (row["cpu_time_ratio"]["min"], row["cpu_time_ratio"]["max"]) == (pytest.approx(1.2), pytest.approx(2.2))
    assert row["memory_ratio"]["max"] == pytest.approx(1.3)


def test_a_failed_case_is_shown_and_the_others_stay():
    cases = select(["ga_kl"], True)
    failed = {"label": "ga_kl (plain)", "repeat": 0, "error": "out of memory"}
    rows = summarise([run("sft", 0, 1.0), run("ga_kl", 0, 1.2), failed], cases)
    machine = {"device": "cpu", "accelerator": None, "processor": "Z80", "processors": 1, "threads": 1,
               "versions": {"torch": "2", "transformers": "5"}}  # fmt: skip
    result = {
        "rows": rows, "machine": machine, "load_before": 3.0, "size": vars(TINY).copy(),
        "settings": {"steps": 1, "warmup": 1, "repeats": 1},
    }  # fmt: skip
    assert "failed: out of memory" in markdown(result)
    out = io.StringIO()
    print_table(result, Console(file=out, width=80))
    assert "1.20" in out.getvalue()
    assert "load 3.0" in out.getvalue()


def test_command_line(tmp_path, capsys):
    sizes = [word for name, value in vars(TINY).items() if type(value) is int for word in (f"--{name}", str(value))]
    files = ["--json", str(tmp_path / "b.json"), "--markdown", str(tmp_path / "b.md")]
    # Fine-tuning alone: two processes.
    code = main(["bench", *sizes, "--methods", "sft", "--steps", "1", "--warmup", "1", "--repeats", "1", *files])
    assert code == 0
    result = json.loads((tmp_path / "b.json").read_text())
    (row,) = result["rows"]
    assert row["time_ratio"]["median"] == 1
    assert row["above_model_bytes"]["median"] > 0
    assert result["machine"]["versions"]["torch"] == torch.__version__
    assert "| sft |" in (tmp_path / "b.md").read_text()
    assert "sft" in capsys.readouterr().out


def test_what_was_measured_alike_is_added_to(tmp_path):
    def measured(labels, created, load=0.1):
        runs = [run(label, 0, 2.0 if label == "npo_klr" else 1.0) for label in labels]
        cases = [case for case in select(["all"], False) if case.label in labels]
        return {"created": created, "size": {"rows": 2}, "settings": {"steps": 1}, "machine": {"threads": 1},
                "load_before": load, "rows": summarise(runs, cases), "runs": runs}  # fmt: skip

    first, second = measured(["sft", "ga_kl", "npo_klr"], "1999", load=7.0), measured(["sft", "ga_kl"], "2001")
    path = tmp_path / "b.json"
    path.write_text(json.dumps(first))
    with pytest.raises(ValueError, match="was measured with machine threads=1, and this is 4. Measure alike"):
        read_alike(path, second | {"machine": {"threads": 4}})
    with pytest.raises(ValueError, match="Leave `--add` out"):
        read_alike(tmp_path / "none.json", second)
    found = added(read_alike(path, second), second)
    rows = {row["label"]: row for row in found["rows"]}
    assert {label: row["created"] for label, row in rows.items()} == {
        "npo_klr": "1999",
        "sft": "2001",
        "ga_kl": "2001",
    }
    assert rows["npo_klr"]["time_ratio"]["median"] == 2
    assert sorted(run["label"] for run in found["runs"]) == ["ga_kl", "npo_klr", "sft"]
    assert found["load_before"] == 7.0


def test_what_is_more_than_a_pass_and_what_is_apart_is_told():
    result = {"rows": [{"label": name, "method": case.method} for name, case in CASES.items()], "load_before": 0.0,
              "machine": {"device": "cpu"}}  # fmt: skip
    told = "\n".join(notes(result))
    assert "repnoise: the head reads forget rows once for every layer" in told
    assert all(f"{name} ({why})" in told for name, why in APART.items())
    result["rows"] = result["rows"][:1]
    assert not any(name in "\n".join(notes(result)) for name in ("repnoise", "fisher"))


def test_no_method_is_above_a_quarter_more_than_fine_tuning_without_a_reason():
    found = measured_file()
    explained = {case.label for case in CASES.values() if case.more}
    ratios = {row["label"]: row["cpu_time_ratio"]["median"] for row in found["rows"] if "error" not in row}
    assert {label: ratio for label, ratio in ratios.items() if ratio > 1.25 and label not in explained} == {}


def test_command_line_mistakes(capsys):
    assert main(["bench", "--methods", "nope"]) == 2
    assert main(["bench", "--add"]) == 2
    assert main(["bench", "--steps", "0"]) == 2
    assert "steps=0" in capsys.readouterr().err
