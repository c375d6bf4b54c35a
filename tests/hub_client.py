# SPDX-License-Identifier: Apache-2.0
"""Processes that see only the Hub on this machine, and what is looked at after they pushed."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from hub_server import TOKEN

from hf_unlearn.hub.push import published_files


ROOT = Path(__file__).resolve().parents[1]
SECRET = "Zzyzx"
PRIVATE = ("training_args.bin", "trainer_state.json", "report.json", "recipe.yaml", "notes.txt", "optimizer.pt")


def environment(hub, home: Path, **env) -> dict[str, str]:
    """Of a process that sees only this Hub."""
    home.mkdir(exist_ok=True)
    given = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "OMP_NUM_THREADS": "1",
    }
    return {**os.environ, **given, **env}


def hf_unlearn(*words, env: dict) -> SimpleNamespace:
    """Runs the command; what it said is one string."""
    command = [sys.executable, "-m", "hf_unlearn.cli.main", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    return SimpleNamespace(status=done.returncode, out=done.stdout, err=done.stderr)


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder by the hash of its content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def local_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in published_files(folder)}


def assert_nothing_private(hub) -> None:
    """In no commit and in no upload, committed or not."""
    everything = dict(hub.stored)
    for repo, commits in hub.repos.items():
        for number, commit in enumerate(commits):
            everything |= {f"{repo} {number} {path}": content for path, content in commit["files"].items()}
    assert everything
    for name, content in everything.items():
        assert not name.endswith(PRIVATE), name
        for secret in (SECRET, TOKEN, "Ada", "Who is"):
            assert secret.encode() not in content, (name, secret)
