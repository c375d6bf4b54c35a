# SPDX-License-Identifier: Apache-2.0
"""What gates found, as markdown and as a table on the terminal."""

from typing import TYPE_CHECKING

from ..findings import SIGNS
from ..table import Table


if TYPE_CHECKING:
    from rich.console import Console


TONES = {"passed": "good", "failed": "bad", "unresolved": "mixed", "missing": "unknown"}
STYLES = {"good": "green", "bad": "red", "mixed": "yellow", "unknown": "dim"}
RULE = (
    "Passed: the whole 95% interval lies within the bounds. Failed: all of it lies outside. Unresolved: it reaches "
    "over a bound, and more rows would tell. Missing: not measured, which is never passed."
)


def render_gates(result: dict) -> str:
    """The markdown of what [`~hf_unlearn.report.gates.evaluate`] found, with `report_created` and `thresholds`."""
    heads = ["gate", "asked", *(f"{model['name']}: {_word(model['status'])}" for model in result["models"])]
    rows = [[name, asked(gate)] for name, gate in result["gates"].items()]
    for model in result["models"]:
        for row, outcome in zip(rows, model["outcomes"], strict=True):
            row.append("<br>".join(_lines(outcome, row[1])))
    lines = [[_escaped(cell) for cell in row] for row in (heads, *rows)]
    table = Table(lines[0], lines[1:]).markdown()
    foot = f"`report.json` of {result['report_created']}, thresholds `{result['thresholds']}`. {RULE}"
    return f"# Gates: {_word(result['status'])}\n\n{table}\n\n{foot}\n"


def print_gates(result: dict, console: "Console | None" = None) -> None:
    """Prints one row a gate and one column an unlearned model."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("gate", "asked"):
        table.add_column(head, overflow="fold")
    for model in result["models"]:
        table.add_column(Text(f"{model['name']}\n{_word(model['status'])}", style=_style(model["status"])))
    for place, (name, gate) in enumerate(result["gates"].items()):
        cells = []
        for outcome in (model["outcomes"][place] for model in result["models"]):
            first, *rest = _lines(outcome, asked(gate))
            cell = Text(first, style=_style(outcome["status"]))
            cells.append(cell.append("\n" + "\n".join(rest), style="dim") if rest else cell)
        table.add_row(Text(name), Text(asked(gate)), *cells)
    console.print(table)
    console.print(RULE, style="dim", highlight=False)


def asked(gate: dict) -> str:
    """`forget/accuracy less retrained's: -0.05 to 0.05`."""
    about = gate["metric"] + (f" less {gate['against']}'s" if "against" in gate else "")
    if "at_least" not in gate:
        return f"{about} ≤ {gate['at_most']:g}"
    if "at_most" not in gate:
        return f"{about} ≥ {gate['at_least']:g}"
    return f"{about}: {gate['at_least']:g} to {gate['at_most']:g}"


def _lines(outcome: dict, asked: str) -> list[str]:
    """Status, number and reason of one outcome; of a gate over all attacks also which."""
    lines = [_word(outcome["status"])]
    if outcome["value"] is not None:
        interval = outcome["interval"]
        shown = "" if interval is None else f" [{interval[0]:.3g}, {interval[1]:.3g}]"
        lines.append(f"{outcome['value']:.3g}{shown}, n = {outcome['n']}")
    if outcome["metric"].startswith("privacy/"):
        lines.append(outcome["metric"].removeprefix("privacy/"))
    elif "*" in asked:
        lines.append(outcome["metric"])
    return [*lines, *([] if outcome["why"] is None else [outcome["why"]])]


def _word(status: str) -> str:
    return f"{SIGNS[TONES[status]]} {status}"


def _style(status: str) -> str:
    return STYLES[TONES[status]]


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("~", "\\~")
