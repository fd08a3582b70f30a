"""Pictures of scenes: one primary ray per sample, a lamp of some size, a soft shadow, a highlight.

All arrays are float32, so that a picture takes milliseconds; their last bits may differ between processors, and with
them now and then a pixel by one level. Letters: S edge in pixels, n rays (S samples)², m rays that meet something.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from titokctl.data.scenes.factors import Scene
from titokctl.data.scenes.solids import BOUNDS, Hits, Vectors, hit, unit

Origin = tuple[float, float, float] | Vectors  # of all rays, or of each

_FOCAL = 2.7  # distance of the picture's plane, in halves of its edge
_LOOKS_AT = 0.7  # height of the point in the middle of the picture
_WALL = 2.6  # y of the wall
_LAMP_DISTANCE, _LAMP_RADIUS, _LAMP_POINTS = 7.0, 0.75, 4
_AMBIENT, _DIFFUSE = 0.34, 0.68
_HIGHLIGHT, _SHININESS = 0.45, 45
_CONTACT = 0.45  # darkening of the floor near the solid
_GAMMA = 2.2
_LEVELS = 4096
_TO_BYTES = np.round(255 * (np.arange(_LEVELS) / (_LEVELS - 1)) ** (1 / _GAMMA)).astype(np.uint8)


class _View(NamedTuple):
    """Rays from the camera: its position, and directions (n,) of unit length."""

    origin: tuple[float, float, float]
    direction: Vectors


class _Placed(NamedTuple):
    """The solid in the scene: its frame's rotation, and the sphere around it."""

    scene: Scene
    cosine: float
    sine: float
    middle: tuple[float, float, float]
    radius: float


def render(scene: Scene, size: int = 64, samples: int = 2) -> np.ndarray:
    """Return the picture of a scene, (S, S, 3) uint8 sRGB.

    Args:
        size: edge S in pixels.
        samples: each pixel is the mean of `samples` x `samples` rays.
    """
    view, solid = _view(scene, size * samples), _placed(scene)
    distance, normal, is_solid = _surfaces(view, solid)
    points = _along(view.origin, view.direction, distance)
    diffuse, highlight = _light(scene, solid, points, normal, is_solid, size, samples)
    albedo = _linear(np.array([scene.floor_rgb, scene.wall_rgb, scene.solid_rgb], np.float32))
    kind = np.where(is_solid, 2, (normal[1] < -0.5).astype(np.int8))
    planes = [_means(albedo[:, channel][kind] * diffuse + highlight, size, samples) for channel in range(3)]
    means = np.stack(planes, axis=-1)
    return _TO_BYTES[np.clip(means * (_LEVELS - 1) + 0.5, 0, _LEVELS - 1).astype(np.int32)]


def _means(values: np.ndarray, size: int, samples: int) -> np.ndarray:
    """Return the mean over the rays of each pixel, (n,) to (S, S)."""
    tiles = values.reshape(size, samples, size, samples)
    total = np.zeros((size, size), np.float32)
    for row in range(samples):
        for column in range(samples):
            total += tiles[:, row, :, column]
    return total / np.float32(samples * samples)


def _view(scene: Scene, edge: int) -> _View:
    """Return the camera of a scene, which looks along y and down at the middle of the floor."""
    rise = scene.camera_height - _LOOKS_AT
    length = float(np.hypot(rise, scene.camera_distance))
    ahead, down = scene.camera_distance / length, rise / length
    across, upwards, scale = _plane(edge)
    # The vector up in the picture's plane is (0, down, ahead); the one to its middle (0, ahead, -down) x _FOCAL.
    y, z = upwards * down + _FOCAL * ahead, upwards * ahead - _FOCAL * down
    return _View((0.0, -scene.camera_distance, scene.camera_height), (across * scale, y * scale, z * scale))


@lru_cache(maxsize=8)
def _plane(edge: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return places of all rays on the picture's plane, in [-1, 1], and 1 / length of the vectors there; all (n,)."""
    places = ((np.arange(edge, dtype=np.float32) + 0.5) * 2 / edge - 1).astype(np.float32)
    across, upwards = (a.ravel() for a in np.meshgrid(places, -places))
    return across, upwards, (1 / np.sqrt(across**2 + upwards**2 + np.float32(_FOCAL**2))).astype(np.float32)


def _placed(scene: Scene) -> _Placed:
    height, radius = BOUNDS[scene.shape]
    middle = (scene.x, scene.y, height * scene.size)
    return _Placed(scene, float(np.cos(scene.spin)), float(np.sin(scene.spin)), middle, radius * scene.size)


def _surfaces(view: _View, solid: _Placed) -> tuple[np.ndarray, Vectors, np.ndarray]:
    """Return distances (n,) along the rays to what they meet first, normals there, and which rays meet the solid."""
    (_, oy, oz), (_, dy, dz) = view.origin, view.direction
    to_wall = (_WALL - oy) / dy
    is_wall = oz + to_wall * dz > 0
    distance = np.where(is_wall, to_wall, -oz / np.where(is_wall, -1, dz))
    zero = np.zeros_like(distance)
    normal = (zero, -is_wall.astype(np.float32), (~is_wall).astype(np.float32))
    near = _near(solid, view.origin, view.direction, np.float32(0))
    dx, dy, dz = view.direction
    hits = _hit(solid, view.origin, (dx[near], dy[near], dz[near]))
    met = np.isfinite(hits.distance)
    rays = near[met]
    distance[rays] = hits.distance[met]
    for axis, ours in zip(normal, hits.normal, strict=True):
        axis[rays] = ours[met]
    is_solid = np.zeros(len(distance), bool)
    is_solid[rays] = True
    return distance, normal, is_solid


def _near(solid: _Placed, origin: Origin, direction: Vectors, widening: np.ndarray | np.float32) -> np.ndarray:
    """Return the rays, (m,) indices, that come within the sphere around the solid, `widening` (n,) larger."""
    places = (np.asarray(o, np.float32) for o in origin)
    x, y, z = (np.float32(m) - o for m, o in zip(solid.middle, places, strict=True))
    ahead = x * direction[0] + y * direction[1] + z * direction[2]
    square = x * x + y * y + z * z - ahead * ahead
    reach = solid.radius + widening
    return np.flatnonzero((square < reach * reach) & (ahead > 0))


def _hit(solid: _Placed, origin: Origin, direction: Vectors) -> Hits:
    """Return the hits of rays of the scene with the solid, distances and normals in the scene's frame."""
    scene, c, s = solid.scene, solid.cosine, solid.sine
    inverse = np.float32(1 / scene.size)
    x, y, z = (np.asarray(o, np.float32) for o in origin)
    x, y, z = (x - np.float32(scene.x)) * inverse, (y - np.float32(scene.y)) * inverse, z * inverse
    dx, dy, dz = direction
    turned = _spread((c * x + s * y, c * y - s * x, z), len(dx))
    found = hit(scene.shape, turned, (c * dx + s * dy, c * dy - s * dx, dz))
    nx, ny, nz = found.normal
    return found._replace(
        distance=found.distance * np.float32(scene.size), normal=(c * nx - s * ny, s * nx + c * ny, nz)
    )


def _spread(vectors: Vectors, count: int) -> Vectors:
    x, y, z = (np.broadcast_to(np.asarray(v, np.float32), (count,)) for v in vectors)
    return x, y, z


def _along(origin: tuple[float, float, float], direction: Vectors, distance: np.ndarray) -> Vectors:
    x, y, z = (np.float32(o) + distance * d for o, d in zip(origin, direction, strict=True))
    return x, y, z


def _light(
    scene: Scene, solid: _Placed, points: Vectors, normal: Vectors, is_solid: np.ndarray, size: int, samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what light the points send to the camera per albedo, and their highlights; both (n,) linear."""
    lamp = _lamp(scene)
    to_lamp, far = _to(points, lamp)
    facing = np.maximum(sum(a * b for a, b in zip(normal, to_lamp, strict=True)), 0)
    seen = _seen(scene, solid, points, normal, is_solid, size, samples)
    strength = facing * (_LAMP_DISTANCE / far) ** 2 * seen
    middle, distance = _to(points, solid.middle)
    around = np.maximum(sum(a * b for a, b in zip(normal, middle, strict=True)), 0)
    open_sky = 1 - np.where(is_solid, 0, _CONTACT * around * np.minimum((solid.radius / distance) ** 2, 1))
    upward = 0.75 + 0.25 * normal[2]
    diffuse = _AMBIENT * open_sky * upward + _DIFFUSE * strength
    highlight = np.zeros_like(diffuse)
    on = np.flatnonzero(is_solid)
    camera = (0.0, -scene.camera_distance, scene.camera_height)
    to_camera, _ = _to(tuple(p[on] for p in points), camera)  # type: ignore[arg-type]
    half = unit(tuple(a[on] + b for a, b in zip(to_lamp, to_camera, strict=True)))  # type: ignore[arg-type]
    gloss = np.maximum(sum(a[on] * b for a, b in zip(normal, half, strict=True)), 0)
    highlight[on] = _HIGHLIGHT * gloss**_SHININESS * seen[on]
    return diffuse, highlight


def _lamp(scene: Scene) -> tuple[float, float, float]:
    flat = _LAMP_DISTANCE * float(np.cos(scene.light_elevation))
    across, towards = flat * float(np.sin(scene.light_azimuth)), flat * float(np.cos(scene.light_azimuth))
    return across, -towards, _LAMP_DISTANCE * float(np.sin(scene.light_elevation))


def _to(points: Vectors, target: tuple[float, float, float]) -> tuple[Vectors, np.ndarray]:
    """Return unit vectors from points to a target, and the distances."""
    x, y, z = (np.float32(t) - p for t, p in zip(target, points, strict=True))
    distance = np.sqrt(x * x + y * y + z * z)
    return (x / distance, y / distance, z / distance), distance


def _seen(
    scene: Scene, solid: _Placed, points: Vectors, normal: Vectors, is_solid: np.ndarray, size: int, samples: int
) -> np.ndarray:
    """Return the share of the lamp that each point sees, (n,); the rays of a pixel look at different points of it."""
    lamp = _lamp(scene)
    to_lamp, far = _to(points, lamp)
    # A shadow's edge is as wide as the lamp seen from the solid: the sphere is widened by that.
    widening = np.float32(1.2 * _LAMP_RADIUS / _LAMP_DISTANCE) * np.minimum(far, 4)
    reached = _near(solid, points, to_lamp, widening)
    if scene.shape != "ring":  # convex solids cast no shadow on themselves
        reached = reached[~is_solid[reached]]
    lifted = (p[reached] + np.float32(3e-3) * n[reached] for p, n in zip(points, normal, strict=True))
    sx, sy, sz = (np.tile(p, _LAMP_POINTS) for p in lifted)
    offsets = _lamp_points(scene, samples)[:, :, _subpixel(size, samples)[reached]].reshape(3, -1)
    direction = unit((lamp[0] + offsets[0] - sx, lamp[1] + offsets[1] - sy, lamp[2] + offsets[2] - sz))
    is_free = ~np.isfinite(_hit(solid, (sx, sy, sz), direction).distance)
    share = is_free.reshape(_LAMP_POINTS, -1).sum(0, dtype=np.float32)
    seen = np.ones(len(far), np.float32)
    seen[reached] = share / _LAMP_POINTS
    return seen


@lru_cache(maxsize=8)
def _subpixel(size: int, samples: int) -> np.ndarray:
    """Return the number of each ray within its pixel, (n,)."""
    one = np.arange(samples * samples).reshape(samples, samples)
    return np.tile(one, (size, size)).ravel()


def _lamp_points(scene: Scene, samples: int) -> np.ndarray:
    """Return offsets (3, points, samples²) float32 on a disc around the lamp, which faces the middle of the floor."""
    disc = _disc(samples * samples)
    x, y, z = (np.float32(v / _LAMP_DISTANCE) for v in _lamp(scene))
    across = np.array([y, -x, 0], np.float32) / np.hypot(x, y)
    upwards = np.cross(across, np.array([x, y, z], np.float32))
    return (disc[..., :1] * across + disc[..., 1:] * upwards).T


@lru_cache(maxsize=8)
def _disc(groups: int) -> np.ndarray:
    """Return (groups, points, 2) places on a disc: a spiral of equal areas, dealt out so that each group covers it."""
    count = groups * _LAMP_POINTS
    radius = _LAMP_RADIUS * np.sqrt((np.arange(count) + 0.5) / count)
    angle = np.arange(count) * np.pi * (3 - np.sqrt(5))
    places = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).astype(np.float32)
    return places.reshape(_LAMP_POINTS, groups, 2).transpose(1, 0, 2).copy()


def _linear(rgb: np.ndarray) -> np.ndarray:
    return rgb**_GAMMA
