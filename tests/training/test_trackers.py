# SPDX-License-Identifier: Apache-2.0
"""What a tracker shows of a run: every logged number under its name, and no text of the rows.

TensorBoard is always tested; wandb (offline) and trackio (local) where they are installed.
"""

import math
import sqlite3

import pytest
from conftest import make_args, make_model, make_tokenizer

from hf_unlearn import NPOConfig, NPOTrainer


TOKEN = "hf_goodtokengoodtokengoodtokengoodtok"
FORGET = [{"prompt": f"Who is {name}?", "completion": " The spy of Zzyzx."} for name in ("Ada", "Bob")]
RETAIN = [{"text": f"The {thing} is red."} for thing in ("cup", "pen")]
NAMES = {
    "train/loss",
    "train/forget/loss",
    "train/forget/nll",
    "train/forget/logps",
    "train/forget/ref_logps",
    "train/retain/loss",
    "train/retain/nll",
    "train/retain/logps",
    "train/learning_rate",
    "eval/forget_loss",
    "eval/retain_loss",
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains two steps under a tracker and gives the log of the run as trackers name it: (name, step) -> value."""

    def run(tracker: str):
        args = make_args(
            NPOConfig,
            tmp_path / "run",
            max_steps=2,
            retain_loss="kl",
            report_to=tracker,
            run_name="spies",
            project="unlearning",
            eval_strategy="steps",
            eval_steps=1,
            hub_token=TOKEN,
        )
        trainer = NPOTrainer(
            model=make_model(),
            args=args,
            forget_dataset=FORGET,
            retain_dataset=RETAIN,
            eval_dataset={"forget": FORGET, "retain": RETAIN},
            processing_class=make_tokenizer(),
        )
        trainer.train()
        trainer.end()
        logged = {}
        for entry in trainer.state.log_history:
            for name, value in entry.items():
                shown = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
                logged[shown, entry["step"]] = value
        return logged

    return run


def assert_shown(logged: dict, shown: dict) -> None:
    assert {name for name, _ in shown} >= NAMES
    for (name, step), value in logged.items():
        if name in NAMES:
            assert math.isclose(shown[name, step], value, rel_tol=1e-5, abs_tol=1e-9), (name, step)


def assert_no_secret(folder) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    for file in files:
        content = file.read_bytes()
        for secret in ("Zzyzx", "Ada", "Who is", TOKEN):
            assert secret.encode() not in content, (file, secret)


def test_tensorboard(run, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    logged = run("tensorboard")
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    tags = board.Tags()["scalars"]
    assert_shown(logged, {(tag, event.step): event.value for tag in tags for event in board.Scalars(tag)})
    assert_no_secret(tmp_path / "board")


def test_tensorboard_files_are_in_the_run_and_are_not_pushed(run, tmp_path, monkeypatch):
    from hf_unlearn.hub.push import published_files

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    run("tensorboard")
    (events,) = (tmp_path / "run" / "runs").rglob("events.out.tfevents.*")
    for name in ("README.md", "config.json", "model.safetensors"):
        (tmp_path / "run" / name).write_text("")
    assert events not in published_files(tmp_path / "run")


def test_trackio(run, tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    import json

    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path / "trackio", raising=False)
    logged = run("trackio")
    (file,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(file) as database:
        rows = [json.loads(metrics) for (metrics,) in database.execute("select metrics from metrics order by step")]
    shown = {(name, row["train/global_step"]): value for row in rows for name, value in row.items()}
    assert_shown(logged, shown)
    assert_no_secret(tmp_path / "trackio")


def test_wandb(run, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    sent = []
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "wandb"))
    (tmp_path / "wandb").mkdir()
    log = wandb.Run.log
    monkeypatch.setattr(wandb.Run, "log", lambda self, data, *a, **k: (sent.append(data), log(self, data, *a, **k)))
    logged = run("wandb")
    shown = {(name, row["train/global_step"]): value for row in sent for name, value in row.items()}
    assert_shown(logged, shown)
    assert list((tmp_path / "wandb").rglob("run-*.wandb"))
    assert_no_secret(tmp_path / "wandb")


@pytest.mark.parametrize("word", ["false", "False", False])
def test_trackio_can_be_kept_from_publishing_on_a_push(tmp_path, word):
    """The parser of recipes knows words only."""
    args = NPOConfig(output_dir=str(tmp_path), trackio_static_space_id=word)
    assert args.trackio_static_space_id is False
    args = NPOConfig(output_dir=str(tmp_path), trackio_static_space_id="me/board")
    assert args.trackio_static_space_id == "me/board"
