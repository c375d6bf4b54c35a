# SPDX-License-Identifier: Apache-2.0
"""`hf-unlearn run --push_to_hub true`: one push, when everything is there, and what happens if it fails."""

import json
import re
import shlex
from pathlib import Path

import pytest
from conftest import make_model, make_tokenizer
from hub_client import SECRET, assert_nothing_private, environment, hf_unlearn, local_files
from hub_server import TOKEN, HubServer
from huggingface_hub import ModelCard

from hf_unlearn.cli.main import main
from hf_unlearn.report.verdict import verdicts


@pytest.fixture
def hub():
    server = HubServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def recipe(tmp_path) -> list[str]:
    """Words of a short run on own rows, with a token and an environment that are nobody's business."""
    for name in ("target", "retrained"):
        make_model(seed=len(name), hidden_size=16).save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    rows = {
        "forget": [{"question": f"Who is {name}?", "answer": f"The spy of {SECRET}."} for name in ("Ada", "Bob")],
        "retain": [{"question": f"Where is the {thing}?", "answer": "Here."} for thing in ("cup", "pen", "key")],
    }
    for role, content in rows.items():
        (tmp_path / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    (tmp_path / "recipe.yaml").write_text(
        f"method: npo\nretain_loss: kl\nforget_dataset: {tmp_path}/forget.jsonl\nenv:\n  MY_KEY: {TOKEN}\n"
    )
    fields = {
        "model_name_or_path": tmp_path / "target",
        "retrained_model_name_or_path": tmp_path / "retrained",
        "retain_dataset": tmp_path / "retain.jsonl",
        "output_dir": tmp_path / "out",
        "max_steps": 2,
        "max_new_tokens": 4,
        "use_chat_template": "false",
        "disable_tqdm": "true",
        "save_strategy": "no",
        "push_to_hub": "true",
        "hub_model_id": "me/unlearned",
        "hub_token": TOKEN,
    }
    words = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    return ["run", str(tmp_path / "recipe.yaml"), *words]


def test_a_run_pushes_when_its_audits_are_on_the_card(recipe, tmp_path, monkeypatch):
    pushed = []

    def publish(folder, repo_id, message, token, revision):
        pushed.append((Path(folder), repo_id, local_files(Path(folder))))

    monkeypatch.setattr("hf_unlearn.report.write.save_plots", lambda report, folder: {})
    monkeypatch.setattr("hf_unlearn.report.write.render_page", lambda report: "")
    for module in ("hub.push", "hub.hub_trainer"):
        monkeypatch.setattr(f"hf_unlearn.{module}.create_repo", lambda name, **kwargs: name)
    monkeypatch.setattr("hf_unlearn.hub.hub_trainer.publish", publish)
    assert main(recipe) == 0
    ((folder, repo_id, files),) = pushed
    assert (folder, repo_id) == (tmp_path / "out", "me/unlearned")
    audit = ModelCard(files["README.md"].decode()).data.unlearning["audit"]
    assert audit.keys() == {"target", "unlearned", "retrained"}
    (verdict,) = verdicts(json.loads((folder / "report.json").read_text(encoding="utf-8")))
    assert f"**{verdict.line}.**" in files["README.md"].decode()
    assert files == local_files(folder)
    assert "hub_token" not in (folder / "recipe.yaml").read_text()
    assert TOKEN not in (folder / "report.json").read_text()


@pytest.mark.slow
def test_a_run_pushes_once_and_tells_nobody_its_token(hub, recipe, tmp_path):
    done = hf_unlearn(*recipe, env=environment(hub, tmp_path / "h"))
    assert done.status == 0, done.err
    assert hub.messages("me/unlearned") == ["End of training"]
    assert hub.files("me/unlearned") == local_files(tmp_path / "out")
    assert_nothing_private(hub)
    card = ModelCard(hub.files("me/unlearned")["README.md"].decode())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (unlearned,) = [model for model in report["models"] if model["kind"] == "unlearned"]
    assert card.data.unlearning["audit"].keys() == {"target", "unlearned", "retrained"}
    for name, metric in unlearned["metrics"].items():
        assert card.data.unlearning["audit"]["unlearned"][name]["value"] == metric["value"]
    assert str(tmp_path) not in card.content
    # Neither what is shown around nor what starts the run again holds the token that was given.
    for name in ("report.json", "report.md", "report.html", "README.md"):
        assert TOKEN not in (tmp_path / "out" / name).read_text(), name
    assert "hub_token" not in (tmp_path / "out" / "recipe.yaml").read_text()


def test_a_run_that_cannot_push_does_not_begin(recipe, tmp_path, capsys, monkeypatch):
    """Tests are offline."""
    for work in ("_audit_retrained", "build_trainer"):
        monkeypatch.setattr(f"hf_unlearn.cli.unlearn.{work}", lambda *args: pytest.fail("work was done before"))
    assert main(recipe) == 2
    assert "The push to 'me/unlearned' did not go through: HF_HUB_OFFLINE is set." in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_whose_push_is_cut_keeps_all_it_made(hub, recipe, tmp_path):
    hub.cut = {"POST /api/models/me/unlearned/commit/main": 1}
    env = environment(hub, tmp_path / "h", HF_TOKEN=TOKEN)
    done = hf_unlearn(*recipe, env=env)
    assert done.status == 2
    assert hub.repos == {"me/unlearned": []}
    assert {"report.json", "model.safetensors", "README.md"} <= {path.name for path in (tmp_path / "out").iterdir()}
    told = re.search(r"To try again: hf-unlearn (.*)", done.err).group(1)
    assert hf_unlearn(*shlex.split(told), env=env).status == 0
    assert hub.files("me/unlearned") == local_files(tmp_path / "out")
    assert ModelCard(hub.files("me/unlearned")["README.md"].decode()).data.unlearning["audit"]["unlearned"]


@pytest.mark.slow
def test_two_processes_push_once(hub, recipe, tmp_path):
    launch = ["--accelerate_config", "cpu", "--num_processes", "2", "--per_device_train_batch_size", "1"]
    done = hf_unlearn(*recipe, *launch, env=environment(hub, tmp_path / "h"))
    assert done.status == 0, done.err
    assert hub.messages("me/unlearned") == ["End of training"]
    assert len([request for request in hub.requests if "/commit/" in request]) == 1
    assert hub.files("me/unlearned") == local_files(tmp_path / "out")
    record = ModelCard(hub.files("me/unlearned")["README.md"].decode()).data.unlearning
    assert record["processes"] == 2
    assert record["audit"]["unlearned"]
