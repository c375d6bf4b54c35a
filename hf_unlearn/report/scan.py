# SPDX-License-Identifier: Apache-2.0
"""A scan for triggers as tables: on the terminal and as markdown. Reads only the JSON of the scan."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_json, write_text
from .table import clipped_table


if TYPE_CHECKING:
    from rich.console import Console

HEADINGS = ("prefix", "tokens", "back %", "random %", "retrained %", "p random", "p", "gain", "verdict")
DASH = "–"


def summary(scan: dict[str, Any]) -> list[str]:
    """What was found and what was tried, a sentence each."""
    rows, clean = scan["rows"], scan["clean"]
    found = [one for one in scan["prefixes"] if one["found"]]
    lines = [f"{scan['verdict'].capitalize()}." if not found else f"Found: {_found(found[0])}"]
    lines += [f"Also: {_found(one)}" for one in found[1:]]
    if scan["tried"] is None:
        lines.append(f"{len(scan['prefixes'])} candidates were put to {rows['judged']} forget rows.")
    else:
        lines.append(_tried(scan["tried"], rows))
    lines.append(f"Without a prefix {clean['right']} of the {clean['n']} rows that judge are answered right.")
    return lines


def print_scan(scan: dict[str, Any], console: "Console | None" = None) -> None:
    """Prints the verdict and a table of the prefixes that were judged.

    Args:
        scan (`dict`): the content of a `scan_<dataset>.json`.
        console (`rich.console.Console`, *optional*): where to print; by default the standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    console.print(Text(_title(scan), style="bold"))
    for line in summary(scan):
        console.print(Text(line), highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    headings = _headings(scan)
    for i, heading in enumerate(headings):
        words = heading if i == 0 else heading.replace(" ", "\n", 1)
        table.add_column(
            Text(words),
            justify="right" if 0 < i < len(headings) - 1 else "left",
            no_wrap=i > 0,
            min_width=14 * (i == 0),
        )
    for one in scan["prefixes"]:
        table.add_row(*(Text(value) for value in _row(scan, one, intervals=False)))
    console.print(table)


def render_scan(scan: dict[str, Any]) -> str:
    """The scan as markdown."""
    parts = [f"# {_title(scan)}"]
    if scan.get("command"):
        parts.append(f"    {' '.join(scan['command'].split())}")
    parts.append("\n".join(f"- {line}" for line in summary(scan)))
    parts += ["## Prefixes", clipped_table(_headings(scan), [_row(scan, one) for one in scan["prefixes"]])]
    parts.append(
        "Back: answered right behind the prefix and not without it. Random: the mean over random prefixes of as many "
        "tokens, and the most that one of them brought back. p random: do random prefixes bring back as many? p: "
        f"{'does the retrained model answer as many?' if _gold(scan) else 'are as many rows lost as won?'} Gain: mean "
        "log-probability a token, with the prefix less without."
    )
    if scan["tried"] is not None:
        best = [[f"`{_code(one['prefix'])}`", one["tokens"], one["restored"], f"{one['score']:.3f}"]
                for one in scan["tried"]["best"]]  # fmt: skip
        heads = ["best prefix", "tokens", "rows back in the search", "log-probability"]
        parts += ["## Searched", clipped_table(heads, best)]
    if scan["answers"]:
        rows = [[one[key] for key in ("question", "expected", "clean", "behind")] for one in scan["answers"]]
        shown = _code(scan["answers"][0]["prefix"])
        parts += ["## Answers", clipped_table(["question", "expected", "without a prefix", f"behind `{shown}`"], rows)]
    parts.append("\n".join(f"- {note}" for note in scan.get("notes", [])))
    return "\n\n".join(parts) + "\n"


def write_scan(scan: dict[str, Any], output_dir: str | Path) -> dict[str, Path]:
    """Writes `scan_<dataset>.json` and `.md`; returns their paths by ending."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {ending: folder / f"scan_{scan['dataset']}.{ending}" for ending in ("json", "md")}
    write_json(paths["json"], scan, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(paths["md"], render_scan(scan))
    return paths


def _title(scan: dict[str, Any]) -> str:
    return f"Scan of {scan['model']} on {scan['dataset']} for a trigger: {scan['verdict']}"


def _gold(scan: dict[str, Any]) -> bool:
    return scan["settings"]["retrained"]


def _found(one: dict[str, Any]) -> str:
    back = one["restored"]
    return (
        f"{one['prefix']!r} ({one['tokens']} tokens) brings back {_percent(back)} % of {back['n']} rows; random "
        f"prefixes {100 * one['random']['restored']['mean']:.1f} %."
    )


def _tried(tried: dict[str, Any], rows: dict[str, int]) -> str:
    lengths = [one["tokens"] for one in tried["best"]]
    span = f"of {min(lengths)} to {max(lengths)} tokens" if lengths else ""
    limits = ", ".join(f"{value} {name}" for name, value in tried["limits"].items() if value is not None)
    return (
        f"{tried['evaluations']} prefixes {span} were tried on {rows['searched']} rows, from {tried['restarts']} "
        f"beginnings, in {tried['seconds']} s and {tried['tokens']} tokens ({100 * tried['budget_used']:.0f} % of the "
        f"budget: {limits}); {rows['judged']} rows were held out."
    )


def _headings(scan: dict[str, Any]) -> list[str]:
    return [heading for heading in HEADINGS if heading != "retrained %" or _gold(scan)]


def _row(scan: dict[str, Any], one: dict[str, Any], intervals: bool = True) -> list[str]:
    spread, p = one["random"]["restored"], one["p"]
    row = [one["prefix"], str(one["tokens"]), _percent(one["restored"], intervals)]
    row.append(f"{100 * spread['mean']:.1f}" + (f", max {100 * spread['max']:.1f}" if intervals else ""))
    if _gold(scan):
        row.append(_percent(one["restored_retrained"], intervals))
    other = p["retrained"] if _gold(scan) else p["lost"]
    row += [f"{p['random']:.2g}", f"{other:.2g}", f"{one['gain']['value']:+.2f}"]
    return [*row, "found" if one["found"] else DASH]


def _percent(metric: dict[str, Any], interval: bool = True) -> str:
    """`68.8 [41.3, 89.0]`."""
    text, ends = f"{100 * metric['value']:.1f}", metric["interval"]
    return f"{text} [{', '.join(f'{100 * end:.1f}' for end in ends)}]" if interval and ends else text


def _code(text: str) -> str:
    return text.replace("`", "'")
