"""Numbers of the official implementations, beside the checkout or absent; and the formulas they were made with."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[1].parent / "shared" / "golden"
_TABLES = (
    "class_embedding", "positional_embedding", "latent_token_positional_embedding", "mask_token", "latent_tokens",
    "pos_embed",
)  # fmt: skip


def golden(name: str) -> Path:
    """The path of a golden file; skips the test where the folder is not beside the checkout."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"no golden numbers here ({path})")
    return path


def keys(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an official checkpoint, from keys_<name>.json."""
    return {key: tuple(shape) for key, shape in json.loads(golden(f"keys_{name}.json").read_text()).items()}


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 values that stood for the official tensor `name`: normal numbers seeded by the name's CRC-32.

    Scale and offset follow from what the tensor is: deviations near 1, kernels by fan-in, tables 0.5.
    """
    values = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape, dtype=np.float32)
    leaf = name.split(".")[-1]
    embedding = "embedding" in name
    if leaf == "running_var":
        scaled = 1 + np.abs(0.02 * values)
    elif len(shape) >= 2 and not embedding and leaf not in _TABLES:
        scaled = values / np.sqrt(np.prod(shape[1:]))
    elif len(shape) == 1:
        scaled = 1 + 0.1 * values if leaf == "weight" else 0.02 * values
    elif embedding and leaf == "weight" and "quantize" in name:
        scaled = values
    else:
        scaled = 0.5 * values
    return scaled.astype(np.float32)


def image(count: int, size: int = 256) -> np.ndarray:
    """(count, 3, size, size) float32 in [0, 1]: in every channel one plane wave of random direction and phase."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    images = []
    for i in range(count):
        random = np.random.Generator(np.random.PCG64(1000 + i))
        frequencies = random.uniform(1, 12, (3, 2)).astype(np.float32)
        phases = random.uniform(0, 6.28, 3).astype(np.float32)
        waves = [
            np.sin(6.2831853 * (fx * x + fy * y) + phase) for (fx, fy), phase in zip(frequencies, phases, strict=True)
        ]
        images.append(np.stack([0.5 + 0.5 * wave for wave in waves]))
    return np.stack(images).astype(np.float32)
