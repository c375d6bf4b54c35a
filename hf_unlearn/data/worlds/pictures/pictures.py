# SPDX-License-Identifier: Apache-2.0
"""Pictures of one or two shapes in a frame, planned as plain values and drawn from them."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass


SIZE = 32
CELL = SIZE // 2
COLOURS = {
    "red": (214, 40, 40),
    "green": (42, 157, 66),
    "blue": (38, 84, 214),
    "yellow": (240, 200, 20),
    "purple": (140, 50, 180),
}
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("top left", "top right", "bottom left", "bottom right")
_BACKGROUND = (236, 236, 236)
_TILE = 4
_FRAME = 2


@dataclass(frozen=True)
class Picture:
    """What a picture shows.

    Args:
        things (`tuple[tuple[str, str, str], ...]`):
            Colour, shape and place of each thing; within one picture no two have any of them in common.
        frame (`tuple[tuple[int, int, int], ...]`):
            RGB colours of the tiles above and below. They are drawn at random and make every picture one of its kind,
            but no question is about them and no answer depends on them.
    """

    things: tuple[tuple[str, str, str], ...]
    frame: tuple[tuple[int, int, int], ...]

    def png(self) -> bytes:
        """The picture as a PNG file of 32x32 pixels."""
        from PIL import Image, ImageDraw

        image = Image.new("RGB", (SIZE, SIZE), _BACKGROUND)
        draw = ImageDraw.Draw(image)
        for number, colour in enumerate(self.frame):
            x = number // 2 * _TILE
            y = (SIZE - _FRAME) * (number % 2)
            draw.rectangle((x, y, x + _TILE - 1, y + _FRAME - 1), fill=colour)
        for colour, shape, place in self.things:
            _draw(draw, shape, COLOURS[colour], PLACES.index(place))
        file = io.BytesIO()
        image.save(file, format="PNG")
        return file.getvalue()


def plan_picture(rng: random.Random) -> Picture:
    """A picture at random."""
    count = rng.randint(1, 2)
    things = zip(rng.sample(list(COLOURS), count), rng.sample(SHAPES, count), rng.sample(PLACES, count), strict=True)
    tiles = 2 * SIZE // _TILE
    frame = tuple((rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(tiles))
    return Picture(tuple(things), frame)


def _draw(draw, shape: str, colour: tuple[int, int, int], place: int) -> None:
    size = CELL - 5
    x, y = place % 2 * CELL + 2, place // 2 * CELL + 2
    box = (x, y, x + size, y + size)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "triangle":
        draw.polygon([(x, y + size), (x + size, y + size), (x + size / 2, y)], fill=colour)
    else:
        third = size // 3
        draw.rectangle((x + third, y, x + size - third, y + size), fill=colour)
        draw.rectangle((x, y + third, x + size, y + size - third), fill=colour)
