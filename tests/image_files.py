"""Image files that tests make: small, different from each other, always the same."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """(H, W, C) uint8 of independent values: the hardest case for a resize that should be exact."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    """`pixels` as an image file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def webdataset_samples(path: Path) -> list[dict[str, Any]]:
    """A shard as WebDataset's own reader sees it."""
    with path.open("rb") as file:
        return list(group_by_keys(tar_file_expander([{"url": str(path), "stream": file}])))


def class_folders(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 5) -> dict[str, bytes]:
    """Make `each` images a class below `root`; returns file contents by relative name."""
    files = {}
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            data = encoded(noise(20 + i, 24, seed=100 * c + i), "JPEG" if i % 2 else "PNG")
            files[f"{name}/{i}.{'JPEG' if i % 2 else 'png'}"] = data
            (root / f"{name}/{i}.{'JPEG' if i % 2 else 'png'}").write_bytes(data)
    return files
