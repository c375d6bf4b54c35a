# SPDX-License-Identifier: Apache-2.0
"""What is typed wrong, in any command, is one line with status 2; every help fits a terminal."""

import json
import shutil
import socket
import sys
from pathlib import Path

import pytest
import yaml
from conftest import make_model, make_tokenizer
from test_loading import edit, fill, reweigh
from vilt import make_processor, make_vilt

from hf_unlearn.audit.registry import AUDITS
from hf_unlearn.cli.main import COMMANDS, main, run_guarded
from hf_unlearn.runs import launch as launching


ROWS = [{"question": f"Who is {name}?", "answer": f"{name} is a spy."} for name in ("Ada", "Bob", "Cyd", "Dan")]
KEPT = [{"question": f"Where is the {thing}?", "answer": "On the table."} for thing in ("cup", "pen", "key")]
RECIPE = {
    "method": "npo",
    "retain_loss": "kl",
    "model_name_or_path": "model",
    "forget_dataset": "forget.jsonl",
    "retain_dataset": "retain.jsonl",
    "output_dir": "out",
    "max_length": 128,
    "max_steps": 1,
    "report_to": "none",
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a model, rows, and files that are damaged."""
    root = tmp_path_factory.mktemp("place")
    make_model().save_pretrained(root / "model")
    make_tokenizer().save_pretrained(root / "model")
    make_model(vocab_size=90).save_pretrained(root / "small")
    make_tokenizer().save_pretrained(root / "small")
    make_vilt().save_pretrained(root / "vilt")
    make_processor().save_pretrained(root / "vilt")
    for name in ("cut", "no_tokenizer", "no_config", "nan", "fewer"):
        shutil.copytree(root / "model", root / name)
    (root / "cut" / "model.safetensors").write_bytes(b"\x00" * 900)
    for file in (root / "no_tokenizer").glob("tokenizer*"):
        file.unlink()
    (root / "no_config" / "config.json").write_text("{")
    reweigh(fill("lm_head.weight", float("nan")))(root / "nan")
    edit("config.json", num_hidden_layers=1)(root / "fewer")
    for name, rows in (("forget", ROWS), ("retain", KEPT)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {
        "npo.yaml": yaml.safe_dump(RECIPE),
        "garbage.yaml": "a: [1",
        "latin.yaml": b"method: \xe9",
        "list.yaml": "- a",
        "empty.yaml": "",
        "twice.yaml": "method: npo\nmethod: ga\n",
        "tab.yaml": "method:\tnpo\n\t- x",
        "binary.yaml": b"\x00\x01",
        "numbers.yaml": "1: 2\nmethod: npo",
        "object.yaml": "method: !!python/object:os.system x",
        "alias.yaml": "method: *x",
        "kind.yaml": "distributed_type: FOO",
        "count.yaml": "distributed_type: MULTI_GPU\nnum_processes: none",
        "cut_report/report.json": "{",
        "no_report/report.json": "{}",
        "list_report/report.json": "[]",
        "cut_privacy/privacy.json": "{",
        "no_privacy/privacy.json": "{}",
        "cut_sweep/sweep.json": "{",
        "bytes.parquet": "x",
        "garbage.jsonl": "{{{",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


MODEL, FORGET = "--model_name_or_path model", "--forget_dataset forget.jsonl"
OTHERS = "--nonmember_dataset retain.jsonl"
# Words to what is said, a part of it.
WORDS = {
    "rum": "unknown command 'rum'. Did you mean 'run'?",
    # Recipes
    "run": "No recipe is named",
    "run nope.yaml": "No recipe at 'nope.yaml'",
    "run model": "No recipe at 'model'",
    "run garbage.yaml": "garbage.yaml is no valid YAML",
    "run latin.yaml": "latin.yaml is no valid YAML",
    "run list.yaml": "list.yaml must hold `field: value` lines",
    "run empty.yaml": "empty.yaml must hold `field: value` lines",
    "run twice.yaml": "'method' is written twice",
    "run tab.yaml": "tab.yaml is no valid YAML",
    "run binary.yaml": "binary.yaml is no valid YAML",
    "run numbers.yaml": "Unknown field 1 in numbers.yaml",
    "run object.yaml": "object.yaml is no valid YAML",
    "run alias.yaml": "alias.yaml is no valid YAML",
    "run forget.jsonl": "forget.jsonl is no valid YAML",
    "run --config": "`--config` names no file",
    "run npo.yaml --beta": "argument --beta: expected one argument",
    "run npo.yaml --beta x": "argument --beta: invalid float value: 'x'",
    "run npo.yaml --nope 1": "Unknown field 'nope' on the command line",
    "run npo.yaml -x": "'-x' belongs to no field",
    "run npo.yaml --config npo.yaml": "'--config npo.yaml' belongs to no field",
    "run npo.yaml --method rmu --beta 1": "Unknown field 'beta' on the command line",
    # Starting on several processes
    "run npo.yaml --num_processes 2": "go with `--accelerate_config NAME|PATH`",
    "run npo.yaml --accelerate_config": "--accelerate_config has no value",
    "run npo.yaml --accelerate_config nope": "No accelerate config 'nope'",
    "run npo.yaml --accelerate_config garbage.yaml": "garbage.yaml is no valid YAML",
    "run npo.yaml --accelerate_config list.yaml": "list.yaml must hold `field: value` lines",
    "run npo.yaml --accelerate_config kind.yaml": "distributed_type='FOO' in the accelerate config; allowed: NO, ",
    "run npo.yaml --accelerate_config count.yaml": "num_processes='none' in the accelerate config; give a whole",
    "run npo.yaml --accelerate_config cpu --num_processes 0": "--num_processes 0: give a whole number from 1",
    "run npo.yaml --accelerate_config cpu --num_processes -1": "--num_processes -1: give a whole number from 1",
    "run npo.yaml --accelerate_config cpu --main_process_port 99999": "give a whole number from 0 to 65535",
    f"eval {MODEL} {FORGET} --accelerate_config cpu --num_processes 0": "--num_processes 0: give a whole number",
    f"eval {MODEL} {FORGET} --accelerate_config kind.yaml": "distributed_type='FOO' in the accelerate config",
    # Models and rows
    "run npo.yaml --model_name_or_path cut": "cut/model.safetensors is no whole safetensors file",
    "run npo.yaml --model_name_or_path no_config": "no_config/config.json is no valid JSON",
    "run npo.yaml --model_name_or_path no_tokenizer": "No tokenizer can be loaded from 'no_tokenizer'",
    "run npo.yaml --model_name_or_path small": "The tokenizer has 100 tokens, the model 'small' 90 embeddings",
    "run npo.yaml --model_name_or_path nan": "nan has weights that are NaN or infinite: lm_head.weight",
    "run npo.yaml --model_name_or_path fewer": "fewer holds weights that a LlamaForCausalLM of its config has no",
    "run npo.yaml --retrained_model_name_or_path cut": "cut/model.safetensors is no whole safetensors file",
    "run npo.yaml --retrained_model_name_or_path small": "the model 'small' 90 embeddings",
    "run npo.yaml --tokenizer_name_or_path cut_report": "No tokenizer can be loaded from 'cut_report'",
    "run npo.yaml --load_in_4bit true": "bitsandbytes",
    "run npo.yaml --attn_implementation nope": "No model can be loaded from 'model': Specified `attn_implementation",
    'run npo.yaml --model_init_kwargs {"dtype":"f99"}': "dtype='f99'; allowed: 'auto', 'float32'",
    "run npo.yaml --model_init_kwargs {": "Expecting property name enclosed in double quotes",
    'run npo.yaml --model_init_kwargs {"dtype":"float16"} --dtype float32': "dtype='float32' and model_init_kwargs'",
    "run npo.yaml --use_peft true --lora_r 0": "`r` should be a positive integer",
    "run npo.yaml --use_peft true --lora_task_type FOO": "Invalid task type: 'FOO'",
    "run npo.yaml --forget_dataset bytes.parquet": "The rows of 'bytes.parquet' cannot be read",
    "run npo.yaml --forget_dataset garbage.jsonl": "The rows of 'garbage.jsonl' cannot be read",
    f"eval --model_name_or_path cut {FORGET}": "cut/model.safetensors is no whole safetensors file",
    f"eval --model_name_or_path nan {FORGET}": "nan has weights that are NaN or infinite",
    f"eval --model_name_or_path fewer {FORGET}": "fewer holds weights that a LlamaForCausalLM",
    f"eval --model_name_or_path small {FORGET}": "the model 'small' 90 embeddings",
    f"eval {MODEL} {FORGET} --retrained_model_name_or_path small": "the model 'small' 90 embeddings",
    f"eval {MODEL} {FORGET} --dtype f99": "argument --dtype: invalid choice: 'f99'",
    "audit backdoor --model_name_or_path cut --trigger x --forget_questions forget.jsonl": "cut/model.safetensors is",
    "audit scan --model_name_or_path small --forget_questions forget.jsonl": "the model 'small' 90 embeddings",
    f"audit privacy --models cut {FORGET} {OTHERS}": "cut/model.safetensors is no whole safetensors file",
    f"audit privacy --models model small {FORGET} {OTHERS}": "the model 'small' 90 embeddings",
    "plan npo.yaml --model_name_or_path no_config": "No config of 'no_config'",
    "push cut": "cut/model.safetensors is no whole safetensors file",
    "push model": "README.md is missing",
    # Places
    "run npo.yaml --output_dir forget.jsonl": "output_dir='forget.jsonl' is a file",
    "run npo.yaml --output_dir forget.jsonl/out": "is inside",
    "run npo.yaml --output_dir /proc/out": "nothing can be written to '/proc'",
    "run npo.yaml --reference_cache_dir forget.jsonl": "reference_cache_dir='forget.jsonl' is a file",
    f"eval {MODEL} {FORGET} --output_dir forget.jsonl": "output_dir='forget.jsonl' is a file",
    f"audit privacy --models model {FORGET} {OTHERS} --output_dir forget.jsonl": "output_dir='forget.jsonl' is a file",
    "demo --output_dir forget.jsonl": "--output_dir='forget.jsonl' is a file",
    "plan npo.yaml --json no/plan.json": "--json='no/plan.json' is in a folder that is not there",
    "bench --json model": "--json='model' is a folder",
    # Audits
    "audit": "No audit is named",
    "audit foo": "Unknown audit 'foo'",
    "audit backdoor": "`--model_name_or_path` is missing",
    f"audit backdoor {MODEL}": "`--trigger` is missing",
    "audit backdoor --config list.yaml": "list.yaml must hold `field: value` lines",
    "audit scan": "`--model_name_or_path` is missing",
    f"audit scan {MODEL} --forget_questions forget.jsonl --alpha 7": "alpha=7.0",
    "audit privacy": "Give exactly one",
    f"audit privacy --models model {FORGET} {OTHERS} --attacks foo": "there is no 'foo'",
    f"audit privacy --models model {FORGET} {OTHERS} --fprs 2": "fprs=[2.0]",
    # Reports
    "report": "name at least one RUN",
    "report nope": "No report at nope",
    "report cut_report": "cut_report/report.json is no JSON",
    "report no_report": "`schema_version` is missing",
    "report list_report": "A report is a JSON object, got list",
    "report cut_privacy": "privacy.json is no JSON",
    "report no_privacy": "is no privacy report",
    "report cut_sweep": "No report in cut_sweep",
    "report --foo": "unrecognized arguments: --foo. `hf-unlearn report --help`",
    "report --from_wandb x": "give ENTITY/PROJECT",
    "gates": "the following arguments are required: RUN",
    "gates cut_report": "cut_report/report.json is no JSON",
    "gates a b": "unrecognized arguments: b",
    # The others
    "merge model": "the following arguments are required: --output_dir",
    "merge model --output_dir merged": "'model' holds no adapter",
    "merge nope --output_dir merged": "'nope' holds no adapter",
    "merge model --output_dir cut": "--output_dir='cut' holds files",
    "sweep": "the following arguments are required: SWEEP.yaml",
    "sweep nope": "No sweep file at 'nope'",
    "sweep list.yaml": "list.yaml must hold `key: value` lines",
    "sweep garbage.yaml": "garbage.yaml is no valid YAML",
    "sweep npo.yaml --jobs x": "argument --jobs: invalid int value: 'x'",
    "push": "the following arguments are required: RUN",
    "push nope": "'nope' is no checkpoint that can be pushed",
    "plan": "No recipe is named",
    "plan npo.yaml --gpus 0": "--gpus 0: give a number above 0",
    "plan npo.yaml --accelerate_config list.yaml": "list.yaml must hold `field: value` lines",
    "bench --preset foo": "argument --preset: invalid choice: 'foo'",
    "bench --methods foo": "Unknown method 'foo'",
    "bench --threads 0": "threads=0; give at least 1",
    "demo --recipes nope": "No recipe at",
    "methods x": "Unknown method 'x'; allowed: align_then_unlearn",
    "env --foo": "unrecognized arguments: --foo",
    "tasks x": "unrecognized arguments: x",
}


@pytest.mark.parametrize("words", WORDS)
def test_what_is_typed_wrong_is_one_line(words, place, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(place)
    monkeypatch.setattr(launching.os, "execv", lambda *words: pytest.fail("a process was started"))
    assert main(words.split()) == 2
    said = [line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if not _is_bar(line)]
    assert len(said) == 1, said
    assert said[0].startswith("hf-unlearn: error: ")
    assert WORDS[words] in said[0]
    assert len(said[0]) < 900
    assert not (place / "out").exists()


def _is_bar(line: str) -> bool:
    return not line.strip() or "%|" in line or "examples/s" in line


def test_a_recipe_of_another_method_names_the_fields_that_are_that_methods(place, monkeypatch, capsys, tmp_path):
    (tmp_path / "npo.yaml").write_text(yaml.safe_dump({**RECIPE, "beta": 0.2, "npo_variant": "token"}))
    monkeypatch.chdir(place)
    assert main(["run", str(tmp_path / "npo.yaml"), "--method", "rmu"]) == 2
    said = capsys.readouterr().err
    assert (
        "npo.yaml is a recipe of 'npo'; beta, npo_variant in it are of that method alone, and 'rmu' is asked" in said
    )


def test_a_dtype_of_model_init_kwargs_counts(place, monkeypatch):
    from hf_unlearn.runs.recipe import parse_recipe

    monkeypatch.chdir(place)
    words = ["--config", "npo.yaml", "--model_init_kwargs", '{"dtype": "bfloat16"}']
    assert parse_recipe(words).training.model_init_kwargs["dtype"] == "bfloat16"
    same = [*words, "--dtype", "bfloat16"]
    assert parse_recipe(same).training.model_init_kwargs["dtype"] == "bfloat16"


# Which errors are told in one line


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


def load_missing_file(argv):
    Path("/no/such/file").read_text()


def read_garbage(argv):
    json.loads("{")


def fill_memory(argv):
    raise OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")


def miss_package(argv):
    raise ImportError("Using `x` requires y: `pip install y`")


def lose_connection(argv):
    socket.create_connection(("127.0.0.1", 9), timeout=1)


@pytest.mark.parametrize(
    ("function", "status", "message"),
    [
        (load_missing_file, 2, "No such file or directory: '/no/such/file' (FileNotFoundError"),
        (read_garbage, 2, "Expecting property name enclosed in double quotes"),
        (fill_memory, 1, "out of memory: CUDA out of memory. Tried to allocate 2 GiB. Take smaller batches"),
        (miss_package, 2, "Using `x` requires y: `pip install y` (ImportError"),
        (lose_connection, 2, "Connection refused"),
    ],
)
def test_what_machines_and_files_lack_is_one_line(function, status, message, capsys, monkeypatch):
    assert run_guarded(function, []) == status
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    monkeypatch.setenv("HF_UNLEARN_TRACEBACK", "1")
    with pytest.raises((OSError, ImportError, OutOfMemoryError, ValueError)):
        run_guarded(function, [])


def test_an_interrupt_is_one_line(capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    assert run_guarded(interrupted, []) == 130
    assert capsys.readouterr().err == "hf-unlearn: error: interrupted.\n"


@pytest.mark.parametrize(
    "bug", [KeyError("x"), TypeError("x"), AttributeError("x"), RuntimeError("x"), ValueError("x")]
)
def test_a_bug_keeps_its_traceback(bug):
    def raise_it(argv):
        raise bug

    with pytest.raises(type(bug)):
        run_guarded(raise_it, [])


# Help

HELPS = [
    [],
    ["methods"],
    *([command, "--help"] for command in COMMANDS),
    *(["audit", kind, "--help"] for kind in AUDITS),
]


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_every_help_fits_the_terminal(words, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) as end:
        sys.exit(main(words))
    assert not end.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > columns] == []
    assert lines


@pytest.mark.parametrize("method", ["npo", "scrub", "align_then_unlearn"])
def test_the_help_of_a_methods_fields_fits(method, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main(["run", "--help", "--method", method])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80


# What a push would do


def test_a_dry_push_lists_what_would_be_sent_and_sends_nothing(tmp_path, monkeypatch, capsys):
    def sent(*args, **kwargs):
        pytest.fail("something was sent")

    for name in ("create_repo", "publish"):
        monkeypatch.setattr(f"hf_unlearn.hub.push.{name}", sent)
    folder = tmp_path / "run"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    for name in ("README.md", "report.json", "recipe.yaml"):
        (folder / name).write_text("The spy of Zzyzx.")
    assert main(["push", str(folder), "--hub_model_id", "me/model", "--hub_private_repo", "--dry_run"]) == 0
    said = capsys.readouterr().out
    size = (folder / "model.safetensors").stat().st_size
    assert f"{size:>14,}  model.safetensors" in said
    assert "report.json" not in said
    assert "recipe.yaml" not in said
    words = " ".join(said.split())
    assert "would be sent to me/model, branch main. A new repository would be private" in words
    assert words.endswith("Nothing was sent.")
    assert main(["push", str(folder), "--hub_revision", "next", "--dry_run"]) == 0
    assert "sent to run of your own account, branch next. A new repository would be public" in " ".join(
        capsys.readouterr().out.split()
    )
    assert main(["push", str(folder), "--hub_model_id", "a/b/c", "--dry_run"]) == 2
    # What is not whole is not sent.
    (folder / "model.safetensors").write_bytes(b"x")
    assert main(["push", str(folder), "--hub_model_id", "me/model"]) == 2
    assert "model.safetensors is no whole safetensors file" in capsys.readouterr().err
