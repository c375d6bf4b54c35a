# SPDX-License-Identifier: Apache-2.0
"""One look per model, the same in every chart, table and text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Ink:
    """A colour with a name in the page's style sheet, on light and on dark ground."""

    variable: str
    light: str
    dark: str


# Charts are drawn in the light colours; in the page each becomes its variable, so no two light colours may be equal.
TEXT = Ink("--ink", "#1d2129", "#e8ebf1")
MUTED = Ink("--muted", "#5d6675", "#a2abba")
GRID = Ink("--grid", "#dfe3e9", "#2c323d")
PAGE = Ink("--card", "#ffffff", "#181c24")
IDEAL = Ink("--ideal", "#0d9f78", "#35d3a8")

TARGET = Ink("--model-target", "#59606e", "#a9b1bf")
RETRAINED = Ink("--model-retrained", "#008f6b", "#2bd0a0")
# Chosen to stay apart under deuteranopia and protanopia; the marker tells models apart where colour does not.
METHODS = (
    Ink("--model-1", "#005fb8", "#4ea3f5"),
    Ink("--model-2", "#c8400a", "#ff6a33"),
    Ink("--model-3", "#c65fb4", "#f29be6"),
    Ink("--model-4", "#d09400", "#fbd34d"),
    Ink("--model-5", "#6b3413", "#b98a66"),
)
INKS = (TEXT, MUTED, GRID, PAGE, IDEAL, TARGET, RETRAINED, *METHODS)


@dataclass(frozen=True)
class Marker:
    """A shape: as matplotlib names it, as a character, and as an SVG path in a box from -6 to 6."""

    matplotlib: str
    glyph: str
    path: str


CIRCLE = Marker("o", "●", "M-4.6,0a4.6,4.6 0 1 0 9.2,0a4.6,4.6 0 1 0 -9.2,0z")
STAR = Marker("*", "★", "M0,-6L1.5,-2 5.7,-1.9 2.4,0.8 3.5,4.9 0,2.5 -3.5,4.9 -2.4,0.8 -5.7,-1.9 -1.5,-2z")
SHAPES = (
    Marker("s", "■", "M-4.2,-4.2H4.2V4.2H-4.2z"),
    Marker("^", "▲", "M0,-5L5,4.2H-5z"),
    Marker("D", "◆", "M0,-5.6L5.6,0 0,5.6 -5.6,0z"),
    Marker("v", "▼", "M0,5L5,-4.2H-5z"),
    Marker("P", "✚", "M-1.9,-5.4H1.9V-1.9H5.4V1.9H1.9V5.4H-1.9V1.9H-5.4V-1.9H-1.9z"),
    Marker("X", "✖", "M-3,-5.5L0,-2.5 3,-5.5 5.5,-3 2.5,0 5.5,3 3,5.5 0,2.5 -3,5.5 -5.5,3 -2.5,0 -5.5,-3z"),
    Marker("p", "⬟", "M0,-5.4L5.3,-1.6 3.3,4.6H-3.3L-5.3,-1.6z"),
    Marker("h", "⬢", "M0,-5.6L4.9,-2.8V2.8L0,5.6 -4.9,2.8V-2.8z"),
)
LINES = ("solid", "dashed", "dashdot", (0, (2.2, 0.9)), (0, (6, 1.5, 1, 1.5, 1, 1.5)))


@dataclass(frozen=True)
class Look:
    """How one model is drawn."""

    ink: Ink
    marker: Marker
    line: str | tuple


def looks(report: dict) -> dict[str, Look]:
    """One [`Look`] per model name: fixed for target and retrained, by order for the unlearned ones."""
    result, count = {}, 0
    for model in report["models"]:
        if model["kind"] == "target":
            result[model["name"]] = Look(TARGET, CIRCLE, "solid")
        elif model["kind"] == "retrained":
            result[model["name"]] = Look(RETRAINED, STAR, "solid")
        else:
            ink = METHODS[count % len(METHODS)]
            result[model["name"]] = Look(ink, SHAPES[count % len(SHAPES)], LINES[count % len(LINES)])
            count += 1
    return result
