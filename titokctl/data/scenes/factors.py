"""The factors of a rendered scene, and how they are drawn.

A scene is a pure function of (seed, index). Scene `index` has class `index` modulo the number of classes, so that every
stretch of scenes is balanced; all other factors are uniform within their ranges and independent of each other. The
ranges are symmetric: the mirror image of a scene is as likely as the scene.

Coordinates: x to the right, y away from the camera, z up; the floor is z = 0. Lengths are in units of a usual solid's
radius, angles in radians, colours are sRGB in [0, 1].
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from titokctl.data.order import uniform

SHAPES = ("ball", "cone", "cube", "cylinder", "ring")
COLOURS = {
    "blue": (0.13, 0.30, 0.85),
    "cyan": (0.15, 0.75, 0.80),
    "green": (0.18, 0.62, 0.20),
    "purple": (0.58, 0.20, 0.75),
    "red": (0.85, 0.14, 0.12),
    "yellow": (0.95, 0.78, 0.12),
}
CLASS_NAMES = [f"{colour}-{shape}" for colour in COLOURS for shape in SHAPES]  # sorted
# Numbers of each class, (C,) int64, by the name of the attribute.
CLASS_ATTRIBUTES = {
    "colour": np.array([colour for colour in range(len(COLOURS)) for _ in SHAPES]),
    "shape": np.array([shape for _ in COLOURS for shape in range(len(SHAPES))]),
}
_USE = 0x5CE  # so that no other use of `uniform` with the same seed draws these numbers

# name: lowest, highest
_RANGES = {
    "size": (0.9, 1.1),  # radius of the sphere around the solid
    "x": (-0.5, 0.5),
    "y": (-0.4, 0.4),
    "spin": (0.0, 2 * math.pi),
    "camera_height": (1.8, 2.8),
    "camera_distance": (4.1, 4.8),  # along the floor, to the middle of it
    "light_side": (-1.0, 1.0),
    "light_elevation": (0.65, 1.05),
    "shade": (-0.06, 0.06),  # added to the solid's colour
    "floor_hue": (0.0, 1.0),
    "floor_saturation": (0.05, 0.35),
    "floor_value": (0.45, 0.82),
    "wall_hue": (0.0, 1.0),
    "wall_saturation": (0.05, 0.40),
    "wall_value": (0.45, 0.85),
}
_LIGHT_AZIMUTH = (0.55, 1.15)  # from the direction to the camera, on either side


@dataclass(frozen=True)
class Scene:
    """One scene: its class, and the numbers that the renderer needs."""

    shape: str
    colour: str
    label: int
    size: float
    x: float
    y: float
    spin: float
    camera_height: float
    camera_distance: float
    light_azimuth: float
    light_elevation: float
    solid_rgb: tuple[float, float, float]
    floor_rgb: tuple[float, float, float]
    wall_rgb: tuple[float, float, float]

    @property
    def class_name(self) -> str:
        """The colour and the shape, such as "red-ball"."""
        return CLASS_NAMES[self.label]

    def record(self) -> dict[str, Any]:
        """Return the factors as JSON values, numbers rounded to five digits."""
        named = {"label": self.label, "class_name": self.class_name} | vars(self)
        return {name: _rounded(value) for name, value in named.items()}


def scene(seed: int, index: int) -> Scene:
    """Return the scene `index` of the endless set `seed`."""
    label = index % len(CLASS_NAMES)
    colour, shape = CLASS_NAMES[label].split("-")
    drawn = _drawn(seed, index)
    side = drawn.pop("light_side")
    low, high = _LIGHT_AZIMUTH
    azimuth = math.copysign(low + (high - low) * abs(side), side)
    shade = drawn.pop("shade")
    red, green, blue = (min(max(c + shade, 0.0), 1.0) for c in COLOURS[colour])
    floor = _rgb(*(drawn.pop(f"floor_{part}") for part in ("hue", "saturation", "value")))
    wall = _rgb(*(drawn.pop(f"wall_{part}") for part in ("hue", "saturation", "value")))
    return Scene(
        shape, colour, label, light_azimuth=azimuth, solid_rgb=(red, green, blue), floor_rgb=floor, wall_rgb=wall,
        **drawn,
    )  # fmt: skip


def _drawn(seed: int, index: int) -> dict[str, float]:
    fractions = uniform(seed, _USE, np.arange(len(_RANGES)), np.full(len(_RANGES), index))
    spans = zip(_RANGES.items(), fractions.tolist(), strict=True)
    return {name: low + (high - low) * fraction for (name, (low, high)), fraction in spans}


def _rgb(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    """Return the RGB of a colour in HSV, all in [0, 1]."""
    red, green, blue = (
        value * (1 - saturation * min(max(2 - abs((6 * hue + shift) % 6 - 3), 0.0), 1.0)) for shift in (3, 5, 1)
    )
    return red, green, blue


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [round(v, 5) for v in value]
    return round(value, 5) if isinstance(value, float) else value
