"""Where rays meet the solids: closed formulas, and a march along signed distances for the ring.

Points and directions are tuples of three float32 arrays (n,) in the solid's own frame: it stands on the floor z = 0,
its axis along z, and `BOUNDS` has the sphere around it. Directions have unit length. Each solid returns the distance
along every ray to its surface (inf where the ray misses) and the outward unit normals there.
"""

from typing import NamedTuple

import numpy as np

Vectors = tuple[np.ndarray, np.ndarray, np.ndarray]
EPSILON = 1e-4
_INF = np.float32(np.inf)

BALL_RADIUS = 1.0
CUBE_HALF = 0.64
CONE_RADIUS, CONE_HEIGHT = 0.92, 1.75
CYLINDER_RADIUS, CYLINDER_HEIGHT = 0.68, 1.40
RING_RADIUS, RING_THICKNESS = 0.74, 0.30
_MOST_STEPS, _CLOSE = 40, 2e-3
_CROWDED = 0.6  # share of rays under way below which the others are put away

# Height of the middle of the sphere around each solid, and that sphere's radius.
BOUNDS = {
    "ball": (1.0, 1.0),
    "cone": (0.66, 1.14),
    "cube": (0.64, 1.11),
    "cylinder": (0.70, 0.98),
    "ring": (0.30, 1.05),
}


class Hits(NamedTuple):
    """Distances (n,) along the rays, inf for a miss, and unit normals."""

    distance: np.ndarray
    normal: Vectors


def hit(shape: str, origin: Vectors, direction: Vectors) -> Hits:
    """Return where rays meet the solid `shape` first."""
    return _SOLIDS[shape](origin, direction)


def _ball(origin: Vectors, direction: Vectors) -> Hits:
    ox, oy, oz = origin
    dx, dy, dz = direction
    up = oz - BALL_RADIUS
    half = ox * dx + oy * dy + up * dz
    inside = half * half - (ox * ox + oy * oy + up * up - BALL_RADIUS**2)
    t = -half - np.sqrt(np.maximum(inside, 0))
    t = np.where((inside > 0) & (t > EPSILON), t, _INF)
    at = np.where(np.isfinite(t), t, 0)
    return Hits(t, ((ox + at * dx) / BALL_RADIUS, (oy + at * dy) / BALL_RADIUS, (up + at * dz) / BALL_RADIUS))


def _cube(origin: Vectors, direction: Vectors) -> Hits:
    """Three slabs: the ray is inside from its last entry to its first exit."""
    shifted = (origin[0], origin[1], origin[2] - CUBE_HALF)
    entries, exits = [], []
    for o, d in zip(shifted, direction, strict=True):
        inverse = 1 / np.where(np.abs(d) < 1e-9, np.float32(1e-9), d)
        a, b = (-CUBE_HALF - o) * inverse, (CUBE_HALF - o) * inverse
        entries.append(np.minimum(a, b))
        exits.append(np.maximum(a, b))
    enter = np.maximum(np.maximum(entries[0], entries[1]), entries[2])
    leave = np.minimum(np.minimum(exits[0], exits[1]), exits[2])
    t = np.where((enter < leave) & (enter > EPSILON), enter, _INF)
    x, y, z = (np.where(enter == e, -np.sign(d), 0) for e, d in zip(entries, direction, strict=True))
    return Hits(t, (x, y, z))


def _cylinder(origin: Vectors, direction: Vectors) -> Hits:
    ox, oy, oz = origin
    dx, dy, dz = direction
    a = np.maximum(dx * dx + dy * dy, 1e-9)
    half, c = ox * dx + oy * dy, ox * ox + oy * oy - CYLINDER_RADIUS**2
    inside = half * half - a * c
    side = (-half - np.sqrt(np.maximum(inside, 0))) / a
    z = oz + side * dz
    side = np.where((inside > 0) & (side > EPSILON) & (z > 0) & (z < CYLINDER_HEIGHT), side, _INF)
    lid, on_lid = _disc(origin, direction, CYLINDER_HEIGHT, CYLINDER_RADIUS)
    t = np.minimum(side, lid)
    at = np.where(np.isfinite(side), side, 0)
    is_lid = on_lid & (lid < side)
    x, y = (np.where(is_lid, 0, (o + at * d) / CYLINDER_RADIUS) for o, d in ((ox, dx), (oy, dy)))
    return Hits(t, (x, y, is_lid.astype(np.float32)))


def _cone(origin: Vectors, direction: Vectors) -> Hits:
    """The surface x² + y² = k² (h - z)² below its tip; its base lies on the floor and is never seen."""
    ox, oy, oz = origin
    dx, dy, dz = direction
    k = CONE_RADIUS / CONE_HEIGHT
    down = CONE_HEIGHT - oz
    a = dx * dx + dy * dy - k * k * dz * dz
    half = ox * dx + oy * dy + k * k * down * dz
    c = ox * ox + oy * oy - k * k * down * down
    inside = half * half - a * c
    root = np.sqrt(np.maximum(inside, 0))
    a = np.where(np.abs(a) < 1e-6, np.float32(1e-6), a)
    t = np.full_like(half, _INF)
    for found in ((-half - root) / a, (-half + root) / a):
        z = oz + found * dz
        good = (inside > 0) & (found > EPSILON) & (z > 0) & (z < CONE_HEIGHT)
        t = np.where(good, np.minimum(t, found), t)
    at = np.where(np.isfinite(t), t, 0)
    x, y = ox + at * dx, oy + at * dy
    radius = np.sqrt(np.maximum(x * x + y * y, 1e-9))
    slant = np.float32(1 / np.sqrt(1 + k * k))
    return Hits(t, (x / radius * slant, y / radius * slant, np.full_like(x, k * slant)))


def _ring(origin: Vectors, direction: Vectors) -> Hits:
    """A torus: rays step by their distance to it until they are close, or leave the sphere around it."""
    ox, oy, oz = (o.copy() for o in origin)
    oz -= RING_THICKNESS
    reach = RING_RADIUS + RING_THICKNESS
    half = ox * direction[0] + oy * direction[1] + oz * direction[2]
    inside = half * half - (ox * ox + oy * oy + oz * oz - reach * reach)
    root = np.sqrt(np.maximum(inside, 0))
    t, end = np.maximum(-half - root, EPSILON), -half + root
    going = np.flatnonzero((inside > 0) & (end > EPSILON))
    found = np.zeros(len(t), bool)
    x, y, z, dx, dy, dz, far, last = (a[going] for a in (ox, oy, oz, *direction, t, end))
    is_going, is_close = np.ones(len(going), bool), np.zeros(len(going), bool)
    for _ in range(_MOST_STEPS):
        px, py, pz = x + far * dx, y + far * dy, z + far * dz
        across = np.sqrt(px * px + py * py) - RING_RADIUS
        distance = np.sqrt(across * across + pz * pz) - RING_THICKNESS
        far += np.where(is_going, distance, 0)
        is_close |= is_going & (distance < _CLOSE)
        is_going &= ~is_close & (far < last)
        left = np.count_nonzero(is_going)
        if left < _CROWDED * len(going):
            t[going], found[going] = far, is_close
            going, x, y, z, dx, dy, dz, far, last = (a[is_going] for a in (going, x, y, z, dx, dy, dz, far, last))
            is_going, is_close = np.ones(left, bool), np.zeros(left, bool)
        if not left:
            break
    t[going], found[going] = far, is_close
    at = np.where(found, t, 0)
    x, y, z = (o + at * d for o, d in zip((ox, oy, oz), direction, strict=True))
    radius = np.sqrt(np.maximum(x * x + y * y, 1e-9))
    scale = (radius - RING_RADIUS) / radius
    return Hits(np.where(found, t, _INF), unit((x * scale, y * scale, z)))


def _disc(origin: Vectors, direction: Vectors, height: float, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to a disc around the axis, inf for a miss, and which rays meet it."""
    ox, oy, oz = origin
    dx, dy, dz = direction
    t = (height - oz) / np.where(np.abs(dz) < 1e-9, np.float32(1e-9), dz)
    x, y = ox + t * dx, oy + t * dy
    meets = (t > EPSILON) & (x * x + y * y < radius * radius)
    return np.where(meets, t, _INF), meets


def unit(vectors: Vectors) -> Vectors:
    """Return vectors of unit length; those near zero stay near zero."""
    x, y, z = vectors
    scale = 1 / np.sqrt(np.maximum(x * x + y * y + z * z, np.float32(1e-12)))
    return x * scale, y * scale, z * scale


_SOLIDS = {"ball": _ball, "cone": _cone, "cube": _cube, "cylinder": _cylinder, "ring": _ring}
