"""Image files of a folder or of shards as pixels of one size, decoded by several threads."""

import hashlib
from collections.abc import Iterator

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import BadImage, decode, preprocess
from titokctl.data.sources import Rejected, Source
from titokctl.data.workers import available_cores, in_order
from titokctl.errors import UserError
from titokctl.jobs.image_set import ImageSet, Numbered

_FILES_AT_ONCE = 16
_LOSSY_STARTS = (b"\xff\xd8\xff",)


def read_files(
    source: Source, preprocessing: PreprocessingConfig | None, images: ImageSet, wanted: range
) -> Iterator[Numbered]:
    """The decoded files at `wanted`, in order; bad ones go to `images.rejected`, other sizes raise UserError."""
    if wanted.start == 0:
        images.rejected += source.problems

    def make(task: range) -> list[tuple[str, bool, np.ndarray | BadImage]]:
        return [(s.key, _is_lossy(s.data), _pixels(s.data, preprocessing)) for s in source.read_many(task)]

    tasks = (wanted[i : i + _FILES_AT_ONCE] for i in range(0, len(wanted), _FILES_AT_ONCE))
    first: tuple[str, tuple[int, ...]] | None = None
    for task, decoded in in_order(make, tasks, available_cores()):
        places, good = [], []
        for place, (key, lossy, pixels) in zip(task, decoded, strict=True):
            if isinstance(pixels, BadImage):
                images.rejected.append(Rejected(key, pixels.kind, pixels.text))
                continue
            images.lossy += lossy
            first = first or (key, pixels.shape)
            if pixels.shape != first[1]:
                raise UserError(
                    f"images of different sizes: {first[0]} is {_size(first[1])}, {key} is {_size(pixels.shape)}",
                    "give images of one size, or make statistics with `titokctl stats DATA --size N -o ref.npz`",
                )
            places.append(place)
            good.append(pixels)
        if good:
            yield places, np.stack(good)


def sha256_of_all(source: Source) -> str:
    """A SHA-256 over names and bytes of all files of a source."""
    digest = hashlib.sha256()
    for first in range(0, len(source), _FILES_AT_ONCE):
        for sample in source.read_many(range(first, min(first + _FILES_AT_ONCE, len(source)))):
            digest.update(f"{sample.key}\0{len(sample.data)}\0".encode() + sample.data)
    return digest.hexdigest()


def edge_of_first(source: Source) -> int | None:
    """The height of the first image, None when it can't be read."""
    try:
        return decode(source.sample(0).data).shape[0]
    except BadImage:
        return None


def _pixels(data: bytes, preprocessing: PreprocessingConfig | None) -> np.ndarray | BadImage:
    try:
        return preprocess(data, preprocessing) if preprocessing else decode(data)
    except BadImage as error:
        return error


def _is_lossy(data: bytes) -> bool:
    return data[:3] in _LOSSY_STARTS or (data[8:12] == b"WEBP" and data[12:16] == b"VP8 ")


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
