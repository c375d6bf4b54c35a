# SPDX-License-Identifier: Apache-2.0
"""The report as markdown, as GitHub and the Hub show it."""

from pathlib import Path

from .findings import Finding
from .naming import format_interval, format_number, metric_in
from .sections import section_markdown
from .style import looks
from .table import Table, escape, one_line
from .verdict import RULE, verdicts
from .view import (
    answer_groups,
    answering_models,
    columns,
    key_table,
    section_tables,
    settings_table,
    shared_n,
    variants,
)


SHOWN_ANSWERS = 6
PLOTS = {
    "forget_vs_utility": "Forgetting against utility: what each model still knows of the forget set, and its utility",
    "loss_curves": "Loss on forget and retain rows while unlearning",
    "metrics": "Key metrics of each model with 95% intervals",
}


def render_markdown(report: dict, plots: dict[str, Path], folder: Path) -> str:
    """Renders the markdown.

    Args:
        report (`dict`): a valid report.
        plots (`dict[str, Path]`): the files that [`~hf_unlearn.report.figures.save_plots`] wrote.
        folder (`Path`): where the markdown goes; the plots are linked relative to it.

    Returns:
        `str`: markdown.
    """
    texts = PLOTS | {
        name: f"What is left, by {name.removeprefix('robustness_')}" for name in plots if name not in PLOTS
    }
    images = {
        name: f"![{text}]({plots[name].relative_to(folder).as_posix()})"
        for name, text in texts.items()
        if name in plots
    }
    own = [images[name] for name in PLOTS if name in images]
    sections = [
        _head(report),
        _verdicts(report),
        *own[:1],
        _key_numbers(report),
        _sections(report, images),
        *own[1:],
        _answers(report),
        _all_metrics(report),
        _settings(report),
        _foot(report),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(report: dict) -> str:
    command = f"\n\n    {one_line(report['command'])}" if report.get("command") else ""
    return f"# {escape(report['title'])}\n\nSuite {escape(report['suite'])}, {escape(report['created'])}.{command}"


def _verdicts(report: dict) -> str:
    found = verdicts(report)
    if not found:
        return ""
    rows = []
    for verdict in found:
        main = [f"{finding.word}<br>{finding.metric} {finding.value}" for finding in (verdict.forgot, verdict.kept)]
        more = "<br>".join(map(_check, verdict.more))
        rows.append((_name(report, verdict.model), f"{verdict.sign} {verdict.headline}", *main, more))
    return Table(["Model", "In words", "Forgot?", "Kept?", "More checks"], rows).markdown() + f"\n\n{RULE}"


def _check(finding: Finding) -> str:
    """A further check; in words too where it does not agree."""
    told = [finding.value, *([] if finding.tone == "good" else [finding.word])]
    return f"{finding.sign} " + ": ".join(filter(None, (finding.label, ", ".join(filter(None, told)))))


def _key_numbers(report: dict) -> str:
    headings = columns(report, key_only=True)
    if not headings:
        return ""
    hint = "Value and 95% interval; – is undefined or not measured. "
    hint += "↑ higher, ↓ lower, ≈ closer to the retrained model is better."
    return f"## Key numbers\n\n{hint}\n\n" + key_table(report, headings).markdown()


def _sections(report: dict, images: dict[str, str]) -> str:
    parts = []
    for section, table in section_tables(report):
        image = images.get(f"robustness_{section['audit']}")
        parts += [section_markdown(section, table), *([image] if image else [])]
    return "\n\n".join(parts)


def _answers(report: dict) -> str:
    models = answering_models(report)
    sections = []
    for name, rows in answer_groups(report).items():
        table = []
        for row in rows[:SHOWN_ANSWERS]:
            answers = [_answer(row["answers"].get(model["name"])) for model in models]
            table.append((escape(row["question"]), escape(row["expected"]), *answers))
        headings = ["Question", "Expected", *(_name(report, model["name"]) for model in models)]
        more = len(rows) - SHOWN_ANSWERS
        note = f"\n\n{more} more are in `report.html` and `report.json`." if more > 0 else ""
        sections.append(f"### Set: {escape(name)}\n\n{Table(headings, table).markdown()}{note}")
    if not sections:
        return ""
    head = "## The same questions, before and after\n\n**Bold ✓**: matches the expected answer."
    return "\n\n".join([head, *sections])


def _answer(answer) -> str:
    if answer is None:
        return "–"
    text = escape(answer.beginning or answer.text)
    if answer.is_empty:
        return f"*{text}*"
    return f"**{text}** ✓" if answer.matches else text


def _all_metrics(report: dict) -> str:
    rows = []
    for heading in columns(report, key_only=False):
        n = shared_n(report, heading.name)
        values = [_with_interval(model, heading.name, show_n=n is None) for model in report["models"]]
        direction, variant = heading.direction, escape(variants(report, heading.name))
        rows.append((f"`{heading.name}`{' %' if heading.unit else ''}", *values, n or "", direction, variant))
    names = [_name(report, model["name"]) for model in report["models"]]
    table = Table(["Metric", *names, "n", "Direction", "Variant"], rows).markdown()
    return f"## All metrics\n\n<details><summary>{len(rows)} metrics</summary>\n\n{table}\n\n</details>"


def _with_interval(model: dict, name: str, show_n: bool) -> str:
    metric = metric_in(model, name)
    if metric is None:
        return format_number(name, None)
    parts = [format_number(name, metric["value"]), format_interval(name, metric)]
    if show_n:
        parts.append(f"n={metric['n']}")
    return " ".join(part for part in parts if part)


def _settings(report: dict) -> str:
    names, settings = settings_table(report)
    if not settings:
        return ""
    rows = [(escape(key), *map(_code, values)) for key, values in settings]
    table = Table(["Setting", *map(escape, names)], rows).markdown()
    return f"## Settings\n\n<details><summary>{len(settings)} settings</summary>\n\n{table}\n\n</details>"


def _foot(report: dict) -> str:
    notes = "\n".join(f"- {escape(note)}" for note in report.get("notes") or [])
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in report["versions"].items())
    limits = f"## Limits\n\n{notes}\n\n" if notes else ""
    return f"{limits}Versions: {versions}. All of this is drawn from `report.json`; the page is `report.html`."


def _name(report: dict, name: str) -> str:
    return f"{looks(report)[name].marker.glyph} {escape(name)}"


def _code(value: str) -> str:
    return f"`{one_line(value).replace('|', chr(92) + '|').replace('`', chr(39))}`" if value else ""
