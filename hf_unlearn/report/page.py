# SPDX-License-Identifier: Apache-2.0
"""The HTML page: one file that needs nothing else."""

from .charts import CURVES, missing_from_scatter
from .figures import chart_title, page_charts
from .naming import KEY_METRICS
from .robustness import FOOTNOTE, models_in
from .style import INKS, looks
from .table import Table
from .verdict import RULE, utility_metric, verdicts
from .view import (
    answer_groups,
    answering_models,
    cell,
    columns,
    interval_methods,
    key_table,
    model_name,
    section_tables,
    settings_table,
    shared_n,
    training_rows,
    variants,
)


SHOWN_ANSWERS = 8
OPEN_SETTINGS = 24
SET_HEADINGS = {
    "forget": "Questions about what was to be forgotten",
    "retain": "Questions about what was to be kept",
    "holdout": "Questions about what no model was trained on",
}


def render_page(report: dict) -> str:
    """Renders the page.

    Args:
        report (`dict`): a valid report.

    Returns:
        `str`: HTML with style sheet and charts inside.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("hf_unlearn.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    charts = page_charts(report)
    setting_names, settings = settings_table(report)
    named = {model["name"]: model_name(report, model) for model in report["models"]}
    return environment.get_template("report.html").render(
        report=report,
        style=Markup(environment.get_template("style.css").render(inks=INKS)),
        looks=looks(report),
        verdicts=verdicts(report),
        rule=RULE,
        kinds={model["kind"] for model in report["models"]},
        utility=utility_metric(report),
        scatter={width: Markup(svg) for width, svg in charts["scatter"].items()},
        missing_from_scatter=missing_from_scatter(report),
        curves={CURVES[key]: Markup(svg) for key, svg in charts["curves"].items()},
        trained=[model["name"] for model in report["models"] if (model.get("train") or {}).get("curve")],
        sections=section_tables(report),
        audit_charts={
            kind: {title: Markup(svg) for title, svg in found.items()} for kind, found in charts["audits"].items()
        },
        audit_legends={kind: models_in(report, kind) for kind in charts["audits"]},
        audit_footnote=FOOTNOTE,
        key_numbers=key_table(report, columns(report, key_only=True)),
        key_bars=_bars(report, charts, key=True),
        other_bars=_bars(report, charts, key=False),
        all_columns=columns(report, key_only=False),
        cell=cell,
        shared_n=lambda name: shared_n(report, name),
        variants=lambda name: variants(report, name),
        interval_methods=interval_methods(report),
        answer_groups=answer_groups(report),
        answering=answering_models(report),
        set_headings=SET_HEADINGS,
        shown_answers=SHOWN_ANSWERS,
        open_settings=OPEN_SETTINGS,
        settings=Table(
            ["Setting", *(named.get(name, name) for name in setting_names)],
            [[key, *values] for key, values in settings],
        ),
        training=training_rows(report),
    )


def _bars(report: dict, charts: dict, key: bool) -> list[tuple]:
    from markupsafe import Markup

    chosen = {name: svg for name, svg in charts["metrics"].items() if (name in KEY_METRICS) == key}
    return [(name, chart_title(report, name), Markup(svg)) for name, svg in chosen.items()]
