"""A set of images to be judged: what it is, and its pixels a few at a time, whole or a range of them.

Image files of a folder or of shards become pixels of one size here, decoded by several threads.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import BadImage, decode, preprocess
from titokctl.data.sources import Rejected, SeekableSource
from titokctl.data.workers import available_cores, in_order
from titokctl.errors import UserError
from titokctl.formats.statistics import file_sha256

Say = Callable[[str], None]
_NAMED_BAD = 5
_FILES_AT_ONCE = 16
_LOSSY_STARTS = (b"\xff\xd8\xff",)
# Places in the set (n,) and their pixels (n, H, W, 3) uint8; places of unreadable images are missing.
Numbered = tuple[Sequence[int], np.ndarray]


@dataclass
class ImageSet:
    """Images of one size, and where they come from.

    `about` is JSON for the record; `identity` is JSON that changes with the images; `exact` gives what it leaves out to
    be quick; `origin` is what the images were made from ({"source": ..., "preprocessing": ..., "cache": path}) where
    that was recorded; `known_bad` are keys of images that are known to be unreadable; what is kept of the set lies in
    `<results>-<name>`.
    `rejected` and `lossy` are filled while the images are read.
    """

    path: Path
    count: int
    about: dict[str, Any]
    identity: dict[str, Any]
    results: Path | None
    read: Callable[["ImageSet", range], Iterator[Numbered]]
    image_size: int | None = None
    labels: np.ndarray | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    exact: Callable[[], dict[str, Any]] | None = None
    known_bad: frozenset[str] = frozenset()
    rejected: list[Rejected] = field(default_factory=list)
    lossy: int = 0
    _identified: dict[bool, dict[str, Any]] = field(default_factory=dict)

    def beside(self, name: str) -> Path | None:
        """The file of that name in which something is kept of the set; None for a set that has no place for it."""
        return None if self.results is None else self.results.with_name(f"{self.results.name}-{name}")

    def identified(self, exact: bool = False) -> dict[str, Any]:
        """`identity`, with files that are only named replaced by their SHA-256; worked out once.

        Image files are told apart by names and sizes; with `exact` by every byte, which means reading them all.
        """
        if exact not in self._identified:
            if "sha256_of" in self.identity:
                self._identified[exact] = {"file": file_sha256(Path(self.identity["sha256_of"]))}
            else:
                self._identified[exact] = self.identity | (self.exact() if exact and self.exact is not None else {})
        return self._identified[exact]

    def unexpected(self) -> list[Rejected]:
        """The rejected images that were not known to be bad."""
        return [bad for bad in self.rejected if bad.key not in self.known_bad]

    def batches(self) -> Iterator[np.ndarray]:
        """(n, H, W, 3) uint8 in order, all of one size. Raises UserError when sizes differ."""
        return (pixels for _, pixels in self.numbered(range(self.count)))

    def numbered(self, wanted: range) -> Iterator[Numbered]:
        """The images at the places `wanted`, with their places. Raises UserError when sizes differ."""
        self.rejected, self.lossy = [], 0
        return self.read(self, wanted)


@dataclass(frozen=True)
class Opening:
    """What may be needed to open a set: the runs folder, a tokenizer for ids, the preprocessing of files, a device."""

    root: Path
    say: Say
    tokenizer: str | None = None
    preprocessing: PreprocessingConfig | None = None
    device: str = "cpu"


def unreadable(rejected: Sequence[Rejected], of: str = "images") -> str:
    """A sentence about images that can't be read: how many `of` them, and the first few with their reasons."""
    named = "; ".join(f"{bad.key} ({bad.reason})" for bad in rejected[:_NAMED_BAD])
    more = len(rejected) - _NAMED_BAD
    return f"{len(rejected):,} {of} can't be read: {named}" + (f"; and {more:,} more" if more > 0 else "")


def read_files(
    source: SeekableSource, preprocessing: PreprocessingConfig | None, images: ImageSet, wanted: range
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
                    f"{images.path} holds images of different sizes: {first[0]} is {_size(first[1])}, "
                    f"{key} is {_size(pixels.shape)}",
                    "bring them to one size with --size N",
                )
            places.append(place)
            good.append(pixels)
        if good:
            yield places, np.stack(good)


def sha256_of_all(source: SeekableSource) -> str:
    """A SHA-256 over names and bytes of all files of a source."""
    digest = hashlib.sha256()
    for first in range(0, len(source), _FILES_AT_ONCE):
        for sample in source.read_many(range(first, min(first + _FILES_AT_ONCE, len(source)))):
            digest.update(f"{sample.key}\0{len(sample.data)}\0".encode() + sample.data)
    return digest.hexdigest()


def edge_of_first(source: SeekableSource) -> int | None:
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
