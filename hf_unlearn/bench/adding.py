# SPDX-License-Identifier: Apache-2.0
"""Adds to what was measured before: on the same machine, of the same size, by as many steps."""

import json
from pathlib import Path
from typing import Any

from ..machine import machine


ALIKE = ("size", "settings", "machine")


def here(threads: int | None) -> dict[str, Any]:
    """This machine, as a worker with so many threads tells of it."""
    import torch

    found = machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return found | ({} if threads is None else {"threads": threads})


def read_alike(path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """An earlier result.

    Args:
        path (`Path`): of its JSON.
        now (`dict`): `size`, `settings` and `machine` of what is to be added.

    Raises:
        `ValueError`: if there is none, or one of these was another.
    """
    if not path.is_file():
        raise ValueError(f"--add: there is no {path} yet. Leave `--add` out.")
    before = json.loads(path.read_text(encoding="utf-8"))
    for name in ALIKE:
        if others := sorted(key for key in {*before[name], *now[name]} if before[name].get(key) != now[name].get(key)):
            key = others[0]
            raise ValueError(
                f"--add: {path} was measured with {name} {key}={before[name].get(key)!r}, and this is "
                f"{now[name].get(key)!r}. Measure alike, or write another file."
            )
    return before


def added(before: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """A result with the rows of an earlier one that were not measured again; each row says when it was measured, and
    its ratios are to the fine-tuning that was measured with it."""
    again = {row["label"] for row in result["rows"]}
    rows = [
        *({"created": before["created"], **row} for row in before["rows"] if row["label"] not in again),
        *({"created": result["created"], **row} for row in result["rows"]),
    ]
    runs = [*(run for run in before["runs"] if run["label"] not in again), *result["runs"]]
    return {**result, "rows": rows, "runs": runs, "load_before": max(before["load_before"], result["load_before"])}
