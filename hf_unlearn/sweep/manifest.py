# SPDX-License-Identifier: Apache-2.0
"""The list of a sweep's runs, in its folder."""

import json
from pathlib import Path
from typing import Any

from ..files import read_json, write_text
from .expand import Run


MANIFEST, SETTINGS = "manifest.jsonl", "settings.json"


def write_manifest(folder: Path, runs: list[Run], settings: dict[str, Any]) -> None:
    """Writes `manifest.jsonl`, one run a line, and `settings.json`: what a report needs beside the runs' folders."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MANIFEST, "\n".join(_lines(runs, folder)) + "\n")
    write_text(folder / SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False))


def read_manifest(folder: str | Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The runs as they were listed, and the sweep's settings.

    Raises:
        `ValueError`: if the folder is no sweep's.
    """
    folder = Path(folder)
    if not is_sweep(folder):
        raise ValueError(f"No sweep at {str(folder)!r}: `hf-unlearn sweep` writes a {MANIFEST} into its folder.")
    rows = [json.loads(line) for line in (folder / MANIFEST).read_text(encoding="utf-8").splitlines()]
    return rows, read_json(folder / SETTINGS, "Start the sweep again: it writes its plan anew.")


def rows_of(folder: Path, runs: list[Run]) -> list[dict[str, Any]]:
    """The rows of a manifest of these runs."""
    return [json.loads(line) for line in _lines(runs, folder)]


def is_sweep(folder: str | Path) -> bool:
    """Whether a folder is a sweep's."""
    return (Path(folder) / MANIFEST).is_file() and (Path(folder) / SETTINGS).is_file()


def _lines(runs: list[Run], folder: Path) -> list[str]:
    return [json.dumps(_row(index, run, folder), ensure_ascii=False, default=str) for index, run in enumerate(runs)]


def _row(index: int, run: Run, folder: Path) -> dict[str, Any]:
    row = {"index": index, **vars(run), "folder": run.folder.relative_to(folder).as_posix()}
    # An environment may hold tokens.
    row["resolved"] = {key: value for key, value in run.resolved.items() if key != "env"}
    return {key: value for key, value in row.items() if key != "content"}
