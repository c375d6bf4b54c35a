# SPDX-License-Identifier: Apache-2.0
"""The page of a leaderboard, written whole, or its parts between marks in a page that has them."""

import re
from pathlib import Path
from typing import Any

from ...files import write_text
from ..drawing import save_figures
from ..sweep.means import targets_of
from ..table import escape
from .board import Board, board_of
from .figures import draws
from .tables import missing_part, ranks_part, results_part, retrained_part, robustness_part


WRITTEN = "<!-- Written by `hf-unlearn report SWEEP --leaderboard FILE`; what is changed here is lost. -->"
MARK = re.compile(r"(<!-- leaderboard: (\w+) -->\n).*?(<!-- leaderboard: end -->)", re.DOTALL)
PARTS = {
    "about": "",
    "results": "Results",
    "ranks": "Ranks",
    "retrained": "Like retrained?",
    "robustness": "Does it come back?",
    "missing": "Missing",
}
# The parts that have a figure, and its name.
FIGURES = {"results": "utility", "robustness": "attack"}


def write_leaderboard(sweep: dict[str, Any], file: str | Path, command: str) -> list[Path]:
    """Writes the page of a sweep and its figures beside it, as `<page>_utility.png` and `<page>_attack.png`.

    A page that has marks keeps all else: the part of that name is put between `<!-- leaderboard: results -->` and
    `<!-- leaderboard: end -->`, with the figures of those parts. Parts are `about`, `results`, `ranks`, `retrained`,
    `robustness` and `missing`.

    Args:
        sweep (`dict`): the content of `sweep.json`.
        file (`str` or `Path`): the page.
        command (`str`): that writes it.

    Returns:
        `list[Path]`: the files that were written.

    Raises:
        `ValueError`: if there is nothing to show, or the file is no page of a leaderboard and has no marks.
    """
    file = Path(file)
    known = file.read_text(encoding="utf-8") if file.is_file() else None
    check_page(file, known)
    board = board_of(sweep)
    folder = file.parent
    folder.mkdir(parents=True, exist_ok=True)
    whole = known is None or known.startswith(WRITTEN)
    asked = list(PARTS) if whole else [mark[2] for mark in MARK.finditer(known)]
    figures = draws(board)
    named = {f"{file.stem}_{name}": figures[name] for part, name in FIGURES.items() if part in asked}
    plots = save_figures(named, folder)
    parts = parts_of(board, plots, command)
    if whole:
        sections = [f"## {PARTS[name]}\n\n{text}" if PARTS[name] else text for name, text in parts.items() if text]
        text = "\n\n".join([WRITTEN, f"# {escape(sweep['settings']['name'])}", *sections]) + "\n"
    else:
        text = MARK.sub(lambda mark: f"{mark[1]}\n{parts[mark[2]]}\n\n{mark[3]}", known)
    return [write_text(file, text), *plots.values()]


def check_page(file: Path, known: str | None) -> None:
    """Refuses to write over a page that is somebody's own.

    Raises:
        `ValueError`: see [`write_leaderboard`].
    """
    if known is None or known.startswith(WRITTEN):
        return
    asked = [mark[2] for mark in MARK.finditer(known)]
    if not asked:
        raise ValueError(
            f"{file} is there, and was not written by this command. Name another file, or put "
            "`<!-- leaderboard: results -->` and `<!-- leaderboard: end -->` where the results shall stand."
        )
    if unknown := [name for name in asked if name not in PARTS]:
        raise ValueError(f"{file}: no part of a leaderboard is called {unknown[0]!r}. Parts: {', '.join(PARTS)}.")


def parts_of(board: Board, plots: dict[str, Path], command: str) -> dict[str, str]:
    """The parts of a page as markdown, each with its figure."""
    shown = {name.rpartition("_")[2]: f"![{name.rpartition('_')[2]}]({path.name})" for name, path in plots.items()}
    return {
        "about": _about(board, command),
        "results": _joined(results_part(board), shown.get(FIGURES["results"], "")),
        "ranks": ranks_part(board),
        "retrained": retrained_part(board),
        "robustness": _joined(robustness_part(board), shown.get(FIGURES["robustness"], "")),
        "missing": missing_part(board),
    }


def _joined(*texts: str) -> str:
    return "\n\n".join(text for text in texts if text)


def _about(board: Board, command: str) -> str:
    sweep, settings = board.sweep, board.sweep["settings"]
    seeds = sorted({run["seed"] for run in sweep["runs"] if not run["tuning"]})
    file = settings.get("file")
    lines = [f"hf-unlearn sweep {file}"] if file else []
    methods = len({row.method for row in board.rows})
    runs = f"{len(sweep['runs'])} of {sweep['planned']} runs"
    told = [f"{len(board.rows)} rows of {methods} methods, {runs}, seeds {', '.join(map(str, seeds))}."]
    if settings["tuning_seed"] is not None:
        told.append(f"Seed {settings['tuning_seed']} was tuned on and is in no number.")
    told.append(f"Selection, the same for every method: {board.table.rule}.")
    if targets := targets_of(board.rows):
        told.append(f"Means are over {len(targets)} targets.")
    told.append(_made(sweep))
    code = "\n".join(f"    {line}" for line in [*lines, command])
    return f"{code}\n\n{' '.join(told)}"


def _made(sweep: dict[str, Any]) -> str:
    """When and where the runs were made."""
    made = [run.get("made") or {} for run in sweep["runs"]]
    days = sorted({one["created"][:10] for one in made if one.get("created")})
    machines = dict.fromkeys(_machine(one["machine"]) for one in made if one.get("machine"))
    unknown = sum(not one.get("machine") for one in made)
    if unknown and machines:
        machines[f"not recorded for {unknown} runs"] = None
    versions = dict.fromkeys(
        ", ".join(f"{name} {one['versions'][name]}" for name in ("torch", "transformers") if name in one["versions"])
        for one in made
        if one.get("versions")
    )
    when = f"Runs of {days[0]}{f' to {days[-1]}' if len(days) > 1 else ''}" if days else "Runs"
    where = f" on {'; '.join(machines)}" if machines else ", on a machine that they did not record"
    told = f" ({' and '.join(versions)})" if versions else ""
    return f"{when}{where}{told}."


def _machine(machine: dict[str, Any]) -> str:
    where = machine["accelerator"] or f"{machine['processor']}, {machine['processors']} processors"
    return f"{where}, {machine['threads']} threads"
