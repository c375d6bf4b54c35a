# SPDX-License-Identifier: Apache-2.0
"""The tables of a leaderboard as markdown."""

from collections import Counter

from ..naming import UNDEFINED, format_number, full_label, is_p_value, is_percent, unit
from ..sweep.dominance import reach_of
from ..sweep.means import COSTS, PRIVACY, Row, cell_of, cost_text
from ..sweep.ranks import RULE, rank_text
from ..sweep.spread import FEWEST, Spread, is_retrained, ways_text
from ..sweep.tables import cost_of, heading_of, missing_lines, verdict_of
from ..table import Table, escape
from .board import ABOVE, BELOW, INSIDE, MIXED, Board
from .remaining import REMAINING, WORST, remaining_reach


SIGNS = {INSIDE: "≈", BELOW: "↓", ABOVE: "↑", MIXED: "±"}
MOST_TOLD = 3


def results_part(board: Board) -> str:
    """What every method forgot and kept, and what it cost."""
    inside, below, above, mixed = (SIGNS[said] for said in (INSIDE, BELOW, ABOVE, MIXED))
    spread = (
        f"{inside} every run lies in the spread of {_retrained(board)}, {below} {above} every run lies "
        f"below or above it, {mixed} runs differ in that; no sign: the target lies in the spread, too, which tells "
        "nothing."
        if board.spreads
        else f"No spread of retrained models is shown: that requires {FEWEST}, and there "
        f"{'is' if (count := sum(board.retrained.values())) == 1 else 'are'} {count}."
    )
    forgotten = (
        "**Forgotten.** Means over seeds; brackets reach over the 95 % intervals of all runs over their items. Forget "
        f"metrics are to be like the retrained model's, not low. {spread}"
    )
    kept = (
        "**Kept, and the cost.** Time and memory of a step beside fine-tuning on the same rows are those of "
        "`hf-unlearn bench`; seconds and counted arithmetic are of training alone."
    )
    numbers = _numbers(board, [*board.forget, *board.privacy], marks=True), _numbers(board, board.kept, cost=True)
    return f"{forgotten}\n\n{numbers[0]}\n\n{kept}\n\n{numbers[1]}"


def retrained_part(board: Board) -> str:
    """The spread of the retrained models, and which methods are inside of it."""
    if not board.spreads:
        return ""
    about = (
        f"{_retrained(board)} never saw the forget rows. Where one more such model is expected with 95 % is "
        "their spread (t-interval for one more value; at least one row beyond the values). A method is like "
        "retrained in a metric if every run lies inside. Where the target lies inside, too, a metric is not counted."
    )
    if len(board.retrained) > 1:
        about += (
            " They were not all made in one way, so the spread is also as wide as these ways differ: compare their "
            "values."
        )
    rows = [
        [
            escape(_label(name)), _by_way(name, spread), _brackets(name, spread),
            "yes" if board.tells(name) else "no: the target is inside",
        ]
        for name, spread in board.spreads.items()
    ]  # fmt: skip
    models = Table(["", "retrained models", "spread", "counted"], rows, numbers=True).markdown()
    lines = []
    for row in board.rows:
        if is_retrained(row):
            continue
        called = {name: said for name in board.spreads if (said := board.called(row, name)) is not None}
        outside = {name: said for name, said in called.items() if said != INSIDE}
        told = "; ".join(_outside(row, name, said, board.spreads[name]) for name, said in outside.items())
        lines.append([escape(row.name), f"{len(called) - len(outside)} of {len(called)}", told])
    methods = Table(["", "like retrained in", "not in"], lines).markdown()
    return f"{about}\n\n{models}\n\n{methods}"


def ranks_part(board: Board) -> str:
    """Ranks, overall and by each number that counts, and who dominates whom."""
    names = ", ".join(map(_label, board.counted))
    about = f"{RULE} Counted: {names}. Forget metrics count by their distance from {_aimed(board)}."
    rows = [
        [
            escape(row.name), rank_text(board.overall[row.name]),
            *(rank_text(board.ranks[name][row.name]) for name in board.counted), verdict_of(row, "<br>"),
        ]
        for row in board.rows
    ]  # fmt: skip
    heads = ["", "rank", *map(_label, board.counted), "in words"]
    return "\n\n".join([about, Table(heads, rows, numbers=True).markdown(), _dominance(board)])


def robustness_part(board: Board) -> str:
    """What comes back under attack, by method and audit."""
    if not board.audits:
        return ""
    about = (
        "`remaining` at worst: 1 as in the model before, 0 as in one that never knew, both attacked alike "
        "([robustness](robustness.md)). Means over runs; brackets reach over the 95 % intervals of all runs over "
        "groups of rows. The original is 1 and the retrained model 0 by definition. `unresolved`: a part of the audit "
        "leaves open whether it comes back, whatever the others say. Worst of all: the highest of "
        f"{', '.join(board.common) or 'no audit (none was made of all runs)'}, up to where any may reach. "
        "`not recovered` bounds what these attacks find with this budget, and no more."
    )
    rows = []
    for row in sorted(board.rows, key=_most_left):
        cells = [_remaining(row, f"{kind}{WORST}") for kind in board.audits]
        rows.append([escape(row.name), *cells, _remaining(row, REMAINING), _removes(board, row)])
    heads = ["", *board.audits, "worst of all", "in words"]
    return "\n\n".join([about, Table(heads, rows, numbers=True).markdown()])


def missing_part(board: Board) -> str:
    """What is missing, and what audits were not made of all runs."""
    lines = [missing_lines(board.sweep, board.table)]
    for kind in board.audits:
        without = [row.name for row in board.rows if any(f"{kind}{WORST}" not in p.run["metrics"] for p in row.points)]
        if without:
            lines.append(f"- not audited by {kind} in every run: {', '.join(without)}")
    return "\n".join(line for line in lines if line)


def _numbers(board: Board, names: list[str], marks: bool = False, cost: bool = False) -> str:
    benched = cost and any(cost_of(row) for row in board.rows)
    heads = ["", *(_heading(board, name) for name in names)]
    heads += ["seconds", "TFLOP"] if cost else []
    heads += ["time of a step / SFT", "memory / SFT"] if benched else []
    rows = []
    gold = board.table.of("retrained")
    for row in [*board.table.of("target"), *gold, *board.rows]:
        cells = [
            _cell(row, name, board.called(row, name) if marks and row.kind == "result" else None) for name in names
        ]
        cells += [_cell(row, name, None) for name in COSTS] if cost else []
        if benched:
            found = cost_of(row)
            cells += [UNDEFINED if found is None else f"{found[part]:.2f}" for part in ("time", "memory")]
        rows.append([escape(row.name), *cells])
        if marks and gold and row is gold[-1] and board.spreads:
            spreads = [board.spreads.get(name) for name in names]
            told = [UNDEFINED if s is None else _brackets(name, s) for name, s in zip(names, spreads, strict=True)]
            rows.append([f"spread of {sum(board.retrained.values())} retrained", *told])
    return Table(heads, rows, numbers=True).markdown()


def _cell(row: Row, name: str, called: str | None) -> str:
    cell = cell_of(row.points, name)
    if cell.mean is None:
        return "unresolved" if cell.unresolved else UNDEFINED
    reach = None if name in COSTS else reach_of(row, name)
    # A mean of p-values is none.
    parts = [] if is_p_value(name) and reach[0] < reach[1] else [_shown(name, cell.mean)]
    parts += [f"[{', '.join(_shown(name, side) for side in reach)}]"] if reach and reach[0] < reach[1] else []
    parts += [SIGNS[called]] if called else []
    gaps = cell.missing - cell.unresolved
    parts += [f"({cell.unresolved} unresolved)"] if cell.unresolved else []
    parts += [f"({gaps} missing)"] if gaps else []
    return " ".join(parts)


def _remaining(row: Row, name: str) -> str:
    metrics = [point.run["metrics"].get(name) for point in row.points]
    known = [metric for metric in metrics if metric is not None]
    if not known:
        return UNDEFINED
    values = [point.values[name] for point in row.points if point.values.get(name) is not None]
    gaps, absent = len(known) - len(values), len(metrics) - len(known)
    if not values:
        return "unresolved"
    reach = reach_of(row, name)
    parts = [f"{sum(values) / len(values):.2f}"]
    parts += [f"[{reach[0]:.2f}, {reach[1]:.2f}]"] if reach[0] < reach[1] else []
    parts += [f"({gaps} unresolved)"] if gaps else []
    parts += [f"({absent} missing)"] if absent else []
    return " ".join(parts)


def _removes(board: Board, row: Row) -> str:
    """What the audits say of a row's runs, each word with the audits and the share of runs that say it."""
    said: dict[str, list[str]] = {}
    for kind in board.audits:
        words = [
            (p.run["metrics"].get(f"{kind}{WORST}") or {"details": {}})["details"].get("verdict") for p in row.points
        ]
        for word, count in Counter(word for word in words if word).items():
            said.setdefault(word, []).append(kind if count == len(words) else f"{kind} ({count} of {len(words)})")
    return "; ".join(f"{word} ({', '.join(kinds)})" for word, kinds in said.items())


def _most_left(row: Row) -> tuple:
    reach = remaining_reach(row, REMAINING)
    return (reach is None, -(reach or (0, 0))[1], row.name)


def _dominance(board: Board) -> str:
    by_row: dict[str, list[str]] = {}
    for pair in board.pairs:
        by_row.setdefault(pair.row, []).append(f"{pair.by} ({', '.join(map(_label, pair.better))})")
    about = (
        "Dominated: another method is surely worse in none of what is counted, and surely better in one (in brackets)."
    )
    lines = []
    for row in board.rows:
        by = by_row.get(row.name, [])
        more = f"; and {len(by) - MOST_TOLD} more" if len(by) > MOST_TOLD else ""
        lines += [f"- {escape(row.name)}: by {escape('; '.join(by[:MOST_TOLD]))}{more}"] if by else []
    free = [row.name for row in board.rows if row.name not in by_row]
    lines += [f"- By none: {escape(', '.join(free))}."]
    return "\n\n".join([about, "\n".join(lines)])


def _outside(row: Row, name: str, said: str, spread: Spread) -> str:
    values = ", ".join(_shown(name, point.values[name]) for point in row.points)
    return f"{escape(_label(name))}: {values}, {said} {_brackets(name, spread)}"


def _retrained(board: Board) -> str:
    """The retrained models, and how many were made in which way."""
    return f"{sum(board.retrained.values())} retrained models ({escape(ways_text(board.table))})"


def _by_way(name: str, spread: Spread) -> str:
    told = {way: ", ".join(_shown(name, value) for value in values) for way, values in spread.ways.items()}
    return "; ".join(f"{escape(way)}: {values}" for way, values in told.items())


def _aimed(board: Board) -> str:
    if any(name in board.spreads for name in board.counted):
        return "the spread of the retrained models"
    return "the retrained model" if board.table.of("retrained") else "0, for there is no retrained model"


def _brackets(name: str, spread: Spread) -> str:
    return f"[{_shown(name, spread.low)}, {_shown(name, spread.high)}]"


def _label(name: str) -> str:
    if not name.startswith(PRIVACY):
        return full_label(name)
    attack, _, number = name.removeprefix(PRIVACY).partition("/")
    return (
        f"TPR at {number.partition('@')[2]}, best attack"
        if attack == "worst"
        else f"{attack} attack: {number.upper()}"
    )


def _heading(board: Board, name: str) -> str:
    if name.startswith(PRIVACY):
        return _label(name)
    if name.startswith(("forget/", "forget_paraphrased/")):
        # An arrow would say that lower is better, and is a sign of the cells.
        return ", ".join(filter(None, (full_label(name), unit(name))))
    return heading_of(board.sweep, name)


def _shown(name: str, value: float) -> str:
    if name in COSTS:
        return cost_text(name, value)
    if name.startswith(PRIVACY):
        return f"{value:.2f}"
    return f"{100 * value:.1f}" if is_percent(name) and value < 0 else format_number(name, value)
