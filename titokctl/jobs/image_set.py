"""A set of images to be judged: what it is, and its pixels a few at a time, whole or a range of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.sources import Rejected
from titokctl.formats.statistics import file_sha256

Say = Callable[[str], None]
# Places in the set (n,) and their pixels (n, H, W, 3) uint8; places of unreadable images are missing.
Numbered = tuple[Sequence[int], np.ndarray]


@dataclass
class ImageSet:
    """Images of one size, and where they come from.

    `about` is JSON for the record; `identity` is JSON that changes with the images; `exact` gives what it leaves out to
    be quick; `origin` is what the images were made from ({"source": ..., "preprocessing": ...}) where that was
    recorded; a result may be kept as `<results>-<name of the features>.json`.
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
    rejected: list[Rejected] = field(default_factory=list)
    lossy: int = 0

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


def identity_of(images: ImageSet, exact: bool = False) -> dict[str, Any]:
    """`identity`, with files that are only named replaced by their SHA-256.

    Image files are told apart by names and sizes; with `exact` by every byte, which means reading them all.
    """
    if "sha256_of" in images.identity:
        return {"file": file_sha256(Path(images.identity["sha256_of"]))}
    return images.identity | (images.exact() if exact and images.exact is not None else {})
