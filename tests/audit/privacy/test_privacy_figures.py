# SPDX-License-Identifier: Apache-2.0
"""Panels of many models, and the tails of what a model is sure of."""

import numpy as np
import pytest
from sweep_runs import attacked, baseline, run_of, sweep_of

from hf_unlearn.report.privacy.figures import roc_figure
from hf_unlearn.report.privacy.view import tail_cells
from hf_unlearn.report.sweep import privacy_figures as sweep_privacy_figures
from hf_unlearn.report.sweep.means import tabulate
from hf_unlearn.report.sweep.privacy_figures import distribution_figure, roc_of_sweep


def swept(count):
    """Target and retrained, attacked as well, and as many methods as asked for."""
    baselines = [{**baseline(kind, 1.0, 0.9), "privacy": attacked(0.5)} for kind in ("target", "retrained")]
    sweep = sweep_of([run_of(f"m{i:02d}", 0.0, 0.1, privacy=attacked(0.3, i)) for i in range(count)], baselines)
    return sweep, tabulate(sweep)


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


def overlaps(figure):
    boxes = [ax.get_position() for ax in figure.axes]
    return any(
        one.x0 < other.x1 and other.x0 < one.x1 and one.y0 < other.y1 and other.y0 < one.y1
        for i, one in enumerate(boxes)
        for other in boxes[:i]
    )


@pytest.mark.parametrize("draw", [roc_of_sweep, distribution_figure])
def test_every_method_of_a_sweep_has_its_panel(draw):
    figure = draw(*swept(12))
    assert titles(figure) == ["target", "retrained", *(f"m{i:02d}" for i in range(12))]
    assert not overlaps(figure)
    assert "No room" not in figure.get_supxlabel()


def test_what_a_page_has_no_room_for_is_named(monkeypatch):
    monkeypatch.setattr(sweep_privacy_figures, "MOST_PANELS", 4)
    figure = roc_of_sweep(*swept(11))
    assert titles(figure) == ["target", "retrained", "m00", "m01"]
    note = " ".join(figure.get_supxlabel().split())
    assert "No room for m02, m03, m04, m05, m06, m07 and 3 more: see `table.csv`." in note
    note = " ".join(roc_of_sweep(*swept(3)).get_supxlabel().split())
    assert "No room for m02: see" in note


@pytest.mark.parametrize(("models", "lines", "columns"), [(1, 1, 1), (3, 1, 3), (7, 3, 3), (10, 3, 4), (36, 6, 6)])
def test_panels_stand_in_a_row_or_a_square(models, lines, columns):
    from hf_unlearn.report.privacy.figures import _panels

    figure = _panels([{"name": "a", "kind": "a"}] * models, "T", lambda ax, model: None)
    axes = figure.axes
    assert len(axes) == models
    assert axes[0].get_gridspec().get_geometry() == (lines, columns)
    assert figure.get_figwidth() <= 30


def test_a_report_of_many_models_has_them_all():
    models = [{**attacked(0.3, i), "name": f"run{i}", "kind": "attacked"} for i in range(10)]
    assert len(roc_figure({"models": models}).axes) == 10


@pytest.mark.parametrize("n", [1, 9, 10, 60, 250])
def test_tails_equal_sorting(n):
    values = np.random.default_rng(n).permutation(n) / n
    ranked = sorted(values)

    def between(share):
        place = share * (n - 1)
        low = int(place)
        high = min(low + 1, n - 1)
        return ranked[low] + (place - low) * (ranked[high] - ranked[low])

    shown = [
        between(0.5) if n >= 2 else None,
        between(0.9) if n >= 10 else None,
        between(0.99) if n >= 100 else None,
        np.mean(ranked[-max(1, -(-n // 10)) :]),
        ranked[-1],
    ]
    assert tail_cells(values.tolist()) == ["-" if value is None else f"{value:.4f}" for value in shown]


def test_no_scores_have_no_tail():
    assert tail_cells([]) == ["-"] * 5
