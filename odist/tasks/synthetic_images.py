"""An endless stream of images of ten classes: five shapes, each striped or checked, on a textured ground.

Image r is a pure function of (data.seed, split, r), so any image of any split can be asked for in any order, nothing is
stored and no two streams overlap. Hue, place, size, turn and ground tell nothing about the class, so a network has to
find form and pattern; that the shape is lighter than its ground lets a small one do so in some hundred steps.
"""

from __future__ import annotations

import math

import numpy as np

from odist.config.schema import SyntheticImagesConfig
from odist.rng import derive, uniform

SHAPES = ("disc", "square", "triangle", "ring", "cross")
PATTERNS = ("striped", "checked")
CLASSES = tuple(f"{pattern} {shape}" for pattern in PATTERNS for shape in SHAPES)
DRAWS = 32  # random numbers of an image; 24 are used
LIGHT, DARK = (0.6, 1.0), (0.0, 0.4)  # mean colours of shapes and of grounds, where 0 is black and 1 white


class SyntheticImages:
    """A generator of labelled images.

    config: contrast and noise; seed: `data.seed`, fixes all images; size: pixels a side
    """

    def __init__(self, config: SyntheticImagesConfig, *, seed: int, size: int) -> None:
        self.config = config
        self.seed = seed
        self.size = size
        places = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / size) - 1
        self._y, self._x = np.meshgrid(places, places, indexing="ij")  # [-1, 1]

    def _draws(self, ids: np.ndarray, split: str) -> np.ndarray:
        cells = ids.astype(np.uint64)[:, None] * np.uint64(DRAWS) + np.arange(DRAWS, dtype=np.uint64)
        return uniform(cells, key=derive(self.seed, f"images {split}"))

    def labels(self, ids: np.ndarray, split: str) -> np.ndarray:
        """Classes of images, int64 [n], places in CLASSES, all equally frequent."""
        return self._classes(self._draws(ids, split))

    def images(self, ids: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Images of a split.

        ids: int64 [n]. Returns float32 [n, 3, size, size], of about zero mean and unit variance, and classes int64 [n]
        """
        draws = self._draws(ids, split)
        classes = self._classes(draws)
        pattern, shape = np.divmod(classes, len(SHAPES))
        draw = draws.astype(np.float32)[:, :, None, None]
        ground = self._textured(draw[:, 1:10], DARK, checked=draws[:, 10] < 0.5)
        image = self._textured(draw[:, 11:20], LIGHT, checked=pattern == 1)
        inside = self._inside(draw[:, 20:24], shape)
        image = np.where(inside[:, None], image, ground)
        if self.config.noise:
            image += self._noise(ids, split)
        return (image - np.float32(0.5)) * np.float32(4), classes

    def _classes(self, draws: np.ndarray) -> np.ndarray:
        return np.floor(draws[:, 0] * len(CLASSES)).astype(np.int64)

    def _textured(self, draw: np.ndarray, colours: tuple[float, float], *, checked: np.ndarray) -> np.ndarray:
        """Stripes or checks in two colours, float32 [n, 3, size, size].

        draw: [n, 9, 1, 1]: mean colour (3), difference (3), turn, width, phase; colours: range of the first three
        checked: bool [n]
        """
        low, high = (np.float32(end) for end in colours)
        colour = low + (high - low) * draw[:, :3]
        difference = (draw[:, 3:6] - np.float32(0.5)) * np.float32(self.config.contrast)
        turn, width, phase = (draw[:, at] for at in (6, 7, 8))
        waves = np.float32(math.pi) * (2 + 2 * width)  # half periods of 1/4 to 1/8 of the image
        along, across = self._turned(turn)
        sign = np.sin(waves * along + np.float32(2 * math.pi) * phase) > 0
        other = np.sin(waves * across + np.float32(4 * math.pi) * phase) > 0
        sign = np.where(checked[:, None, None], sign ^ other, sign)
        return np.where(sign[:, None], colour + difference, colour - difference)

    def _inside(self, draw: np.ndarray, shape: np.ndarray) -> np.ndarray:
        """Which pixels the shape covers, bool [n, size, size].

        draw: [n, 4, 1, 1]: place (2), size, turn; shape: int64 [n], places in SHAPES
        """
        right, down, size, turn = (draw[:, at] for at in range(4))
        radius = np.float32(0.45) + np.float32(0.35) * size
        u, v = self._turned(turn, right=(right - np.float32(0.5)) / 2, down=(down - np.float32(0.5)) / 2)
        u, v = u / radius, v / radius
        covered = np.empty(u.shape, dtype=bool)
        for number in range(len(SHAPES)):
            own = shape == number
            covered[own] = _covers(SHAPES[number], u[own], v[own])
        return covered

    def _turned(
        self, turn: np.ndarray, *, right: np.ndarray | float = 0.0, down: np.ndarray | float = 0.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates [n, size, size] along two turned axes through a place; turn: [n, 1, 1], 1 is a whole turn."""
        angle = np.float32(2 * math.pi) * turn
        x, y = self._x - right, self._y - down
        return np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x

    def _noise(self, ids: np.ndarray, split: str) -> np.ndarray:
        """Uniform noise of the configured standard deviation, float32 [n, 3, size, size]."""
        count = 3 * self.size**2
        cells = ids.astype(np.uint64)[:, None] * np.uint64(count) + np.arange(count, dtype=np.uint64)
        drawn = uniform(cells, key=derive(self.seed, f"noise {split}")).astype(np.float32) - np.float32(0.5)
        return drawn.reshape(-1, 3, self.size, self.size) * np.float32(math.sqrt(12) * self.config.noise)


def _covers(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether a shape of radius 1 about 0 covers the places (u, v); all have about the same area."""
    if shape == "disc":
        return u**2 + v**2 < 0.72
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) < 0.75
    if shape == "triangle":
        return np.maximum(0.866 * np.abs(u) - 0.5 * v, v) < 0.66
    if shape == "ring":
        return np.abs(np.sqrt(u**2 + v**2) - 0.78) < 0.27
    near, far = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return (near < 0.31) & (far < 1.0)
