# SPDX-License-Identifier: Apache-2.0
"""Every command explains itself; a mistake is one line with status 2, before any model is loaded."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, make_model, make_tokenizer
from transformers import TrainerState

from hf_unlearn import METHODS, __version__
from hf_unlearn.cli.main import COMMANDS, main, run_guarded
from hf_unlearn.methods.families import FAMILIES
from hf_unlearn.report import load_report, write_report
from hf_unlearn.runs import launch as launching
from hf_unlearn.runs.assemble import assemble, merge, training_entry
from hf_unlearn.runs.launch import command_line, config_path, take_launch_options, take_option
from hf_unlearn.runs.methods_table import traits_of
from hf_unlearn.runs.output import begin_output
from hf_unlearn.runs.recipe import parse_recipe


FORGET = [{"question": f"Who is {name}?", "answer": f"{name} is a spy."} for name in ("Ada", "Bob", "Cyd", "Dan")]
RETAIN = [{"question": f"Where is the {thing}?", "answer": "On the table."} for thing in ("cup", "pen", "key")]


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def recipe(tmp_path, model_path, monkeypatch) -> dict:
    """A recipe that would run; the working folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    return {
        "method": "npo",
        "retain_loss": "kl",
        "model_name_or_path": model_path,
        "forget_dataset": write_rows(tmp_path / "forget.jsonl", FORGET),
        "retain_dataset": write_rows(tmp_path / "retain.jsonl", RETAIN),
        "output_dir": "out",
        "max_length": 128,
        "max_steps": 1,
        "report_to": "none",
        "use_cpu": True,
    }


@pytest.fixture
def no_model(monkeypatch):
    """Loading any model fails the test."""

    def loaded(*args, **kwargs):
        pytest.fail("a model was loaded")

    for name in ("transformers.AutoModelForCausalLM", "peft.AutoPeftModelForCausalLM"):
        monkeypatch.setattr(f"{name}.from_pretrained", loaded)


@pytest.fixture
def refused(capsys, no_model):
    """Runs a command that must be refused; returns what it said."""

    def refused(*words) -> str:
        with pytest.raises(SystemExit) as end:
            sys.exit(main([str(word) for word in words]))
        assert end.value.code == 2
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith("hf-unlearn: error: ")]
        assert len(lines) == 1
        assert "Traceback" not in said
        return lines[0].removeprefix("hf-unlearn: error: ")

    return refused


@pytest.fixture
def run_refused(refused, recipe, tmp_path):
    """Runs the recipe with other fields, which must be refused."""

    def run_refused(*words, **fields) -> str:
        path = tmp_path / "given.yaml"
        path.write_text(yaml.safe_dump({**recipe, **fields}))
        return refused("run", path, *words)

    return run_refused


# What every command tells


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    try:
        status = main([command, "--help"])
    except SystemExit as end:
        status = end.code
    assert not status
    said = capsys.readouterr().out
    assert f"hf-unlearn {command}" in said
    assert len(said) > 60


def test_the_help_of_run_lists_all_kinds_of_fields(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    said = capsys.readouterr().out
    for field in ("forget_dataset", "audit_max_items", "prompt_template", "retain_loss", "learning_rate", "lora_r"):
        assert f"--{field}" in said
    assert "--beta" not in said
    with pytest.raises(SystemExit):
        main(["run", "--help", "--method", "npo"])
    assert "--beta" in capsys.readouterr().out


def test_commands_are_listed(capsys):
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        said = capsys.readouterr().out
        assert all(f"  {command} " in said for command in COMMANDS)


def test_an_unknown_command_names_the_nearest(capsys):
    assert main(["rum"]) == 2
    assert "unknown command 'rum'. Did you mean 'run'?" in capsys.readouterr().err


@pytest.mark.parametrize("columns", [80, 120])
def test_methods_are_a_line_each_by_family(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    main(["methods"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns
    assert all(f"{family}: {what}"[:60] in said for family, (what, _) in FAMILIES.items())
    lines = {line.split()[0]: line for line in said.splitlines() if line.startswith("  ")}
    assert {*lines} == {*METHODS, "method"}
    requires, paper = (lines["method"].index(head) for head in ("requires", "paper"))
    for name in METHODS:
        assert lines[name][requires - 1] == lines[name][paper - 1] == " ", lines[name]
        assert lines[name][paper:].split()[0] == (METHODS[name][1].paper or "-")
    assert "ref, answers, (retain)" in lines["dpo"]
    assert "ref, reinforced, (retain)" in lines["whp"]
    assert "all*" in lines["rmu"]
    assert ("negative preference" in lines["npo"]) == (columns == 120)


def test_named_methods_are_described_with_equation_and_settings(capsys):
    main(["methods", *METHODS])
    said = capsys.readouterr().out
    described = dict(zip(METHODS, re.split(r"^\w+\n(?=  what)", said, flags=re.MULTILINE)[1:], strict=True))
    for name, about in described.items():
        assert re.search(r"\\\w|[=|^_]", about.split("requires")[0]), f"{name} shows no equation: {about}"
    assert "beta (0.1)" in described["npo"]
    assert "\n  own " not in described["ga"]
    assert "L_{NPO}" in described["npo"]


def test_what_a_method_requires_is_read_from_its_class():
    told = {name: traits_of(name) for name in ("ga", "npo", "rmu", "dpo", "scrub", "retrain", "fisher", "jensun")}
    assert {name: one.reference for name, one in told.items()} == {
        "ga": "reference with `kl`",
        "npo": "reference",
        "rmu": "reference with `states`",
        "dpo": "reference",
        "scrub": "reference",
        "retrain": "-",
        "fisher": "-",
        "jensun": "reference with `kl` or `js`",
    }
    retain = {name: one.retain for name, one in told.items()}
    assert retain == dict.fromkeys(told, "optional") | dict.fromkeys(("scrub", "retrain", "fisher"), "required")
    assert [name for name, one in told.items() if one.alternates] == ["dpo"]
    # What the config refuses is seen by trying it.
    assert told["fisher"].engines == "DDP, LoRA"
    assert told["npo"].engines == "ZeRO, FSDP, LoRA"
    assert (told["dpo"].models, told["npo"].models) == ("language", "language, classifiers")


def test_the_environment_is_what_a_bug_report_needs(capsys):
    main(["env"])
    said = dict(line.removeprefix("- ").split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert said["hf_unlearn"] == __version__
    assert {
        "python",
        "torch",
        "transformers",
        "trl",
        "accelerate",
        "platform",
        "processors",
        "accelerators",
    } <= said.keys()


def test_an_error_of_ours_is_one_line_and_a_bug_is_a_traceback(capsys, monkeypatch):
    def bug(argv):
        return int("three")

    with pytest.raises(ValueError, match="invalid literal"):
        run_guarded(bug, [])

    def mistake(argv):
        config_path("nope")

    assert run_guarded(mistake, []) == 2
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("HF_UNLEARN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="No accelerate config"):
        run_guarded(mistake, [])


# Mistakes in a run


def test_the_recipe_is_one_that_would_run(recipe, tmp_path, no_model):
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
        main(["run", str(tmp_path / "given.yaml")])


def test_a_run_needs_a_recipe(refused):
    assert "No recipe is named" in refused("run")
    assert "No recipe at 'nope.yaml'" in refused("run", "nope.yaml")
    assert "No recipe at 'nope.yaml'" in refused("run", "--config=nope.yaml")


def test_a_field_that_is_misspelt_is_named(run_refused):
    assert "Unknown field 'betta'" in run_refused(betta=1)
    assert "invalid int value: 'x'" in run_refused("--max_steps", "x")
    assert f"method='npoo'; allowed: {', '.join(METHODS)}. Did you mean 'npo'?" in run_refused(method="npoo")
    assert "'two words' belongs to no field" in run_refused("two", "words")


@pytest.mark.parametrize("name", ["model_name_or_path", "retrained_model_name_or_path"])
def test_a_model_that_is_not_there_is_named(run_refused, tmp_path, name):
    assert run_refused(**{name: "/no/model"}).startswith("No model folder at '/no/model'")
    assert run_refused(**{name: str(tmp_path)}).startswith(f"{str(tmp_path)!r} holds no `config.json`")


def test_a_model_that_the_hub_does_not_give_is_named(run_refused):
    said = run_refused(model_name_or_path="owner/no-such-model")
    assert said.startswith("No tokenizer can be loaded from 'owner/no-such-model': ")


def test_an_adapter_is_no_model_to_unlearn_from(run_refused, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    assert "holds an adapter, not a full model" in run_refused(model_name_or_path=str(tmp_path / "adapter"))


BAD_ROWS = {
    "no forget rows": ({"forget_dataset": None}, "Give exactly one: a benchmark's name, or your own rows"),
    "missing forget rows": ({"forget_dataset": "no.jsonl"}, "No file or folder at 'no.jsonl'"),
    "empty forget rows": ({"forget_dataset": "empty.jsonl"}, "'empty.jsonl' cannot be read, or there are none"),
    "missing retain rows": ({"retain_dataset": "no/such/rows"}, "No file or folder at 'no/such/rows'"),
    "empty retain rows": ({"retain_dataset": "empty.jsonl"}, "'empty.jsonl' cannot be read, or there are none"),
    "no retain rows": ({"retain_dataset": None}, "retain_loss='kl' needs retain rows. Pass `retain_dataset`"),
    "shared rows": ({"retain_dataset": "forget.jsonl"}, "4 of 4 retain rows are forget rows too, the first: "),
    "no column to audit": ({"forget_dataset": "names.jsonl"}, "an audit reads `question` and `answer`, or `text`"),
    "no usable column": ({"forget_dataset": "names.jsonl", "audit": False}, "No usable column among ['name']"),
    "answers that are no text": (
        {"forget_dataset": "numbers.jsonl"},
        "numbers.jsonl': `answer` is None (no value); give text",
    ),
    "prompts that fill a row": ({"max_length": 8}, "None of the 4 forget rows keeps a token"),
    "two sources": ({"benchmark": "tofu"}, "Give exactly one: a benchmark's name, or your own rows"),
    "no chat template": ({"model_name_or_path": "plain", "use_chat_template": True}, "has no chat template"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_rows_that_cannot_be_used_are_named(run_refused, tmp_path, case):
    fields, message = BAD_ROWS[case]
    (tmp_path / "empty.jsonl").touch()
    write_rows(tmp_path / "names.jsonl", [{"name": "Ada"}])
    write_rows(tmp_path / "numbers.jsonl", [{"question": "a", "answer": "b"}, {"question": "a", "answer": None}])
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "plain")
    for folder in ("plain", "retrained"):
        make_model().save_pretrained(tmp_path / folder)
    # A retrained model would be audited before the trainer is made: the rows are checked before that, too.
    said = run_refused(**fields, retrained_model_name_or_path=str(tmp_path / "retrained"))
    assert message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"benchmark": "tofoo"}, "benchmark='tofoo'; allowed: tofu, "),
        ({"benchmark_path": "/no/tofu"}, "No folder at benchmark_path='/no/tofu'"),
        ({"benchmark_path": "."}, "forget10.json is missing"),
        ({"forget_split": "forget99"}, "forget_split='forget99'; TOFU has forget01, forget05, forget10"),
        ({"forget_dataset": "forget.jsonl"}, "Give exactly one"),
    ],
)
def test_a_benchmark_that_is_not_there_is_named(run_refused, fields, message):
    own = {"forget_dataset": None, "retain_dataset": None, "benchmark": "tofu"}
    assert message in run_refused(**{**own, **fields})


def test_a_retrained_model_of_another_split_is_named(run_refused, tofu_path, tmp_path):
    make_model().save_pretrained(tmp_path / "retain90")
    own = {"forget_dataset": None, "retain_dataset": None, "benchmark": "tofu", "benchmark_path": str(tofu_path)}
    said = run_refused(**own, forget_split="forget01", retrained_model_name_or_path="retain90")
    assert "was trained on retain90, but forget_split='forget01' leaves retain99" in said


def test_a_folder_that_holds_something_else_is_left_alone(run_refused, recipe, tmp_path, model_path):
    out = tmp_path / "out"
    out.touch()
    assert "output_dir='out' is a file" in run_refused()
    out.unlink()
    out.mkdir()
    (out / "thesis.tex").touch()
    assert "output_dir='out' holds files that are no run's. Give another `output_dir`" in run_refused()
    assert f"output_dir={model_path!r} holds the model" in run_refused(output_dir=model_path, overwrite_output=True)


def test_what_a_killed_run_left_half_written_is_no_file(run_refused, tmp_path):
    (tmp_path / "out").mkdir()
    part = tmp_path / "out" / "recipe.yaml.123.part"
    part.touch()
    # What is refused comes after the folder.
    assert "nosuch" in run_refused(resume_from_checkpoint="nosuch")
    recipe = parse_recipe(["--config", str(tmp_path / "given.yaml"), "--resume_from_checkpoint", "false"])
    begin_output(recipe)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["recipe.yaml"]


def test_a_folder_that_holds_another_run_is_left_alone(run_refused, recipe, tmp_path):
    (tmp_path / "first.yaml").write_text(yaml.safe_dump(recipe))
    parse_recipe(["--config", "first.yaml"]).write(tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").touch()
    assert "holds another run, which differs in beta, max_steps. Give another" in run_refused(beta=0.2, max_steps=7)
    said = run_refused()
    assert "holds this run already. `resume_from_checkpoint: last` goes on with it. Give another" in said
    assert "no checkpoint there (out)" in run_refused("--resume_from_checkpoint", "last")
    assert "holds another run, which differs in beta" in run_refused("--resume_from_checkpoint", "last", beta=0.2)
    # A run that broke off before it made anything may simply start again, or make place for another.
    (tmp_path / "out" / "model.safetensors").unlink()
    (tmp_path / "other.yaml").write_text(yaml.safe_dump({**recipe, "beta": 0.2}))
    for name in ("first.yaml", "other.yaml"):
        with pytest.raises(pytest.fail.Exception, match="a model was loaded"):
            main(["run", name])
    # Where losses were logged, it had begun.
    (tmp_path / "out" / "metrics.jsonl").touch()
    assert "holds another run, which differs in beta" in run_refused(beta=0.2)


def test_there_must_be_a_checkpoint_to_go_on_from(run_refused):
    for word in ("last", "true"):
        said = run_refused("--resume_from_checkpoint", word)
        assert f"resume_from_checkpoint={word!r}: no checkpoint there (out)" in said
    assert "resume_from_checkpoint='True': no checkpoint" in run_refused(resume_from_checkpoint=True)
    assert "resume_from_checkpoint='out/step-9'" in run_refused("--resume_from_checkpoint", "out/step-9")


def test_names_that_a_report_needs_are_taken(run_refused):
    assert "A report has a model called 'target' already" in run_refused(output_dir="runs/target")
    assert "A report has a model called 'retrained' already" in run_refused(run_name="retrained")


def test_audits_within_training_need_evaluations(run_refused):
    assert "audits at evaluations, and there are none" in run_refused(audit_during_training=True)


# Mistakes in an evaluation


def test_an_evaluation_is_as_strict(refused, recipe, model_path):
    rows = ("--forget_dataset", "forget.jsonl")
    assert "No model is named" in refused("eval", *rows)
    assert "No model folder at '/no/model'" in refused("eval", "--model_name_or_path", "/no/model", *rows)
    model = ("--model_name_or_path", model_path)
    assert "No model folder at '/no/model'" in refused(
        "eval", *model, *rows, "--retrained_model_name_or_path", "/no/model"
    )
    assert "Give exactly one" in refused("eval", *model)
    assert "benchmark='tofoo'" in refused("eval", *model, "--benchmark", "tofoo")
    assert "No file or folder at 'no.jsonl'" in refused("eval", *model, "--forget_dataset", "no.jsonl")
    assert "Did you mean 'max_new_tokens'?" in refused("eval", *model, *rows, "--max_new_token", "8")
    assert "Unknown field 'lora_r'" in refused("eval", *model, *rows, "--lora_r", "8")
    named = ("--retrained_model_name_or_path", model_path, "--run_name", "retrained")
    assert "already. Give another `--run_name`" in refused("eval", *model, *rows, *named)
    assert "No tokenizer can be loaded" in refused("eval", "--model_name_or_path", "owner/none", *rows)


def test_a_report_needs_runs(refused):
    assert "No report at nowhere" in refused("report", "nowhere")


# Starting on several processes


def test_an_option_is_taken_out_of_the_words():
    words = ["a.yaml", "--accelerate_config", "zero3", "--beta", "1", "--num_processes=2"]
    assert take_option(words, "accelerate_config") == "zero3"
    assert take_option(words, "num_processes") == "2"
    assert take_option(words, "other") is None
    assert words == ["a.yaml", "--beta", "1"]
    with pytest.raises(ValueError, match="--beta has no value"):
        take_option(["--beta"], "beta")


def test_accelerate_configs_are_found_by_name_and_path(tmp_path):
    shipped = sorted(path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml"))
    assert shipped == ["cpu", "fsdp2", "multi_gpu", "single_gpu", "zero2", "zero3"]
    for name in shipped:
        assert config_path(name).samefile(ROOT / "accelerate_configs" / f"{name}.yaml")
    (tmp_path / "mine.yaml").touch()
    assert config_path(str(tmp_path / "mine.yaml")) == tmp_path / "mine.yaml"
    with pytest.raises(
        ValueError, match=f"No accelerate config 'zero4'. Give a path, or one of: {', '.join(shipped)}"
    ):
        config_path("zero4")


@pytest.mark.parametrize("path", sorted(ROOT.glob("accelerate_configs/*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_configs(path):
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    config = load_config_from_file(str(path))
    content = yaml.safe_load(path.read_text())
    assert config.num_processes == content["num_processes"]
    # The recipe decides on the precision; a config that did would overrule it in silence.
    assert config.mixed_precision == "no"
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(path), "x.py"]))
    assert args.num_processes == content["num_processes"]
    # MULTI_CPU would start one process, whatever is asked for.
    assert args.multi_gpu == (content["distributed_type"] == "MULTI_GPU")


def test_options_of_a_launch_go_together():
    config, options = take_launch_options(["--accelerate_config", "cpu", "--num_processes", "3"])
    assert (config, options) == (config_path("cpu"), {"num_processes": "3"})
    assert take_launch_options(["--beta", "1"]) == (None, {})
    with pytest.raises(ValueError, match="go with `--accelerate_config"):
        take_launch_options(["--num_processes", "3"])
    with pytest.raises(ValueError, match="--num_processes two: give a whole number"):
        take_launch_options(["--accelerate_config", "cpu", "--num_processes", "two"])


def test_a_launch_that_cannot_work_starts_no_process(run_refused, refused, monkeypatch, model_path):
    monkeypatch.setattr(launching.os, "execv", lambda *words: pytest.fail("a process was started"))
    assert "No accelerate config 'zero4'" in run_refused("--accelerate_config", "zero4")
    assert "4 of 4 retain rows are forget rows" in run_refused(
        "--accelerate_config=cpu", retain_dataset="forget.jsonl"
    )
    assert "go with `--accelerate_config" in run_refused("--num_processes", "2")
    model = ("eval", "--model_name_or_path", model_path)
    assert "No file or folder" in refused(*model, "--forget_dataset", "no.jsonl", "--accelerate_config", "cpu")
    assert "go with `--accelerate_config" in refused(
        *model, "--forget_dataset", "no.jsonl", "--main_process_port", "1"
    )


def test_a_launch_hands_everything_on(recipe, tmp_path, monkeypatch, no_model):
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(recipe))
    started = []
    monkeypatch.setenv(launching.COMMAND, "")
    monkeypatch.setattr(launching.os, "execv", lambda *words: started.append(words))
    words = ["run", "given.yaml", "--beta", "0.2", "--accelerate_config", "cpu", "--num_processes", "3"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/hf-unlearn", *words])
    main(words)
    ((program, started_words),) = started
    assert program == sys.executable
    assert started_words[1:] == [
        *("-m", "accelerate.commands.launch", "--config_file", str(config_path("cpu")), "--num_processes", "3"),
        *("--module", "hf_unlearn.cli.unlearn", "--config", "given.yaml", "--beta", "0.2"),
    ]
    # The processes report the command that was typed.
    monkeypatch.setattr(sys, "argv", ["unlearn.py", "--config", "given.yaml"])
    assert command_line() == f"hf-unlearn {' '.join(words)}"
    monkeypatch.delenv(launching.COMMAND)
    assert command_line() == "unlearn.py --config given.yaml"


@pytest.mark.parametrize("script", ["unlearn.py", "evaluate.py"])
def test_scripts_tell_a_mistake_in_one_line(script):
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / script), "--config", "nope.yaml"],
        cwd=ROOT,
        env={**launching.os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("hf-unlearn: error: No recipe at 'nope.yaml'")
    assert "Traceback" not in done.stderr


# Reports of several runs


def model_of(name, kind, path="p", n=8, **metrics) -> dict:
    values = {"forget/probability": 0.5, "retain/probability": 0.5, **metrics}
    entries = {
        metric: {"value": value, "n": n, "interval": None, "direction": "lower", "variant": None, "undefined": 0}
        for metric, value in values.items()
    }
    return {"name": name, "kind": kind, "method": None, "path": path, "metrics": entries, "answers": [], "train": None}


def report_of(*models, suite="tofu") -> dict:
    name = models[-1]["name"]
    return assemble(name, suite, list(models), {name: {"seed": 0}})


def test_runs_are_merged_into_one_report(tmp_path, capsys):
    for name in ("ga", "npo"):
        models = [model_of("target", "target"), model_of(name, "unlearned", path=name)]
        write_report(report_of(*models), tmp_path / name)
    main(
        ["report", str(tmp_path / "npo"), str(tmp_path / "ga" / "report.json"), "--output_dir", str(tmp_path / "all")]
    )
    merged = load_report(tmp_path / "all")
    assert [model["name"] for model in merged["models"]] == ["target", "npo", "ga"]
    assert merged["settings"] == {"npo": {"seed": 0}, "ga": {"seed": 0}}
    assert len(merged["notes"]) == len(set(merged["notes"]))
    assert str(tmp_path / "all" / "report.html") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (report_of(model_of("b", "unlearned"), suite="world"), "The runs audited different suites"),
        (report_of(model_of("a", "unlearned", path="elsewhere")), "Two runs have a model called 'a': p and elsewhere"),
        (report_of(model_of("target", "target", n=40), model_of("b", "unlearned")), "on sets of different sizes"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(other, message):
    first = report_of(model_of("target", "target"), model_of("a", "unlearned"))
    with pytest.raises(ValueError, match=message):
        merge([first, other], "both")


def test_a_missing_retrained_model_is_noted():
    alone = report_of(model_of("target", "target"), model_of("a", "unlearned"))
    judged = report_of(model_of("retrained", "retrained"), model_of("a", "unlearned"))
    assert any("No retrained model was given" in note for note in alone["notes"])
    assert not any("No retrained model was given" in note for note in judged["notes"])


def test_curves_are_of_fixed_rows_where_there_were_evaluations():
    batches = [{"step": 1, "loss": 3.0, "forget/nll": 1.0, "retain/nll": 2.0}, {"step": 2, "forget/nll": 1.5}]
    evaluated = [{"step": 2, "eval_forget_loss": 5.0}, {"step": 2, "eval_retain_loss": 4.0}]
    state = TrainerState(log_history=batches, global_step=2, total_flos=1e9)
    assert training_entry(state, 1.234, 4) == {
        "seconds": 1.23,
        "flops": 1e9,
        "steps": 2,
        "processes": 4,
        "curve": [{"step": 1, "forget/loss": 1.0, "retain/loss": 2.0}, {"step": 2, "forget/loss": 1.5}],
    }
    curve = training_entry(TrainerState(log_history=[*batches, *evaluated]), 1, 1)["curve"]
    assert curve == [{"step": 2, "forget/loss": 5.0, "retain/loss": 4.0}]
