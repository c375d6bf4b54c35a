# SPDX-License-Identifier: Apache-2.0
"""What all figures share: how they look, how they are saved, and the parts that more than one of them draws."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import whole_file
from .style import GRID, MUTED, PAGE, TEXT, Look


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PNG_FONTS = ("Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")
# A wide font: the reader's browser sets the text in its own, which must fit where this one did.
PAGE_FONTS = ("DejaVu Sans",)
PNG_DPI = 200
PNG_PAD = 0.12
# The room that the bars of a group take up together, where groups stand at 0, 1, 2...
GROUP = 0.84
MARKER_SIZES = {"*": 17, "D": 8.5, "P": 10.5, "X": 10.5}


def styled(fonts: tuple[str, ...] = PNG_FONTS):
    """A context in which matplotlib draws as all figures look."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return matplotlib.rc_context({
        "font.family": [font for font in fonts if font in installed],
        "font.size": 10.5,
        "text.color": TEXT.light,
        "axes.edgecolor": MUTED.light,
        "axes.labelcolor": TEXT.light,
        "axes.linewidth": 0.8,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.titlecolor": TEXT.light,
        "grid.color": GRID.light,
        "grid.linewidth": 0.9,
        "xtick.color": MUTED.light,
        "ytick.color": MUTED.light,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "svg.fonttype": "none",
        "svg.hashsalt": "hf_unlearn",
    })  # fmt: skip


def new_figure(size: tuple[float, float], pad: float = PNG_PAD, title: str = "", title_size: float = 14) -> Figure:
    """A figure of `size` inches with room `pad` around its panels, and a title above all of them."""
    # Figure() and not pyplot: no global state and no display backend, whatever process calls this.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.get_layout_engine().set(w_pad=pad, h_pad=pad)
    if title:
        figure.suptitle(title, x=0.012, ha="left", fontsize=title_size, fontweight="bold")
    return figure


def note(figure: Figure, text: str, size: float = 8.5) -> None:
    """Small text below all panels."""
    figure.supxlabel(text, x=0.012, ha="left", fontsize=size, color=MUTED.light)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as a file on paper's ground, in the format that its name ends with."""
    with whole_file(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=PNG_DPI, facecolor=PAGE.light)


def save_figures(
    draws: dict[str, Callable[[], Figure | None]], folder: Path, formats: Sequence[str] = ("png",)
) -> dict[str, Path]:
    """Draws figures and writes each in all formats; a file of an earlier report that is not drawn now is removed.

    Args:
        draws (`dict`): by the files' name, what makes a figure, or `None` where there are no numbers for one.
        folder (`Path`): where they go; made if absent.
        formats (`Sequence[str]`): file endings that matplotlib knows.

    Returns:
        `dict[str, Path]`: the files of the first format, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    with styled():
        for name, draw in draws.items():
            figure, files = draw(), [folder / f"{name}.{ending}" for ending in formats]
            for file in files:
                if figure is None:
                    file.unlink(missing_ok=True)
                else:
                    save_figure(figure, file)
            if figure is not None:
                paths[name] = files[0]
    return paths


def legend(figure: Figure, axes: Iterable[Axes], place: str = "upper right", columns: int = 4) -> None:
    """One legend outside of the panels, each label once."""
    handles = {label: mark for ax in axes for mark, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    ncols = min(len(handles), columns)
    figure.legend(handles.values(), handles, loc=f"outside {place}", ncols=ncols, frameon=False, fontsize=9)


def mark(ax: Axes, x: Any, y: Any, look: Look, scale: float = 1.0, **options: Any) -> None:
    """A model's marker at a point, a little lighter around, so that it stands out from what is below."""
    shape = look.marker.matplotlib
    options = {"markeredgewidth": 1.1, "markeredgecolor": PAGE.light, "zorder": 5, "linewidth": 0, **options}
    ax.plot([x], [y], shape, color=look.ink.light, markersize=scale * MARKER_SIZES.get(shape, 9.5), **options)


def errors(center: float, sides: Sequence[float] | None) -> list[list[float]] | None:
    """An interval as matplotlib's error bars want it, below and above `center`."""
    return None if sides is None else [[max(center - sides[0], 0.0)], [max(sides[1] - center, 0.0)]]


def bar_places(group: float, count: int) -> tuple[list[float], float]:
    """Middles of the `count` bars of a group, and their width with the gap between two."""
    width = GROUP / count
    return [group - GROUP / 2 + (i + 0.5) * width for i in range(count)], width


def unresolved_group(ax: Axes, group: float) -> None:
    """Says in the place of a group of bars that the sample cannot resolve them."""
    ax.axvspan(group - 0.47, group + 0.47, color=GRID.light, alpha=0.6, linewidth=0, zorder=0)
    ax.text(group, 0.5, "unresolved", rotation=90, ha="center", va="center", fontsize=9, color=MUTED.light)


def rate_axes(ax: Axes, names: Sequence[str], title: str, xlabel: str = "False positive rate") -> None:
    """Axes of true positive rates, a group of bars for each false positive rate."""
    ax.set_xticks(range(len(names)), names)
    ax.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, 1.02), xlabel=xlabel, ylabel="True positive rate")
    ax.set_title(title, loc="left")
    ax.grid(True, axis="y")


def chart_name(name: str) -> str:
    """A model's name as a chart has room for it: its middle left out where long, and `$` as a sign, not as formula."""
    short = name if len(name) <= 22 else f"{name[:9]}…{name[-12:]}"
    return short.replace("$", r"\$")
