# SPDX-License-Identifier: Apache-2.0
"""Writes the report of requests, and reads its numbers again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import read_json, write_json, write_text
from ..drawing import save_figures
from ..table import escape
from .figure import curve_figure
from .table import brief_table, drops, rows_table, steps_table


if TYPE_CHECKING:
    from rich.console import Console


REQUESTS_VERSION = 1
REQUESTS_FILE = "requests.json"
CURVE = "requests"
ABOUT = {
    "last": "Each request starts from the result of the one before it, which is its reference. Sustainability is what "
    "is kept, and what stays forgotten, as requests follow each other (MUSE, 2407.06460).",
    "original": "Each forget set is unlearned from the original model. Scalability is what is kept as the set grows "
    "(MUSE, 2407.06460).",
}


def write_requests(found: dict[str, Any], folder: str | Path) -> dict[str, Path]:
    """Writes `requests.json`, `requests.md` and `plots/requests.png`; returns their paths by name."""
    folder = Path(folder)
    paths = {name: folder / name for name in (REQUESTS_FILE, "requests.md")}
    write_json(paths[REQUESTS_FILE], found, indent=1, ensure_ascii=False, allow_nan=False)
    plots = save_figures({CURVE: lambda: curve_figure(found)}, folder / "plots")
    write_text(paths["requests.md"], render_requests(found, plots, folder))
    return paths | {f"plots/{path.name}": path for path in plots.values()}


def render_requests(found: dict[str, Any], plots: dict[str, Path], folder: Path) -> str:
    """The report as markdown."""
    parts = [f"# {escape(found['title'])}"]
    parts += [f"    {' '.join(found['command'].split())}"] if found["command"] else []
    parts.append(ABOUT[found["start"]])
    if found["steps"]:
        parts.append(steps_table(found).markdown())
        parts += [f"![{name}]({path.relative_to(folder).as_posix()})" for name, path in plots.items()]
        table = rows_table(found)
        parts += [] if table is None else [f"## Each request's rows\n\n{table.markdown()}"]
        told = [f"- {escape(line)}" for line in drops(found)]
        parts += ["## What it cost\n\n" + "\n".join(told)] if told else []
    if found["missing"]:
        parts.append(f"Not served yet: {', '.join(map(escape, found['missing']))}.")
    parts.append("Intervals are 95 %, over items. Every run has its own `report.md` in its folder.")
    return "\n\n".join(parts) + "\n"


def print_requests(found: dict[str, Any], console: "Console | None" = None) -> None:
    """Prints a line a step."""
    from rich.console import Console

    console = console or Console()
    console.print(found["title"], style="bold", markup=False, highlight=False)
    if found["steps"]:
        console.print(brief_table(found).terminal())


def load_requests(path: str | Path) -> dict[str, Any]:
    """The content of a `requests.json`, given as the file or its folder.

    Raises:
        `ValueError`: if there is none, or it is of another version.
    """
    path = Path(path)
    path = path / REQUESTS_FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"No {REQUESTS_FILE} at {path}. `hf-unlearn run RECIPE --requests FILE` writes one.")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("requests_version") != REQUESTS_VERSION:
        raise ValueError(f"{path} is no {REQUESTS_FILE} of version {REQUESTS_VERSION}.")
    return found
