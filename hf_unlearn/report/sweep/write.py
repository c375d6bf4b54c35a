# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of many runs. Reads only the content of `sweep.json`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import write_json, write_text
from .long_form import write_long
from .means import SECONDS, cell_of, privacy_metrics, tabulate
from .tables import heading_of, missing_lines, render_table, text_of, verdict_of, write_table, write_targets


if TYPE_CHECKING:
    from rich.console import Console


SWEEP_VERSION = 1
SWEEP_FILE = "sweep.json"
KEYS = ("settings", "runs", "baselines", "missing", "planned", "swept")


def write_sweep_report(sweep: dict[str, Any], output_dir: str | Path) -> dict[str, Path]:
    """Writes `sweep.json`, `long.csv`, `table.csv`, `table.md`, where there are targets `targets.csv`, and `plots/`.

    Args:
        sweep (`dict`):
            `settings` (name, selection rule, tuning seed), `runs`, `baselines` (target and retrained models),
            `missing`, as [`~hf_unlearn.sweep.collect.collect`] makes it.
        output_dir (`str` or `Path`):
            Made if absent; files of an earlier report there are replaced.

    Returns:
        `dict[str, Path]`: by name within `output_dir`.

    Raises:
        `ValueError`: if the selection rule cannot be applied; nothing but `sweep.json` is written then.
    """
    from .figures import save_sweep_plots

    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in (SWEEP_FILE, "long.csv", "table.csv", "table.md")}
    write_json(paths[SWEEP_FILE], sweep, ensure_ascii=False, allow_nan=False)
    table = tabulate(sweep)
    write_long(sweep, paths["long.csv"])
    write_table(table, paths["table.csv"])
    if any(run["target"] is not None for run in sweep["runs"]):
        paths["targets.csv"] = folder / "targets.csv"
        write_targets(table, paths["targets.csv"])
    plots = save_sweep_plots(sweep, table, folder / "plots")
    write_text(paths["table.md"], render_table(sweep, table, plots, folder))
    return paths | {f"plots/{path.name}": path for path in plots.values()}


def load_sweep(path: str | Path) -> dict[str, Any]:
    """Reads a `sweep.json`.

    Raises:
        `ValueError`: if it is none, or of another version.
    """
    path = Path(path)
    try:
        sweep = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"No sweep can be read from {path}: {error}") from None
    known = isinstance(sweep, dict) and sweep.get("sweep_version") == SWEEP_VERSION
    if not known or not all(key in sweep for key in KEYS):
        raise ValueError(f"{path} is no {SWEEP_FILE} of version {SWEEP_VERSION}. `hf-unlearn sweep` writes one.")
    return sweep


def print_sweep(sweep: dict[str, Any], console: "Console | None" = None) -> None:
    """Prints one line a method and setting: forgetting, utility and time; the whole table is in `table.md`."""
    from rich.console import Console
    from rich.table import Column, Table

    console = console or Console()
    table = tabulate(sweep)
    names = list(dict.fromkeys(name for name in (table.forget, table.utility) if name))
    # A terminal has room for one rate: the strictest that the rows resolve.
    resolved = (n for n in privacy_metrics(sweep) if any(row.cells[n].mean is not None for row in table.of("result")))
    names += [name for name in [next(resolved, None)] if name]
    heads = ["seeds", *(heading_of(sweep, name) for name in names), "seconds"]
    shown = Table(Column(overflow="fold"), *heads, title=sweep["settings"]["name"])
    for row in table.of("target", "retrained", "result"):
        seeds = len({point.run["seed"] for point in row.points} - {None})
        cells = [text_of(name, cell_of(row.points, name)) for name in (*names, SECONDS)]
        shown.add_row(row.name, str(seeds or ""), *cells)
    console.print(shown)
    for row in table.of("result"):
        if said := verdict_of(row):
            console.print(f"{row.name}: {said}", highlight=False, markup=False)
    console.print(f"Selection: {table.rule}.", style="dim", highlight=False)
    missing = missing_lines(sweep, table)
    if missing:
        console.print(f"Missing:\n{missing}", style="yellow", highlight=False, markup=False)
