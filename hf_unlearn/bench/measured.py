# SPDX-License-Identifier: Apache-2.0
"""What `hf-unlearn bench` measured of each method, as it is shipped.

`hf-unlearn bench --preset cpu --methods all --no-plain --json hf_unlearn/bench/measured.json` writes the file; with
`--add` and the names of some, these alone are measured anew.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


FILE = Path(__file__).with_name("measured.json")


@dataclass(frozen=True)
class Cost:
    """One case beside supervised fine-tuning on the rows that it reads.

    Args:
        case (`str`): its label.
        time (`float`): of a step, over fine-tuning's; of a CPU, the processor time.
        memory (`float`): above the model, over fine-tuning's.
        forwards (`float`), reference_forwards (`float`): passes of a step, with a gradient and without.
    """

    case: str
    time: float
    memory: float
    forwards: float
    reference_forwards: float


@cache
def measured() -> dict[str, Any]:
    """The content of the file; without rows where there is none."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"rows": []}


def costs_of(method: str, retain_loss: str | None = None) -> list[Cost]:
    """The measured cases of a method, those of one retain term if it is given; none where nothing was measured."""
    found = measured()
    time = "cpu_time_ratio" if (found.get("machine") or {}).get("device") == "cpu" else "time_ratio"
    return [
        Cost(
            row["label"], row[time]["median"], row["memory_ratio"]["median"], row["policy_forwards"],
            row["reference_forwards"],
        )
        for row in found["rows"]
        if row["method"] == method and "error" not in row and not row["label"].endswith("(plain)")
        and (retain_loss is None or row["settings"].get("retain_loss", retain_loss) == retain_loss)
    ]  # fmt: skip


def about_measured() -> str:
    """Where and how the costs were measured, in a sentence."""
    found = measured()
    if not found["rows"]:
        return "No cost is measured."
    size, machine = found["size"], found["machine"]
    parameters = next(row["parameters"] for row in found["rows"] if "parameters" in row)
    where = machine["accelerator"] or f"one processor ({machine['processor']})"
    return (
        "Cost beside supervised fine-tuning on the same rows, the most expensive measured case: "
        f"{parameters / 1e6:.0f} M parameters, rows of {size['row_length']} tokens, {where}, {found['created'][:10]}."
    )
