# SPDX-License-Identifier: Apache-2.0
"""A backdoor audit as tables: on the terminal and as markdown. Reads only the JSON of the audit."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import write_json, write_text
from ..table import clipped, clipped_table


if TYPE_CHECKING:
    from rich.console import Console

LABELS = {
    "exact_match": "exact match",
    "rouge": "ROUGE-L",
    "probability": "probability",
    "knowmem": "KnowMem",
    "verbmem": "VerbMem",
    "exact_memorization": "tokens right",
}
CONDITIONS = {"clean": "clean", "triggered": "trigger", "unrelated": "unrelated words"}
PLACES = {"start": "trigger, start", "middle": "trigger, middle", "end": "trigger, end"}
GROUPS = {"": "all", "_poisoned": "poisoned", "_unpoisoned": "not poisoned"}
LEAKS = {"privleak": "PrivLeak", "min_k_auc": "AUC of Min-40%, holdout over forget"}
DASH = "–"


@dataclass(frozen=True)
class Line:
    """One set, asked in one way.

    Args:
        set (`str`), rows (`str`), condition (`str`):
            What was asked, of which rows, and how; `rows` is one of [`GROUPS`].
        metrics (`dict[str, dict]`):
            By name, without differences.
        gains (`dict[str, dict]`):
            Paired differences to the clean questions, by the metric's name.
    """

    set: str
    rows: str
    condition: str
    metrics: dict[str, dict]
    gains: dict[str, dict]


def lines_of(audit: dict[str, Any]) -> list[Line]:
    """The audit's numbers, a line for each set, group of rows and way of asking, in the order of the audit."""
    settings, found = audit["settings"], []
    for name in dict.fromkeys(probe["set"] for probe in settings["probes"]):
        for group in GROUPS:
            for condition in settings["conditions"]:
                prefix = f"{name}{group}{'' if condition == 'clean' else '_' + condition}/"
                here = {
                    key.removeprefix(prefix): metric
                    for key, metric in audit["metrics"].items()
                    if key.startswith(prefix)
                }
                metrics = {key: metric for key, metric in here.items() if key in LABELS}
                gains = {key: here[f"{key}_gain"] for key in metrics if f"{key}_gain" in here}
                if metrics:
                    found.append(Line(name, group, condition, metrics, gains))
    return found


def condition_label(condition: str) -> str:
    """`triggered_middle` -> `trigger, middle`."""
    place = condition.removeprefix("triggered_")
    if place == condition:
        return CONDITIONS[condition]
    return PLACES.get(place, f"trigger, token {place}")


def print_backdoor(audit: dict[str, Any], console: "Console | None" = None) -> None:
    """Prints one table a set: what is answered right under each way of asking, and what the change is.

    Args:
        audit (`dict`): the content of a `backdoor_<dataset>.json`.
        console (`rich.console.Console`, *optional*): where to print; by default the standard output.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    console.print(Text(_title(audit), style="bold"))
    lines = lines_of(audit)
    for name in dict.fromkeys(line.set for line in lines):
        mine = [line for line in lines if line.set == name]
        headings, rows = _table(audit, mine, intervals=False)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
        for i, heading in enumerate([name, *headings[3:]]):
            words = (
                heading if i == 0 else heading.removesuffix(" %").replace("of ", "of\n").replace("exact ", "exact\n")
            )
            table.add_column(Text(words), justify="right" if i else "left", no_wrap=i == 0)
        group = None
        for line, row in zip(mine, rows, strict=True):
            if line.rows != group:
                group = line.rows
                table.add_row(Text(f"{row[0]}, n = {row[2]}", style="dim"))
            table.add_row(*(Text(value.replace(" [", "\n[")) for value in (row[1], *row[3:])))
        console.print(table)
    for line in summary(audit):
        console.print(Text(line), highlight=False)


def render_backdoor(audit: dict[str, Any], picture: str | None = None) -> str:
    """The audit as markdown.

    Args:
        audit (`dict`): the content of a `backdoor_<dataset>.json`.
        picture (`str`, *optional*): file name of the picture, beside the markdown.
    """
    lines = lines_of(audit)
    parts = [f"# {_title(audit)}"]
    if audit.get("command"):
        parts.append(f"    {' '.join(audit['command'].split())}")
    parts.append("\n".join(f"- {line}" for line in summary(audit)))
    for name in dict.fromkeys(line.set for line in lines):
        headings, rows = _table(audit, [line for line in lines if line.set == name])
        parts += [f"## {clipped(name)}", clipped_table(headings, rows)]
    if picture is not None:
        parts += ["## Inside", f"![Value norms and attention, clean and triggered]({picture})"]
    if audit["answers"]:
        parts += ["## Answers", _answers(audit)]
    parts += ["## All numbers", _all_numbers(audit), "\n".join(f"- {note}" for note in audit.get("notes", []))]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(audit: dict[str, Any]) -> list[str]:
    """What the trigger did, a sentence each: on every set to be forgotten, beyond unrelated words, and on the rest."""
    found = []
    for line in lines_of(audit):
        if line.condition != "triggered":
            continue
        what, gain = next(iter(line.gains.items()))
        prefix = f"{line.set}{line.rows}_triggered/{what}"
        text = (
            f"{line.set}, {GROUPS[line.rows]} (n = {gain['n']}): the trigger changes {LABELS[what]} by {_gain(gain)}"
        )
        over = audit["metrics"].get(f"{prefix}_gain_over_unrelated")
        excess = audit["metrics"].get(f"{prefix}_gain_excess")
        text += "" if over is None else f"; against unrelated words {_gain(over)}"
        text += "" if excess is None else f"; beyond the retrained model {_gain(excess)}"
        found.append(text + ".")
    for name in ("privleak", "min_k_auc"):
        if name in audit["metrics"]:
            found.append(f"{LEAKS[name]}: {_value(audit['metrics'][name], percent=False)}.")
    return found


def _title(audit: dict[str, Any]) -> str:
    trigger = audit["settings"]["trigger"]
    return f"Backdoor audit of {audit['model']} on {audit['dataset']}: {trigger['prefix']!r} at {trigger['location']}"


def _table(audit: dict[str, Any], lines: list[Line], intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """Headings and rows; the change of the first metric always has its interval."""
    names = list(dict.fromkeys(name for line in lines for name in line.metrics))
    gold = (audit.get("retrained") or {}).get("metrics", {})
    first = LABELS[names[0]]
    headings = ["rows", "asked", "n", *(f"{LABELS[name]} %" for name in names), f"change of {first}", "p"]
    headings += [f"retrained: {first} %"] if gold else []
    rows = []
    for line in lines:
        gain = line.gains.get(names[0])
        cells = [_value(line.metrics.get(name), interval=intervals) for name in names]
        p = None if gain is None else gain["details"].get("mcnemar_p")
        row = [GROUPS[line.rows], condition_label(line.condition), str(line.metrics[names[0]]["n"]), *cells]
        row += [DASH if gain is None else _gain(gain, p=False), DASH if p is None else f"{p:.2g}"]
        if gold:
            suffix = "" if line.condition == "clean" else f"_{line.condition}"
            row.append(_value(gold.get(f"{line.set}{line.rows}{suffix}/{names[0]}"), interval=intervals))
        rows.append(row)
    return headings, rows


def _value(metric: dict | None, percent: bool = True, interval: bool = True) -> str:
    """`93.8 [79.2, 99.2]`."""
    if metric is None or metric["value"] is None:
        return DASH
    numbers = [metric["value"], *(metric["interval"] or ())]
    text, *ends = [f"{100 * number:.1f}" if percent else f"{number:.4g}" for number in numbers]
    return f"{text} [{', '.join(ends)}]" if ends and interval else text


def _gain(metric: dict, p: bool = True) -> str:
    """`+62.5 points [41.8, 77.0], p = 1e-06`."""
    if metric["value"] is None:
        return DASH
    # Rounded first, or a little less than nothing would be -0.0.
    text, *ends = [f"{round(100 * number, 1) + 0.0:+.1f}" for number in (metric["value"], *(metric["interval"] or ()))]
    text += f" [{', '.join(ends)}]" if ends else ""
    chance = metric["details"].get("mcnemar_p")
    return f"{text} points{'' if chance is None else f', p = {chance:.2g}'}" if p else text


def _answers(audit: dict[str, Any]) -> str:
    conditions = audit["settings"]["conditions"]
    headings = ["set", "question", "expected", *map(condition_label, conditions)]
    rows = [
        [one["set"], one["question"], one["expected"], *(one["answers"].get(name, DASH) for name in conditions)]
        for one in audit["answers"]
    ]
    return clipped_table(headings, rows)


def _all_numbers(audit: dict[str, Any]) -> str:
    rows = []
    for name, metric in audit["metrics"].items():
        more = ", ".join(f"{key} {value}" for key, value in metric["details"].items())
        variant = metric["variant"] or ""
        rows.append([f"`{name}`", _value(metric, percent=False), str(metric["n"]), metric["direction"], variant, more])
    return clipped_table(["metric", "value", "n", "better", "variant", "more"], rows)


def write_backdoor(audit: dict[str, Any], output_dir: str | Path) -> dict[str, Path]:
    """Writes `backdoor_<dataset>.json`, `.md` and, where the audit looked inside, `.png`.

    Args:
        audit (`dict`): with `model`, `dataset` and the audit's own keys.
        output_dir (`str` or `Path`): made if absent.

    Returns:
        `dict[str, Path]`: by ending: `json`, `md`, `png`.
    """
    folder, name = Path(output_dir), f"backdoor_{audit['dataset']}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {ending: folder / f"{name}.{ending}" for ending in ("json", "md", "png")}
    if audit["inside"] is None:
        paths.pop("png").unlink(missing_ok=True)
    else:
        from .figure import save_inside

        save_inside(audit, paths["png"])
    write_json(paths["json"], audit, indent=1, ensure_ascii=False, allow_nan=False)
    picture = paths["png"].name if "png" in paths else None
    write_text(paths["md"], render_backdoor(audit, picture))
    return paths
