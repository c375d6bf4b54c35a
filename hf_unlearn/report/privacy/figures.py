# SPDX-License-Identifier: Apache-2.0
"""Charts of a `privacy.json`: ROC on logarithmic axes, TPR with intervals, scores, and representations."""

import math
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..drawing import (
    bar_places,
    chart_name,
    errors,
    legend,
    new_figure,
    note,
    rate_axes,
    save_figures,
    unresolved_group,
)
from ..style import CIRCLE, GRID, LINES, METHODS, MUTED, PAGE, SHAPES, TARGET
from .view import attacks_of, defined_scores, fpr_name, rate_of, representations_of


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FORMATS = ("png", "pdf")
MEMBER, NONMEMBER = METHODS[1], METHODS[0]
PANEL = (4.6, 4.2)
FEWEST_COLUMNS = 3
# A page of 36 panels is about 70 cm wide and high.
MOST_PANELS = 36
MOST_NAMES = 6
# Those on top last.
SETS = (
    ("retain", "retain rows", MUTED, SHAPES[1]),
    ("nonmember", "non-members", NONMEMBER, SHAPES[0]),
    ("forget", "forget rows", MEMBER, CIRCLE),
)


def save_privacy_plots(report: dict, folder: Path, formats: tuple[str, ...] = FORMATS) -> dict[str, Path]:
    """Draws all charts.

    Args:
        report (`dict`): the content of a `privacy.json`.
        folder (`Path`): where they go; made if absent.
        formats (`tuple[str]`): file endings that matplotlib knows.

    Returns:
        `dict[str, Path]`: the files of the first format by name: `privacy_roc`, `privacy_tpr`, `privacy_scores`; and
        `privacy_representations` where a model has such.
    """
    draws = {
        "privacy_roc": roc_figure,
        "privacy_tpr": tpr_figure,
        "privacy_scores": scores_figure,
        "privacy_representations": representations_figure,
    }
    return save_figures({name: partial(draw, report) for name, draw in draws.items()}, folder, formats)


def roc_figure(report: dict) -> "Figure":
    """One panel a model: TPR over FPR of every attack, the zone that the sample cannot resolve shaded."""
    figure = _panels(report["models"], "What an attacker finds, by the share of false accusations", draw_roc)
    legend(figure, figure.axes[:1], "lower center", 6)
    return figure


def draw_roc(ax: "Axes", model: dict) -> None:
    """The ROC of every attack on one model, both axes logarithmic."""
    from matplotlib.ticker import NullFormatter
    from sklearn.metrics import roc_curve

    fewest = min(len(defined_scores(model, attack)[1]) for attack in attacks_of(model))
    left = min([*model["settings"]["fprs"], 1 / max(fewest, 1)]) / 2
    bottom = 0.5 / max(1, model["settings"]["n"]["forget"])
    ax.axvspan(left, 1 / max(fewest, 1), color=GRID.light, alpha=0.6, linewidth=0, zorder=0)
    ax.plot([left, 1], [left, 1], color=MUTED.light, linewidth=1, linestyle="dotted", label="chance")
    for i, attack in enumerate(attacks_of(model)):
        members, others = defined_scores(model, attack)
        if not members or not others:
            continue
        labels = [1] * len(members) + [0] * len(others)
        false, true, _ = roc_curve(labels, members + others, drop_intermediate=False)
        style = {"color": METHODS[i % len(METHODS)].light, "linestyle": LINES[i // len(METHODS) % len(LINES)]}
        ax.step(false.clip(left), true.clip(bottom / 2), where="post", linewidth=1.5, label=attack, **style)
    ax.set(xscale="log", yscale="log", xlim=(left, 1), ylim=(bottom, 1.15))
    ax.text(left * 1.15, bottom * 1.25, f"unresolved\n(n = {fewest:,})", fontsize=8.5, color=MUTED.light, va="bottom")
    ax.set(xlabel="False positive rate", ylabel="True positive rate")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(True)


def tpr_figure(report: dict) -> "Figure":
    """One panel a model: TPR of every attack at every resolved rate with its interval, and the chance level."""
    figure = _panels(report["models"], "Forget rows found, thresholds set by other rows", draw_tpr)
    legend(figure, figure.axes[:1], "lower center", 6)
    return figure


def draw_tpr(ax: "Axes", model: dict) -> None:
    """Bars of one model: a group a rate, a bar an attack."""
    fprs, attacks = model["settings"]["fprs"], attacks_of(model)
    labelled: set[str] = set()
    for group, fpr in enumerate(fprs):
        results = [rate_of(model, attack, fpr) for attack in attacks]
        if all(result["value"] is None for result in results):
            unresolved_group(ax, group)
            continue
        places, width = bar_places(group, len(attacks))
        for i, (attack, result) in enumerate(zip(attacks, results, strict=True)):
            if result["value"] is None:
                continue
            x, value = places[i], result["value"]
            hatch = None if i < len(METHODS) else "///"
            label = None if attack in labelled else attack
            labelled.add(attack)
            bar = {"color": METHODS[i % len(METHODS)].light, "hatch": hatch, "edgecolor": PAGE.light, "linewidth": 0}
            ax.bar(x, value, width * 0.9, label=label, **bar)
            ax.errorbar(
                x, value, yerr=errors(value, result["interval"]), fmt="none", color=TARGET.light, elinewidth=1.1
            )
        chance = next(result["details"]["chance"] for result in results if result["value"] is not None)
        ax.plot([group - 0.47, group + 0.47], [chance] * 2, color="black", linewidth=1.2, linestyle="dotted")
    rate_axes(ax, [fpr_name(fpr) for fpr in fprs], _title(model), "False positive rate (dotted: chance)")


def scores_figure(report: dict) -> "Figure":
    """One panel a model: how the first attack scores forget rows and non-members, with its threshold."""
    attack = attacks_of(report["models"][0])[0]
    title = f"Scores of the attack “{attack}”; like non-members is the aim"
    figure = _panels(report["models"], title, partial(draw_scores, attack=attack))
    legend(figure, figure.axes[:1], "lower center")
    return figure


def draw_scores(ax: "Axes", model: dict, attack: str) -> None:
    """Histograms of both sets over common bins, and the thresholds of the resolved rates."""
    import numpy as np

    members, others = defined_scores(model, attack)
    if members and others:
        bins = np.histogram_bin_edges([*members, *others], bins=30)
        for name, scores, ink in (("non-members", others, NONMEMBER), ("forget rows", members, MEMBER)):
            weights = [1 / len(scores)] * len(scores)
            ax.hist(scores, bins=bins, weights=weights, color=ink.light, alpha=0.55, label=name)
    for fpr in model["settings"]["fprs"]:
        details = rate_of(model, attack, fpr)["details"]
        if "threshold" in details:
            ax.axvline(details["threshold"], color=MUTED.light, linewidth=1.1, linestyle="dashed")
            place = {"xycoords": ("data", "axes fraction"), "rotation": 90, "va": "top", "ha": "right"}
            top = (details["threshold"], 0.98)
            ax.annotate(f"FPR {fpr_name(fpr)}", top, fontsize=8.5, color=MUTED.light, **place)
    ax.set(xlabel="Score (larger: more like a member)", ylabel="Share of the rows")
    ax.grid(True, axis="y")


def representations_figure(report: dict) -> "Figure | None":
    """One panel a model: rows on the first two principal components of its representations; None if none has such."""
    models = [model for model in report["models"] if representations_of(model) is not None]
    if not models:
        return None
    title = "Rows as the last layer reads them, each model apart"
    figure = _panels(
        models[:MOST_PANELS], title, lambda ax, model: draw_representations(ax, representations_of(model))
    )
    note(figure, textwrap.fill(left_out(models[MOST_PANELS:], "privacy.json"), round(figure.get_figwidth() * 15)))
    legend(figure, figure.axes, "lower right", 3)
    return figure


def draw_representations(ax: "Axes", found: dict) -> None:
    """Points of one model by set, both axes to one scale."""
    for name, label, ink, marker in SETS:
        if found["points"].get(name):
            mark = {"marker": marker.matplotlib, "s": 14, "alpha": 0.6, "linewidth": 0}
            ax.scatter(*zip(*found["points"][name], strict=True), color=ink.light, label=label, **mark)
    first, second = (f"{100 * share:.3g} % of the variance" for share in found["variance_shares"])
    ax.set(xlabel=f"First component ({first})", ylabel=f"Second component ({second})")
    ax.set_aspect("equal", adjustable="datalim")
    ax.grid(True)


def left_out(models: list[dict], where: str) -> str:
    """Which models a page has no room for, and the file that has them."""
    if not models:
        return ""
    named = ", ".join(chart_name(model["name"]) for model in models[:MOST_NAMES])
    more = f" and {len(models) - MOST_NAMES} more" if len(models) > MOST_NAMES else ""
    return f" No room for {named}{more}: see `{where}`."


def _panels(models: list[dict], title: str, draw: Callable[["Axes", dict], None]) -> "Figure":
    count = len(models)
    # A row for few models, a square for many.
    columns = min(count, max(FEWEST_COLUMNS, math.ceil(math.sqrt(count))))
    rows = math.ceil(count / columns)
    figure = new_figure((max(6.4, PANEL[0] * columns), PANEL[1] * rows + 0.8), title=title)
    for i, model in enumerate(models):
        ax = figure.add_subplot(rows, columns, i + 1)
        ax.set_title(_title(model), loc="left")
        draw(ax, model)
    return figure


def _title(model: dict) -> str:
    name = chart_name(model["name"])
    return name if model["name"] == model["kind"] else f"{name} ({model['kind']})"
