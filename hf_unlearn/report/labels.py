# SPDX-License-Identifier: Apache-2.0
"""Names beside the points of a scatter, without covering each other."""

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from matplotlib.axes import Axes


# Offsets in points, the nearest first; text starts there, ends there or is centred on it.
PLACES = [
    (9, 10, "left"), (9, -10, "left"), (-9, 10, "right"), (-9, -10, "right"),
    (12, 0, "left"), (-12, 0, "right"), (0, 15, "center"), (0, -15, "center"),
    (30, 22, "left"), (30, -22, "left"), (38, 0, "left"), (30, 38, "left"), (30, -38, "left"),
    (-30, 24, "right"), (-30, -24, "right"), (30, 54, "left"), (30, -54, "left"), (60, 30, "left"), (60, -30, "left"),
    (60, -70, "left"), (60, -86, "left"), (60, -102, "left"),
]  # fmt: skip
LEADER_FROM = 20


def place_labels(ax: "Axes", points: list[tuple[str, float, float, str]], segments: list[tuple]) -> None:
    """Writes each name where it covers no marker, no other name and stays inside; far ones get a line to their point.

    Args:
        ax (`Axes`): limits must be final.
        points (`list[tuple]`): name, x and y in data units, colour.
        segments (`list[tuple]`): ends `(x0, y0)` and `(x1, y1)` of horizontal and vertical lines to keep clear of.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(ax.figure).get_renderer()
    pixels = ax.figure.dpi / 72
    centers = ax.transData.transform([(x, y) for _, x, y, _ in points])
    taken = [Bbox.from_bounds(x - 7 * pixels, y - 7 * pixels, 14 * pixels, 14 * pixels) for x, y in centers]
    for ends in segments:
        (x0, y0), (x1, y1) = ax.transData.transform(ends)
        taken.append(Bbox.from_extents(x0 - pixels, y0 - pixels, x1 + pixels, y1 + pixels))
    frame = ax.get_window_extent(renderer)
    for name, x, y, color in points:
        best = None
        for dx, dy, align in PLACES:
            text = ax.annotate(
                name,
                (x, y),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=align,
                va="center",
                color=color,
                fontweight="bold",
                zorder=6,
                arrowprops=_leader(dx, dy, color),
            )
            box = text.get_window_extent(renderer) if text.arrow_patch is None else _text_box(text, renderer)
            cost = sum(_overlap(box, other) for other in taken) + 4 * _outside(box, frame)
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
            else:
                text.remove()
            if cost == 0:
                break
        taken.append(best[2])


def _leader(dx: float, dy: float, color: str) -> dict | None:
    if max(abs(dx), abs(dy)) < LEADER_FROM:
        return None
    return {"arrowstyle": "-", "color": color, "linewidth": 0.9, "alpha": 0.7, "shrinkA": 1, "shrinkB": 6}


def _text_box(text, renderer):
    """Extent of the words alone: an annotation's own includes the line to its point."""
    from matplotlib.text import Text

    text.update_positions(renderer)
    return Text.get_window_extent(text, renderer)


def _overlap(one, other) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(width, 0.0) * max(height, 0.0)


def _outside(box, frame) -> float:
    return box.width * box.height - _overlap(box, frame)
