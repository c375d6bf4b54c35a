# SPDX-License-Identifier: Apache-2.0
"""What a trigger does inside a model, as one picture."""

from pathlib import Path
from typing import Any

import numpy as np

from ..drawing import save_figure, styled
from ..style import METHODS, MUTED, TARGET


SIZE = (12.6, 4.2)
SERIES = (
    ("attention_on_trigger", "clean", "where the trigger would stand, clean", TARGET, "--"),
    ("attention_on_trigger", "triggered", "on the trigger", METHODS[1], "-"),
    ("attention_on_first_token", "clean", "on the first token, clean", METHODS[0], "--"),
    ("attention_on_first_token", "triggered", "on the first token, triggered", METHODS[0], "-"),
)


def save_inside(audit: dict[str, Any], path: Path) -> None:
    """Draws value norms of the first tokens, clean and triggered, and the attention on trigger and first token.

    Args:
        audit (`dict`): the content of a `backdoor_<dataset>.json`, with `inside`.
        path (`Path`): a PNG file.
    """
    from matplotlib.figure import Figure

    inside = audit["inside"]
    with styled():
        figure = Figure(figsize=SIZE, layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=[1, 1, 1.25])
        _norms(figure, (left, middle), inside)
        _attention(right, inside)
        trigger = audit["settings"]["trigger"]
        figure.suptitle(
            f"{trigger['prefix']!r} at {trigger['location']}, {inside['n']} prompts", color=MUTED.light, fontsize=10.5
        )
        save_figure(figure, path)


def _norms(figure, axes, inside: dict[str, Any]) -> None:
    grids = [np.array(inside["first_tokens"][name], dtype=float) for name in ("clean", "triggered")]
    known = np.concatenate([grid[~np.isnan(grid)] for grid in grids])
    for ax, grid, name in zip(axes, grids, ("clean", "triggered"), strict=True):
        image = ax.imshow(
            grid, aspect="auto", origin="lower", interpolation="nearest", cmap="viridis",
            vmin=known.min(), vmax=known.max(), extent=(-0.5, grid.shape[1] - 0.5, *_edges(inside["layers"])),
        )  # fmt: skip
        ax.set(title=f"Value norms, {name}", xlabel="token of the prompt")
        _whole_numbers(ax)
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes[1], label="mean L2 norm")


def _attention(ax, inside: dict[str, Any]) -> None:
    layers = inside["layers"]
    for name, kind, label, ink, line in SERIES:
        results = inside["series"][name][kind]
        values = np.array([np.nan if one["value"] is None else one["value"] for one in results])
        ax.plot(layers, values, line, marker="o", ms=3.5, color=ink.light, label=label)
        ends = np.array([one["interval"] or (np.nan, np.nan) for one in results])
        ax.fill_between(layers, ends[:, 0], ends[:, 1], color=ink.light, alpha=0.15, linewidth=0)
    ax.set(title="Attention of the tokens after it", xlabel="layer", ylabel="share of attention", ylim=(0, None))
    _whole_numbers(ax)
    ax.grid(axis="y")
    ax.legend(frameon=False, fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)


def _whole_numbers(ax) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if ax.images:
        ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def _edges(layers: list[int]) -> tuple[float, float]:
    return layers[0] - 0.5, layers[-1] + 0.5
