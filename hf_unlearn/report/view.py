# SPDX-License-Identifier: Apache-2.0
"""What page, markdown and terminal have in common: the report put in the order in which it is read."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .naming import (
    ARROWS,
    DIRECTION_WORDS,
    MEANINGS,
    direction_of,
    format_interval,
    format_number,
    full_label,
    key_metric_names,
    metric_in,
    metric_label,
    metric_names,
    metric_of,
    set_of,
    unit,
)
from .privacy.table import privacy_section
from .sections import section_table
from .style import looks
from .table import Name, Table


if TYPE_CHECKING:
    from rich.text import Text


CLAMP = 240
EMPTY = "(empty)"


@dataclass(frozen=True)
class Column:
    """The heading of a metric."""

    name: str
    set: str
    label: str
    full_label: str
    unit: str
    arrow: str
    direction: str
    meaning: str

    def markdown(self) -> str:
        return f"{', '.join(filter(None, (self.full_label, self.unit)))} {self.arrow}".strip()

    def terminal(self) -> "Text":
        from rich.text import Text

        lines = self.set.replace(", ", "\n"), self.label.replace(" ", "\n"), f"{self.unit} {self.arrow}".strip()
        return Text("\n".join(filter(None, lines)))


@dataclass(frozen=True)
class Cell:
    """One model's result for one metric: as stored and as shown."""

    value: float | None
    text: str
    interval: str
    n: int | None
    undefined: int
    metric: str


@dataclass(frozen=True)
class Answer:
    """One model's answer to a question."""

    text: str
    is_empty: bool
    matches: bool
    beginning: str | None


def columns(report: dict, key_only: bool) -> list[Column]:
    """The headings of the key metrics, or of all."""
    names = key_metric_names(report) if key_only else metric_names(report)
    result = []
    for name in names:
        direction = direction_of(report, name)
        meaning = MEANINGS.get(metric_of(name), "")
        labels = set_of(name), metric_label(name), full_label(name)
        result.append(Column(name, *labels, unit(name), ARROWS[direction], DIRECTION_WORDS[direction], meaning))
    return result


def cell(model: dict, name: str) -> Cell:
    """A model's cell for a metric; a dash where it has none."""
    metric = metric_in(model, name)
    if metric is None:
        return Cell(None, format_number(name, None), "", None, 0, name)
    shown = format_number(name, metric["value"]), format_interval(name, metric)
    return Cell(metric["value"], *shown, metric["n"], metric.get("undefined", 0), name)


def model_name(report: dict, model: dict) -> Name:
    """A model's name as tables show it."""
    return Name(model["name"], looks(report)[model["name"]], model["kind"] == "unlearned")


def key_table(report: dict, headings: list[Column]) -> Table:
    """A row a model, with its key metrics."""
    rows = [
        [model_name(report, model), *(cell(model, heading.name) for heading in headings)] for model in report["models"]
    ]
    return Table(["Model", *headings], rows, report["title"], numbers=True)


def section_tables(report: dict) -> list[tuple[dict, Table]]:
    """The sections of further audits, each with its table: a row a model."""
    models = {model["name"]: model for model in report["models"]}
    sections = report.get("sections")
    if sections is None:
        # Reports of older versions have no sections, and one further audit.
        sections = filter(None, [privacy_section(report["models"])])
    return [(one, section_table(one, lambda name: model_name(report, models[name]))) for one in sections]


def shared_n(report: dict, name: str) -> int | None:
    """The n of a metric if every model has the same."""
    counts = {model["metrics"][name]["n"] for model in report["models"] if name in model["metrics"]}
    return counts.pop() if len(counts) == 1 else None


def variants(report: dict, name: str) -> str:
    """The variant of a metric; more than one if the models disagree."""
    found = (model["metrics"][name]["variant"] for model in report["models"] if name in model["metrics"])
    return ", ".join(dict.fromkeys(variant for variant in found if variant))


def interval_methods(report: dict) -> dict[str, list[str]]:
    """How the intervals were made: method -> the metrics that use it; empty where the report does not say."""
    methods: dict[str, dict[str, None]] = {}
    for model in report["models"]:
        for name, metric in model["metrics"].items():
            if metric.get("interval_method"):
                methods.setdefault(metric["interval_method"], {})[metric_label(name)] = None
    return {method: list(labels) for method, labels in methods.items()}


def answer_groups(report: dict) -> dict[str, list[dict[str, Any]]]:
    """The questions of each set, with every model's answer beside the expected one.

    Returns:
        `dict`: set -> rows with `question`, `expected` and `answers` (model name -> [`Answer`], absent where a model
        was not asked).
    """
    groups: dict[str, dict[str, dict]] = {}
    for model in report["models"]:
        for asked in model.get("answers") or []:
            rows = groups.setdefault(asked["set"], {})
            row = rows.setdefault(asked["question"], {"expected": asked["expected"], "answers": {}})
            row["answers"].setdefault(model["name"], _answer(asked["answer"], asked["expected"]))
    return {name: [{"question": question, **row} for question, row in rows.items()] for name, rows in groups.items()}


def answering_models(report: dict) -> list[dict]:
    """The models with answers."""
    return [model for model in report["models"] if model.get("answers")]


def settings_table(report: dict) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Settings as headings and rows: a column per model where the report has settings per model, else one column."""
    settings = report["settings"]
    names = {model["name"] for model in report["models"]}
    if settings and all(name in names and isinstance(value, dict) for name, value in settings.items()):
        keys = dict.fromkeys(key for value in settings.values() for key in value)
        rows = [(key, [_plain(value[key]) if key in value else "" for value in settings.values()]) for key in keys]
        return list(settings), rows
    return ["value"] if settings else [], [(key, [_plain(value)]) for key, value in settings.items()]


def training_rows(report: dict) -> list[tuple[str, str]]:
    """Model, and steps, time and arithmetic of those that were trained in this run."""
    rows = []
    for model in report["models"]:
        train = model.get("train")
        if train:
            forms = {"steps": "{} steps", "seconds": "{:.1f} s", "flops": "{:.1e} FLOP"}
            told = [form.format(train[name]) for name, form in forms.items() if train.get(name) is not None]
            rows.append((model["name"], ", ".join(told)))
    return rows


def _answer(text: str | None, expected: str) -> Answer:
    text = text or ""
    # As in exact match: upper case and white space do not count.
    words = text.casefold().split()
    beginning = text[:CLAMP].rstrip() + " …" if len(text) > CLAMP else None
    return Answer(text if words else EMPTY, not words, bool(words) and words == expected.casefold().split(), beginning)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
