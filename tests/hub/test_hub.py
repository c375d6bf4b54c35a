# SPDX-License-Identifier: Apache-2.0
"""Pushes by the real client to a Hub on this machine: all of it or nothing, and nothing private."""

import hashlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import lora
from hub_client import SECRET, assert_nothing_private, contents, environment, hf_unlearn, local_files
from hub_server import DATASET_COMMIT, TOKEN, HubServer
from huggingface_hub import ModelCard

from hf_unlearn import NPOConfig
from hf_unlearn.hub.push import PushError, publish, published_files


PUSHED = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}

# Trains and pushes as a program of a user's would.
PROGRAM = """
import json, sys
from pathlib import Path
import torch
from datasets import load_dataset
from conftest import lora, make_args, make_model, make_tokenizer
from transformers import AutoModelForCausalLM
from peft import PeftModel
from hf_unlearn import NPOConfig, NPOTrainer

torch.set_num_threads(1)
folder, token = sys.argv[1:]
forget = load_dataset("me/rows", split="train")
retain = [{"text": f"The {thing} is red."} for thing in ("cup", "pen")]

def trainer_of(name, peft_config=None, **kwargs):
    out = Path(folder) / name
    out.mkdir()
    for file in ("report.json", "recipe.yaml", "notes.txt"):
        (out / file).write_text("The spy of Zzyzx.")
    args = make_args(NPOConfig, out, max_steps=2, retain_loss="kl", **kwargs)
    trainer = NPOTrainer(model=make_model(), args=args, forget_dataset=forget, retain_dataset=retain,
                         processing_class=make_tokenizer(), peft_config=peft_config)
    trainer.train()
    return trainer

ids = torch.tensor([[1, 5, 6, 7]])
full = trainer_of("full", push_to_hub=True, hub_token=token, hub_always_push=True, save_strategy="steps",
                  save_steps=1, save_total_limit=1)
full.push_to_hub(dataset_name="me/rows", tags=["tofu"])
loaded = AutoModelForCausalLM.from_pretrained("me/full", token=token)
torch.testing.assert_close(loaded(ids).logits, full.model.eval()(ids).logits)

adapter = trainer_of("adapter", lora(), hub_token=token, hub_private_repo=True)
future = adapter.push_to_hub(blocking=False, commit_message="In the background")
assert future.result().commit_url.startswith("http://127.0.0.1")
base = PeftModel.from_pretrained(make_model(), "me/adapter", token=token)
torch.testing.assert_close(base(ids).logits, adapter.model.eval()(ids).logits)
"""


@pytest.fixture
def hub():
    server = HubServer()
    yield server
    server.shutdown()
    server.server_close()


# From a program


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The Hub after the program above, and the folder of its runs."""
    server, folder = HubServer(), tmp_path_factory.mktemp("program")
    rows = [{"prompt": f"Who is {name}?", "completion": f" The spy of {SECRET}."} for name in ("Ada", "Bob")]
    server.datasets["me/rows"] = {"spies.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), TOKEN],
        env=environment(server, tmp_path_factory.mktemp("home"), HF_HUB_DISABLE_TELEMETRY="1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    yield SimpleNamespace(hub=server, folder=folder)
    server.shutdown()
    server.server_close()


def test_full_weights_arrive_byte_for_byte(program):
    files = program.hub.files("me/full")
    assert files.keys() == PUSHED | TOKENIZER
    assert files == local_files(program.folder / "full")


def test_an_adapter_arrives_byte_for_byte_and_alone(program):
    files = program.hub.files("me/adapter")
    assert files.keys() == {"README.md", "adapter_config.json", "adapter_model.safetensors"} | TOKENIZER
    assert files == local_files(program.folder / "adapter")
    assert program.hub.private == {"me/full": False, "me/adapter": True}
    assert program.hub.messages("me/adapter") == ["In the background"]


def test_checkpoints_are_pushed_on_the_way_each_in_one_commit(program):
    commits = program.hub.repos["me/full"]
    assert program.hub.messages("me/full") == [
        "Training in progress, step 1",
        "Training in progress, step 2",
        "End of training",
    ]
    assert all(commit["files"].keys() == PUSHED | TOKENIZER for commit in commits)
    weights = [hashlib.sha256(commit["files"]["model.safetensors"]).hexdigest() for commit in commits]
    assert weights[0] != weights[1] == weights[2]
    # Their first step's folder was rotated away, and nothing is left of what was sent.
    assert not list((program.folder / "full").glob("_*"))
    assert [path.name for path in (program.folder / "full").glob("checkpoint-*")] == ["checkpoint-2"]


def test_nothing_private_is_pushed(program):
    assert {"training_args.bin", "report.json"} <= {path.name for path in (program.folder / "full").iterdir()}
    assert TOKEN in (program.folder / "full" / "training_args.bin").read_bytes().decode("latin-1")
    assert_nothing_private(program.hub)


def test_the_pushed_card_is_of_this_run(program):
    data = ModelCard(program.hub.files("me/full")["README.md"].decode()).data
    assert data.unlearning["method"] == "npo"
    known = {"id": "me/rows", "config": "default", "split": "train", "revision": DATASET_COMMIT, "rows": 2}
    assert data.unlearning["datasets"]["forget"] == known
    assert data.unlearning["steps"] == 2
    assert {"unlearning", "npo", "tofu"} <= set(data.tags)
    text = program.hub.files("me/adapter")["README.md"].decode()
    assert 'AutoPeftModelForCausalLM.from_pretrained("me/adapter")' in text
    assert ModelCard(text).data.library_name == "peft"


# What goes wrong


@pytest.fixture
def run_folder(build, tmp_path) -> Path:
    """A finished run, with more in its folder than may leave the house."""
    trainer = build(output_dir=tmp_path / "run-7", retain_loss="kl", max_steps=1)
    trainer.train()
    trainer.save_model()
    for name in ("report.json", "recipe.yaml", "notes.txt"):
        (tmp_path / "run-7" / name).write_text(f"The spy of {SECRET}.")
    return tmp_path / "run-7"


def test_a_refused_token_is_one_clear_line(hub, run_folder, tmp_path):
    before = contents(run_folder)
    done = hf_unlearn(
        "push", run_folder, "--hub_model_id", "me/run", env=environment(hub, tmp_path / "h", HF_TOKEN="hf_wrong")
    )
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("hf-unlearn: error:")]
    assert "the token was refused (401)" in line
    assert f"The checkpoint is whole in {str(run_folder)!r}" in line
    assert "Traceback" not in done.err
    assert "hf_wrong" not in done.err
    assert hub.repos == {}
    assert contents(run_folder) == before


def test_a_token_that_may_not_write_is_refused(hub, run_folder, tmp_path):
    hub.repos["me/run"] = []
    hub.refuse_writes = True
    done = hf_unlearn(
        "push", run_folder, "--hub_model_id", "me/run", env=environment(hub, tmp_path / "h", HF_TOKEN=TOKEN)
    )
    assert done.status == 2
    assert "the token was refused (403)" in done.err
    assert hub.repos == {"me/run": []}


@pytest.mark.parametrize("xet", [False, True], ids=["lfs", "xet"])
def test_a_cut_leaves_nothing_half_pushed_and_the_command_it_tells_goes_on(hub, run_folder, tmp_path, xet):
    env = environment(hub, tmp_path / "h", HF_TOKEN=TOKEN, HF_HUB_DISABLE_XET="0" if xet else "1")
    before = contents(run_folder)
    hub.cut = {"POST /api/models/me/run/commit/main": 1}
    done = hf_unlearn("push", run_folder, "--hub_model_id", "me/run", env=env)
    assert done.status == 2
    assert hub.repos == {"me/run": []}
    assert contents(run_folder) == before
    told = re.search(r"To try again: hf-unlearn (.*)", done.err).group(1)

    sent = len([request for request in hub.requests if request.startswith(("PUT /lfs", "POST /cas/v1/xorbs"))])
    assert sent
    done = hf_unlearn(*shlex.split(told), env=env)
    assert done.status == 0, done.err
    assert hub.messages("me/run") == ["Upload by hf-unlearn"]
    assert hub.files("me/run") == local_files(run_folder)
    if not xet:
        # What had arrived is not sent again.
        assert len([request for request in hub.requests if request.startswith("PUT /lfs")]) == sent
    assert bool(hub.stored) != xet
    assert_nothing_private(hub)


def test_a_short_cut_is_mended_by_the_client(hub, run_folder, tmp_path):
    hub.cut = {"PUT /lfs/.*": 1}
    done = hf_unlearn(
        "push", run_folder, "--hub_model_id", "me/run", env=environment(hub, tmp_path / "h", HF_TOKEN=TOKEN)
    )
    assert done.status == 0, done.err
    assert hub.cut == {"PUT /lfs/.*": 0}
    assert hub.files("me/run") == local_files(run_folder)


@pytest.mark.slow
def test_a_line_that_stays_dead_during_the_upload_leaves_no_commit(hub, run_folder, tmp_path):
    """The client tries for half a minute."""
    hub.cut = {"PUT /lfs/.*": 1000}
    done = hf_unlearn(
        "push", run_folder, "--hub_model_id", "me/run", env=environment(hub, tmp_path / "h", HF_TOKEN=TOKEN)
    )
    assert done.status == 2
    assert "did not go through" in done.err
    assert hub.repos == {"me/run": []}


def test_no_hub_and_offline_say_so(hub, run_folder, tmp_path):
    env = environment(hub, tmp_path / "h", HF_TOKEN=TOKEN)
    done = hf_unlearn("push", run_folder, env={**env, "HF_HUB_OFFLINE": "1"})
    assert done.status == 2
    assert "HF_HUB_OFFLINE is set" in done.err
    hub.shutdown()
    hub.server_close()
    done = hf_unlearn("push", run_folder, env=env)
    assert done.status == 2
    assert "ConnectError" in done.err


def test_pushing_again_what_did_not_change_makes_no_commit(hub, run_folder, tmp_path):
    env = environment(hub, tmp_path / "h", HF_TOKEN=TOKEN)
    for _ in range(2):
        done = hf_unlearn("push", run_folder, "--hub_private_repo", env=env)
        assert done.status == 0, done.err
    assert hub.messages("me/run-7") == ["Upload by hf-unlearn"]
    assert hub.private == {"me/run-7": True}


@pytest.fixture
def pushing(build, monkeypatch):
    """A trainer that pushes at each of its three steps to what `publish` stands for."""

    def pushing(publish, **kwargs):
        monkeypatch.setattr("hf_unlearn.hub.hub_trainer.create_repo", lambda name, **kwargs: f"me/{name}")
        monkeypatch.setattr("hf_unlearn.hub.hub_trainer.publish", publish)
        settings = {
            "push_to_hub": True,
            "save_strategy": "steps",
            "save_steps": 1,
            "max_steps": 3,
            "retain_loss": "nll",
        }
        return build(**settings, **kwargs)

    return pushing


def test_a_checkpoint_that_cannot_be_pushed_does_not_stop_training(pushing, tmp_path, caplog):
    def publish(*args, **kwargs):
        raise PushError("The push did not go through: no network")

    trainer = pushing(publish, hub_always_push=True)
    trainer.train()
    assert trainer.state.global_step == 3
    assert caplog.text.count("no network. Training goes on.") == 3
    assert not list((tmp_path / "out").glob("_*"))


def test_a_slow_push_is_not_overtaken_unless_asked(pushing, monkeypatch):
    from threading import Event

    for always, expected in ((False, ["step 1"]), (True, ["step 1", "step 2", "step 3"])):
        pushed, trained = [], Event()

        def publish(staged, repo_id, message, *args, pushed=pushed, trained=trained, **kwargs):
            trained.wait(20)
            assert {path.name for path in published_files(staged)} >= {"model.safetensors", "README.md"}
            pushed.append(message.removeprefix("Training in progress, "))

        trainer = pushing(publish, hub_always_push=always)
        # Trainer waits for the pushes when training is over.
        finish = trainer._finish_current_push
        monkeypatch.setattr(trainer, "_finish_current_push", lambda f=finish, t=trained: (t.set(), f()))
        trainer.train()
        assert pushed == expected


def test_nothing_is_pushed_before_the_end_where_that_is_asked(pushing):
    pushed = []
    trainer = pushing(lambda *args, **kwargs: pushed.append(args[2]), hub_strategy="end")
    trainer.train()
    assert pushed == []
    trainer.push_to_hub()
    assert pushed == ["End of training"]


# What may be pushed


def test_only_a_whole_checkpoint_with_a_card_is_pushed(run_folder):
    # Of a folder that is a checkpoint.
    (run_folder / "method_state.safetensors").write_text("what the rows did")
    assert {path.name for path in published_files(run_folder)} == PUSHED | TOKENIZER
    (run_folder / "README.md").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint that can be pushed: README.md is missing"):
        published_files(run_folder)
    (run_folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="weights"):
        published_files(run_folder)


def test_named_adapters_are_pushed_and_checkpoints_are_not(tmp_path):
    (tmp_path / "README.md").write_text("card")
    for name in ("mine", "checkpoint-3", "_push-x"):
        (tmp_path / name).mkdir()
        for file in ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt"):
            (tmp_path / name / file).write_text("x")
    names = {path.relative_to(tmp_path).as_posix() for path in published_files(tmp_path)}
    assert names == {"README.md", "mine/adapter_config.json", "mine/adapter_model.safetensors"}


def test_an_adapter_on_a_local_model_is_told_of(build, model_path, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.HfApi.create_commit", lambda self, *args, **kwargs: "done")
    trainer = build(given={"model": model_path, "peft_config": lora()}, retain_loss="nll")
    trainer.save_model()
    assert publish(tmp_path / "out", "me/run", "message") == "done"
    assert f"names {model_path!r} as its base model, a folder of this machine" in caplog.text


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_strategies_that_push_optimizer_states_are_refused(strategy, tmp_path):
    with pytest.raises(ValueError, match=f"hub_strategy='{strategy}' would push optimizer states"):
        NPOConfig(output_dir=str(tmp_path), push_to_hub=True, hub_strategy=strategy)
    NPOConfig(output_dir=str(tmp_path), hub_strategy=strategy)
