# SPDX-License-Identifier: Apache-2.0
"""The tables of a sweep: `table.csv`, `targets.csv`, and `table.md` for reading."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...files import write_csv
from ..naming import ARROWS, UNDEFINED, format_number, full_label, is_p_value, is_percent, unit
from ..table import Table as Shown
from ..table import escape
from .dominance import dominance_lines
from .means import PRIVACY, SECONDS, Cell, Row, Table, cell_of, cost_text, own_interval, targets_of


PARTS = ("", "_sd", "_low", "_high", "_n")
TARGET_COLUMNS = (
    *("target", "kind", "method", "recipe", "variant", "step", "metric"),
    *("mean", "sd", "low", "high", "interval", "n", "missing"),
)
MOST_NAMED = 12
COST_PARTS = ("time", "memory")
COST_HEADS = ("time of a step / SFT", "memory / SFT")


def write_table(table: Table, path: Path) -> None:
    """Writes `table.csv`: a row a method and setting; for each metric its mean, sample sd over seeds, 95 % interval
    and number of runs. What is missing is an empty cell."""
    numbers = [f"{name}{part}" for name in (*table.metrics, SECONDS) for part in PARTS]
    heads = ["kind", "recipe", "method", "variant", "step", "tags", "n_runs", "n_seeds", "n_targets", *numbers]
    heads += ["share_of_retraining", "selection", "verdict"]
    told = ({"selection": table.rule, "verdict": verdict_of(row)} for row in table.rows)
    rows = zip(table.rows, told, strict=True)
    write_csv(path, heads, ({**_about(row), **_numbers(row, table), **more} for row, more in rows))


def verdict_of(row: Row, joint: str = "; also ") -> str:
    """What the reports of a row's runs say, each once and with the number of runs where they differ; nothing where a
    rule chose an evaluation on the way, which is no end."""
    said = Counter(
        point.run["verdict"]["short"] for point in row.points if point.step is None and point.run.get("verdict")
    )
    if len(said) < 2:
        return next(iter(said), "")
    return joint.join(f"{text} ({count} of {said.total()} runs)" for text, count in said.most_common())


def write_targets(table: Table, path: Path) -> None:
    """Writes `targets.csv`: every main metric of every row for each target, over seeds, with the 95 % interval: over
    `seeds`, or the only run's own over its `items`."""
    write_csv(path, TARGET_COLUMNS, _target_rows(table))


def _target_rows(table: Table) -> Iterator[dict[str, Any]]:
    for target, row, name in itertools.product(targets_of(table.rows), table.rows, table.metrics):
        cell = target_cell(row, target, name)
        yield {
            "target": target, "kind": row.kind, "method": row.method, "recipe": row.label, "variant": row.variant,
            "step": row.step, "metric": name, "mean": cell.mean, "sd": cell.sd, "low": cell.low, "high": cell.high,
            "interval": None if cell.low is None else "seeds" if cell.n > 1 else "items", "n": cell.n,
            "missing": cell.missing,
        }  # fmt: skip


def target_cell(row: Row, target: str, metric: str) -> Cell:
    """One metric of a row for one target, over seeds; of one run alone, with its own interval over items."""
    points = [point for point in row.points if point.run["target"] == target]
    cell = cell_of(points, metric)
    known = [point for point in points if point.values.get(metric) is not None]
    low, high = (own_interval(known[0], metric) if len(known) == 1 else None) or (cell.low, cell.high)
    return replace(cell, low=low, high=high)


def render_table(sweep: dict[str, Any], table: Table, plots: dict[str, Path], folder: Path) -> str:
    """The markdown of a sweep: what was chosen and how, the main table, the tuning seed, targets, what is missing."""
    settings = sweep["settings"]
    dominance = settings.get("dominance")
    sections = [
        f"# {escape(settings['name'])}\n\n{len(sweep['runs'])} of {sweep['planned']} runs, {sweep['created']}.",
        _rules(sweep, table),
        _section("Results", _main_table(sweep, table, table.of("target", "retrained", "result"))),
        "\n\n".join(
            f"![{name.replace('_', ' ')}]({path.relative_to(folder).as_posix()})" for name, path in plots.items()
        ),
        _section(
            f"Tuning seed {settings['tuning_seed']}, in no mean above", _main_table(sweep, table, table.of("tuning"))
        ),
        _section("Dominated", dominance_lines(sweep, table, dominance) if dominance else ""),
        _section("Targets", _target_table(table)),
        _section("Missing", missing_lines(sweep, table)),
        "`long.csv` holds every number of every run, `table.csv` this table, `sweep.json` all that it is drawn from.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def text_of(name: str, cell: Cell) -> str:
    """`12.5 ± 1.2`, with the interval over targets or, of one run, over its items; why there is no number; and how
    many runs have none."""
    if cell.mean is None:
        return "unresolved" if cell.unresolved else UNDEFINED
    shown = _shown(name, cell.mean)
    if cell.sd is not None:
        shown += f" ± {_shown(name, cell.sd, spread=True)}"
    if (cell.n_targets > 1 or cell.n == 1) and cell.low is not None and name != SECONDS:
        shown += f" [{_shown(name, cell.low)}, {_shown(name, cell.high)}]"
    gaps = [f"{cell.unresolved} unresolved"] if cell.unresolved else []
    gaps += [f"{cell.missing - cell.unresolved} missing"] if cell.missing > cell.unresolved else []
    return f"{shown} ({', '.join(gaps)})" if gaps else shown


def heading_of(sweep: dict[str, Any], name: str) -> str:
    """`forget: exact match, % ↓`, or `TPR at 1e-2, best attack`."""
    if name.startswith(PRIVACY):
        return f"TPR at {name.rsplit('@', 1)[-1]}, best attack"
    arrow = ARROWS[_direction(sweep, name)]
    return f"{', '.join(part for part in (full_label(name), unit(name)) if part)} {arrow}".strip()


def missing_lines(sweep: dict[str, Any], table: Table) -> str:
    """What is not in the means, in words."""
    lines = [f"- {one['name']}: {one['why']}" for one in sweep["missing"][:MOST_NAMED]]
    if len(sweep["missing"]) > MOST_NAMED:
        lines.append(f"- and {len(sweep['missing']) - MOST_NAMED} more")
    shown = {row.label for row in table.of("result")}
    most = {True: ": the setting that keeps most is shown", False: ""}
    lines += [f"- {name}: nothing in it meets the rule{most[name in shown]}" for name in table.unmet]
    for one in sweep["baselines"]:
        if one["disagrees"]:
            names = ", ".join(one["disagrees"][:3])
            lines.append(f"- {one['kind']} ({one['path']}): runs audited it differently ({names}); the first is shown")
    return "\n".join(lines)


def _rules(sweep: dict[str, Any], table: Table) -> str:
    several = len(targets_of(table.rows)) > 1
    lines = [f"Selection, the same for every method: {table.rule}."]
    if sweep["settings"]["tuning_seed"] is not None:
        lines.append(f"Seed {sweep['settings']['tuning_seed']} was tuned on and is in no mean.")
    elif table.rule.startswith(("best", "pareto")):
        lines.append("No tuning seed: settings are chosen by the runs that they are judged by, which flatters them.")
    lines.append("± is the sample standard deviation over seeds." + (
        " Brackets: 95 % t-interval of the mean over targets." if several else ""
    ))  # fmt: skip
    return "  \n".join(lines)


def _main_table(sweep: dict[str, Any], table: Table, rows: list[Row]) -> str:
    if not rows:
        return ""
    varied = any(row.variant or row.step is not None for row in rows)
    heads = ["", *(["setting"] if varied else []), "seeds", *(["targets"] if targets_of(rows) else [])]
    heads += [heading_of(sweep, name) for name in table.metrics] + ["seconds"]
    heads += ["of retraining"] if table.retrained_seconds else []
    benched = any(cost_of(row) for row in rows)
    heads += list(COST_HEADS) if benched else []
    judged = any(verdict_of(row) for row in rows)
    heads += ["in words"] if judged else []
    lines = []
    for row in rows:
        about = [escape(row.label)]
        about += [escape(f"{row.variant} {'' if row.step is None else f'step {row.step}'}".strip())] if varied else []
        seeds = {point.run["seed"] for point in row.points} - {None}
        about += [len(seeds) or "", *([len(targets_of([row]))] if targets_of(rows) else [])]
        cells = [text_of(name, row.cells[name]) for name in (*table.metrics, SECONDS)]
        share = share_of_retraining(row, table)
        cells += [UNDEFINED if share is None else f"{share:.2f}"] if table.retrained_seconds else []
        if benched:
            cost = cost_of(row)
            cells += [UNDEFINED if cost is None else f"{cost[part]:.2f}" for part in COST_PARTS]
        lines.append([*about, *cells, *([verdict_of(row, "<br>")] if judged else [])])
    return Shown(heads, lines, numbers=True).markdown()


def _target_table(table: Table) -> str:
    targets, rows = targets_of(table.rows), table.of("target", "retrained", "result")
    names = [name for name in (table.forget, table.utility) if name in table.metrics]
    parts = []
    for name in names if targets else ():
        lines = [
            [escape(target), *(text_of(name, target_cell(row, target, name)) for row in rows)] for target in targets
        ]
        heads = ["", *(escape(row.name) for row in rows)]
        parts.append(
            f"{full_label(name)}{', %' if unit(name) else ''}:\n\n{Shown(heads, lines, numbers=True).markdown()}"
        )
    if any(target_cell(row, target, name).n == 1 for row in rows for target in targets for name in names):
        parts.append("Brackets: the 95 % interval of the one run that there is, over its items.")
    return "\n\n".join(parts)


def share_of_retraining(row: Row, table: Table) -> float | None:
    """A row's seconds over those of training without the forget rows."""
    seconds = row.cells[SECONDS].mean
    return None if seconds is None or not table.retrained_seconds else seconds / table.retrained_seconds


def cost_of(row: Row) -> dict[str, float] | None:
    """What a step of a row's method costs beside fine-tuning, where `hf-unlearn bench` measured it."""
    return row.points[0].run.get("cost")


def _about(row: Row) -> dict[str, Any]:
    tags = dict.fromkeys(tag for point in row.points for tag in point.run.get("tags", ()))
    return {
        "kind": row.kind,
        "recipe": row.label,
        "method": row.method,
        "variant": row.variant,
        "step": row.step,
        "tags": " ".join(tags),
        "n_runs": len(row.points),
        "n_seeds": len({point.run["seed"] for point in row.points} - {None}),
        "n_targets": len(targets_of([row])),
    }


def _numbers(row: Row, table: Table) -> dict[str, Any]:
    numbers: dict[str, Any] = {"share_of_retraining": share_of_retraining(row, table)}
    for name in (*table.metrics, SECONDS):
        cell = row.cells[name]
        values = (cell.mean, cell.sd, cell.low, cell.high, cell.n)
        numbers |= {f"{name}{part}": value for part, value in zip(PARTS, values, strict=True)}
    return numbers


def _shown(name: str, value: float, spread: bool = False) -> str:
    if name == SECONDS:
        return cost_text(name, value)
    if spread and not is_percent(name) and not is_p_value(name):
        return "<0.001" if 0 < value < 5e-4 else f"{value:.3f}"
    return f"{value:.3g}" if name.startswith(PRIVACY) else format_number(name, value)


def _direction(sweep: dict[str, Any], name: str) -> str:
    found = (
        one["metrics"][name]["direction"] for one in (*sweep["runs"], *sweep["baselines"]) if name in one["metrics"]
    )
    return next(found, "none")


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}" if text else ""
