"""Sets of images to be judged: one class for each kind of file or folder that holds images.

`open_images` opens any path. A set does not change after it was opened: what reading finds is in the batches.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.image_decoder import ImageDecoder, recorded_precision
from titokctl.data.images import BadImage, decode, preprocess, to_bytes
from titokctl.data.source_check import can_be_checked, checked_source
from titokctl.data.sources import Rejected, SeekableSource, Source, open_source, reopen_source
from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.data.sources.source import difference
from titokctl.data.workers import in_order
from titokctl.distributed.place import available_cores
from titokctl.errors import UserError
from titokctl.formats.atomic import file_sha256
from titokctl.formats.npz_reader import Member, NpzReader, opened
from titokctl.formats.sample_set import SampleSet, state_of
from titokctl.formats.statistics import IMAGES, read_statistics
from titokctl.formats.token_cache import TokenCache
from titokctl.readable import counted, first_few
from titokctl.weights.chain import tokenizer_with
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_tokenizer

_ROWS_AT_ONCE = 64
_FILES_AT_ONCE = 16
_DECODE_AT_ONCE = 8
_NAMED_BAD = 5
_ROUNDING = "clipped to [0, 1], times 255, rounded"
_HDF5 = (".h5", ".hdf5")
_ARRAYS = (".npz", ".npy")
_JPEG = b"\xff\xd8\xff"
_NO_PIXELS = np.empty((0, 0, 0, 3), np.uint8)


@dataclass(frozen=True)
class Batch:
    """Some images of a set, in order.

    Args:
        positions: (n,), where the readable images are in the set.
        pixels: (n, H, W, 3) uint8; without meaning when n is 0.
        rejected: the images between them that can't be read.
        rejected_at: where those are in the set.
        lossy_at: the positions, of the n, of files with lossy compression.
    """

    positions: Sequence[int]
    pixels: np.ndarray
    rejected: Sequence[Rejected] = ()
    rejected_at: Sequence[int] = ()
    lossy_at: Sequence[int] = ()


class ImageSet(ABC):
    """Images of one size, and where they come from.

    Attributes:
        path: the file or folder, which names the set for people.
        count: number of images, with those that can't be read.
        about: JSON for the record of a result.
        image_size: edge in pixels; None if it is known only after reading.
        labels: (count,) int32, -1 for an image without one; None for a set without labels.
        origin: what the images were made from, if that was recorded: {"source", "preprocessing", "cache"}.
        problems: what was left out when the set was opened; not in `count`.
        known_bad: keys of images that are known to be unreadable.
        results: what is kept of the set is in files `<results>-<name>`; None without a folder for them.
    """

    path: Path
    count: int
    about: dict[str, Any]
    image_size: int | None = None
    labels: np.ndarray | None = None
    origin: dict[str, Any] = {}  # noqa: RUF012  # never changed, only replaced
    problems: Sequence[Rejected] = ()
    known_bad: frozenset[str] = frozenset()
    results: Path | None = None

    @abstractmethod
    def read(self, wanted: range) -> Iterator[Batch]:
        """Yield the images at the positions `wanted`, in order. Raises UserError when sizes differ."""

    @abstractmethod
    def identity(self, exact: bool = False) -> dict[str, Any]:
        """Return JSON that changes with the images.

        Image files are told apart by paths, sizes, times and some of their contents (`local_file.Identity`); with
        `exact` by every byte, which means reading all of them.
        """

    def unreadable(self, context: Context) -> list[Rejected]:
        """Return the images that can't be read, found by one pass whose result is kept; [] if reading is the only way.

        All processes of the group call it. Raises UserError when sizes differ.
        """
        return []

    def pixels(self) -> Iterator[np.ndarray]:
        """Yield the readable images, (n, H, W, 3) uint8 in order. Raises UserError when sizes differ."""
        return (batch.pixels for batch in self.read(range(self.count)) if len(batch.positions))

    def beside(self, name: str) -> Path | None:
        """Return the path of the file that keeps the results `name` of the set; None if nothing is kept."""
        return None if self.results is None else self.results.with_name(f"{self.results.name}-{name}")


@dataclass(frozen=True)
class Opening:
    """Options for opening sets of images.

    Args:
        context: its runs folder is searched for tokenizers; token caches are decoded on its device.
        tokenizer: decodes token caches; None for the one that each records.
        preprocessing: of image files; None takes them as they are.
        keep_index: keep the index of shards that have none; a plan passes False.
        choices: of split and member, as for `open_source`.
        exif: apply the EXIF orientation of image files that are taken as they are.
    """

    context: Context
    tokenizer: str | None = None
    preprocessing: PreprocessingConfig | None = None
    keep_index: bool = True
    choices: Choices = NO_CHOICES
    exif: bool = False


class ArrayImages(ImageSet):
    """Images in an .npz or .npy: uint8, or float in [0, 1], (n, S, S, 3).

    In an .npz they are `arr_0`, or else the only array of such a shape.
    """

    def __init__(self, path: Path) -> None:
        with opened(path) as file:
            self._name = _array_of_images(file)
            member = file.member(self._name)
        shape, dtype = member.shape, member.dtype
        if not _is_of_images(member):
            raise UserError(
                f"{self._name} of {path} is {shape} {dtype}; expected (n, height, width, 3) uint8",
                "save pixels from 0 to 255 as uint8, colours last",
            )
        self._is_bytes = dtype == np.uint8
        self.path, self.count, self.image_size = path, shape[0], shape[1]
        self.about = {"kind": "npz", "rounding": "none" if self._is_bytes else _ROUNDING}
        self.about |= {} if self._name == IMAGES else {"array": self._name}
        self.results = path.with_suffix(".evaluation")

    def read(self, wanted: range) -> Iterator[Batch]:
        """Yield the rows at `wanted`. Raises UserError for floats outside [0, 1]."""
        first = wanted.start
        with opened(self.path) as file:
            for rows in file.rows(self._name, _ROWS_AT_ONCE, wanted):
                pixels = rows if self._is_bytes else _from_floats(rows, f"{self._name} of {self.path}")
                yield Batch(range(first, first + len(rows)), pixels)
                first += len(rows)

    def identity(self, exact: bool = False) -> dict[str, Any]:
        """Return the SHA-256 of the file."""
        return {"file": self._sha256}

    @cached_property
    def _sha256(self) -> str:
        return file_sha256(self.path)


def _array_of_images(file: NpzReader) -> str:
    """Return the name of the array that holds the images. Raises UserError if none does, or not only one."""
    if IMAGES in file.names:
        return IMAGES
    fitting = [name for name in file.names if _is_of_images(file.member(name))]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(
            f"{file.path} holds several arrays of images: {', '.join(fitting)}",
            "save the one to be judged in a file of its own, as arr_0",
        )
    raise UserError(
        f"no array of images in {file.path}: it contains {', '.join(file.names) or 'nothing'}",
        "expected an array (n, height, width, 3) uint8, such as arr_0",
    )


def _is_of_images(member: Member) -> bool:
    shape, dtype = member.shape, member.dtype
    return len(shape) == 4 and shape[3] == 3 and 0 not in shape and (dtype == np.uint8 or dtype.kind == "f")


class StatisticsSet(ImageSet):
    """Statistics of images that are not at hand: features can be compared, pixels can't be had.

    Raises UserError as `read_statistics`.
    """

    def __init__(self, path: Path) -> None:
        self.statistics = read_statistics(path)
        self.path, self.count = path, self.statistics.count
        self.image_size = self.statistics.about.get("image_size")
        recorded = {name: self.statistics.about[name] for name in ("extractor",) if name in self.statistics.about}
        made_by = {"made_by": self.statistics.made_by} if self.statistics.made_by else {}
        self.about = {"kind": "statistics", "sha256": file_sha256(path)} | recorded | made_by
        self.results = path.with_suffix(".evaluation")

    def read(self, wanted: range) -> Iterator[Batch]:
        """Raise UserError, since statistics hold features instead of pixels."""
        raise UserError(f"{self.path} holds statistics, not images", "name the images that they were computed from")

    def identity(self, exact: bool = False) -> dict[str, Any]:
        """Return the SHA-256 of the file."""
        return {"file": self.about["sha256"]}


class TokenCacheImages(ImageSet):
    """Images decoded from a token cache while they are read.

    Raises UserError when `path` is not a token cache, or its tokenizer isn't found.
    """

    def __init__(self, path: Path, opening: Opening) -> None:
        context = opening.context
        self._cache, self._device = TokenCache.open_whole(path), context.device
        header = self._cache.header
        self._tokenizer = tokenizer_with(
            header.encoder_sha256, header.weights_sha256, opening.tokenizer, context.runs, context.say
        )
        is_reconstruction = header.source.get("kind") != "samples"
        self.path, self.count, self.image_size = path, len(self._cache), header.image_size
        self.about = {
            "kind": "reconstructions" if is_reconstruction else "samples",
            "tokenizer": str(self._tokenizer),
            "cache_sha256": self._cache.sha256,
            "rounding": _ROUNDING,
        }
        self.labels = self._cache.labels
        if is_reconstruction:
            made_from = {"source": header.source, "preprocessing": header.preprocessing}
            self.origin = made_from | {"cache": str(path.absolute())}
        self.results = path.with_suffix(".evaluation")

    def read(self, wanted: range) -> Iterator[Batch]:
        """Yield the decoded rows at `wanted`."""
        precision = recorded_precision(self._cache.header, self._device) or "float32"
        decoder = ImageDecoder(load_tokenizer(self._tokenizer, self._device), self._device, precision)
        for first in range(wanted.start, wanted.stop, _DECODE_AT_ONCE):
            rows = range(first, min(first + _DECODE_AT_ONCE, wanted.stop))
            block = self._cache.rows[rows.start : rows.stop]
            ids = torch.from_numpy(block.astype(np.int64 if self._cache.is_discrete else np.float32))
            yield Batch(rows, decoder.images(ids.to(self._device)).cpu().numpy())

    def identity(self, exact: bool = False) -> dict[str, Any]:
        """Return the hashes of the ids and of the weights that decode them, by whatever name those are found."""
        return {"cache": self._cache.sha256, "decoder": self._decoder_sha256}

    @cached_property
    def _decoder_sha256(self) -> str:
        return weights_sha256(load_tokenizer(self._tokenizer))


@dataclass(frozen=True)
class _File:
    key: str
    is_lossy: bool
    pixels: np.ndarray | BadImage


class SourceImages(ImageSet):
    """Image files of a folder or of shards.

    Args:
        source: the files.
        path: names the set.
        preprocessing: makes squares of them; None takes them as they are, which then are of one size.
        exif: apply the EXIF orientation to files that are taken as they are.
    """

    def __init__(
        self, source: Source, path: Path, preprocessing: PreprocessingConfig | None, exif: bool = False
    ) -> None:
        self._exif = exif
        self._source, self._preprocessing = source.by_position(), preprocessing
        self._record = None if preprocessing is None else preprocessing.model_dump(mode="json")
        about = {name: source.description[name] for name in ("kind", "fingerprint", "listing")}
        self.path, self.count = path, len(source)
        self.image_size = preprocessing.size if preprocessing else _edge_of_first(self._source)
        self.about = about | {"preprocessing": self._record, "rounding": "none"}
        self.labels, self.problems = self._source.labels(), tuple(source.problems)
        self.results = path / "evaluation" if path.is_dir() else None

    def read(self, wanted: range) -> Iterator[Batch]:
        """Yield the decoded files at `wanted`. Raises UserError when sizes differ."""

        def make(task: range) -> list[_File]:
            return [_File(s.key, _is_lossy(s.data), self._decoded(s.data)) for s in self._source.read_many(task)]

        tasks = (wanted[i : i + _FILES_AT_ONCE] for i in range(0, len(wanted), _FILES_AT_ONCE))
        first: tuple[str, str] | None = None
        for task, files in in_order(make, tasks, available_cores()):
            positions, pixels, rejected, lossy_at = [], [], {}, []
            for position, file in zip(task, files, strict=True):
                if isinstance(file.pixels, BadImage):
                    rejected[position] = Rejected(file.key, file.pixels.kind, file.pixels.text)
                    continue
                size = f"{file.pixels.shape[1]} x {file.pixels.shape[0]}"
                first = first or (file.key, size)
                if size != first[1]:
                    raise self._of_different_sizes(first, (file.key, size))
                positions.append(position)
                pixels.append(file.pixels)
                if file.is_lossy:
                    lossy_at.append(position)
            stacked = np.stack(pixels) if pixels else _NO_PIXELS
            yield Batch(positions, stacked, list(rejected.values()), list(rejected), lossy_at)

    def unreadable(self, context: Context) -> list[Rejected]:
        if not can_be_checked(self._source):
            return []
        checked = checked_source(self._source, context)
        if self._preprocessing is None and len(checked.sizes) > 1:
            raise self._of_different_sizes(*((key, f"{width} x {height}") for width, height, key in checked.sizes))
        return checked.in_order()

    def identity(self, exact: bool = False) -> dict[str, Any]:
        """Return the fingerprint of the files; with `exact` also a SHA-256 over names and bytes of all of them."""
        found = {"source": self._source.description["fingerprint"], "preprocessing": self._record}
        found |= {"exif": True} if self._exif else {}
        return found | ({"bytes": self._sha256_of_all} if exact else {})

    def _of_different_sizes(self, one: tuple[str, str], other: tuple[str, str]) -> UserError:
        """Return the error for two images, each its key and its size in words."""
        return UserError(
            f"{self.path} holds images of different sizes: {one[0]} is {one[1]}, {other[0]} is {other[1]}",
            "bring them to one size with --size N",
        )

    def _decoded(self, data: bytes) -> np.ndarray | BadImage:
        try:
            return preprocess(data, self._preprocessing) if self._preprocessing else decode(data, exif=self._exif)
        except BadImage as error:
            return error

    @cached_property
    def _sha256_of_all(self) -> str:
        digest = hashlib.sha256()
        for first in range(0, self.count, _FILES_AT_ONCE):
            for sample in self._source.read_many(range(first, min(first + _FILES_AT_ONCE, self.count))):
                digest.update(f"{sample.key}\0{len(sample.data)}\0".encode() + sample.data)
        return digest.hexdigest()


class OriginalImages(SourceImages):
    """The images that something was made from, as its `origin` records them.

    Those without a row in the token cache are known to be bad. Raises UserError when the files changed or are gone.
    """

    def __init__(self, origin: dict[str, Any], opening: Opening) -> None:
        source, preprocessing = origin["source"], PreprocessingConfig.model_validate(origin["preprocessing"])
        try:
            found = reopen_source(source, opening.keep_index, context=opening.context)
        except UserError as error:
            raise UserError(
                f"the images to compare with were moved or deleted: {error.message}", "name the reference with --ref"
            ) from error
        if (changed := difference(source, found.description)) is not None:
            raise UserError(
                f"the images in {source['paths'][0]} are not those that were tokenized: {changed}",
                "name the reference with --ref",
            )
        super().__init__(found, Path(source["paths"][0]), preprocessing)
        self.known_bad = _listed_as_rejected(origin.get("cache"))

    def identity(self, exact: bool = False) -> dict[str, Any]:
        """Return the identity of the files, and the keys of those that are known to be bad."""
        return super().identity(exact) | ({"known_bad": sorted(self.known_bad)} if self.known_bad else {})


class SampleSetImages(ImageSet):
    """The images of a sample set, decoded from its ids if no images were kept."""

    def __init__(self, path: Path, opening: Opening) -> None:
        found = SampleSet.open(path)
        self._images: ImageSet
        if found.images == found.ids:
            self._images = TokenCacheImages(found.ids, opening)
        elif found.images.is_dir():
            source = open_source([found.images], keep_index=opening.keep_index, context=opening.context)
            self._images = SourceImages(source, found.images, None)
        else:
            self._images = ArrayImages(found.images)
        inputs = found.manifest.get("inputs", {})
        self.path, self.count, self.image_size = found.folder, self._images.count, self._images.image_size
        guidance = {"guidance": found.manifest["guidance"]} if "guidance" in found.manifest else {}
        self.about = self._images.about | {"kind": "sample set", "rounding": _ROUNDING} | guidance
        self.labels = TokenCache.open(found.ids, check_ids=False).labels if found.ids.is_file() else None
        self.origin = {name: inputs[name] for name in ("source", "preprocessing", "cache") if name in inputs}
        self.problems = self._images.problems
        self.results = found.folder / "evaluation"

    def read(self, wanted: range) -> Iterator[Batch]:
        """Yield the images at `wanted`. Raises UserError when sizes differ."""
        return self._images.read(wanted)

    def identity(self, exact: bool = False) -> dict[str, Any]:
        """Return the identity of the file or folder that holds the images."""
        return self._images.identity(exact)


def open_images(path: Path, opening: Opening, shards: Sequence[Path] = ()) -> ImageSet:
    """Open the set of images at `path`, or that of several `shards`, of which `path` is the first.

    Raises UserError when there is none.
    """
    if not path.exists() and "{" not in str(path):
        raise UserError(f"no such file or folder: {path}", "check the path")
    if path.suffix in _ARRAYS:
        return ArrayImages(path)
    if path.suffix in _HDF5:
        return TokenCacheImages(path, opening)
    if state_of(path) in ("finished", "unfinished") or (path / "run.json").is_file():
        return SampleSetImages(path, opening)
    choices = opening.choices.whatever_labels()
    source = open_source(shards or [path], keep_index=opening.keep_index, choices=choices, context=opening.context)
    return SourceImages(source, path, opening.preprocessing, opening.exif)


def unreadable(rejected: Sequence[Rejected], of: str = "") -> str:
    """Return a sentence about images that can't be read: how many, `of` how many, and the first few with reasons."""
    named = first_few([f"{bad.key} ({bad.reason})" for bad in rejected], _NAMED_BAD, "; ")
    count = f"{len(rejected):,} {of}" if of else counted(len(rejected), "images")
    return f"{count} can't be read: {named}"


def _listed_as_rejected(cache: str | None) -> frozenset[str]:
    """Return the keys of images without a row in the token cache; none if the list is missing or damaged."""
    if cache is None:
        return frozenset()
    try:
        with Path(cache + ".rejected.jsonl").open(encoding="utf-8") as lines:
            return frozenset(Rejected.of(json.loads(line)).key for line in lines)
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def _from_floats(rows: np.ndarray, where: str) -> np.ndarray:
    low, high = float(rows.min()), float(rows.max())
    if not (low >= 0 and high <= 1):
        found = "NaN" if np.isnan(low) else f"floats from {low:g} to {high:g}"
        raise UserError(
            f"{where} holds {found}; expected uint8, or floats in [0, 1]", "save pixels from 0 to 255 as uint8"
        )
    return to_bytes(torch.from_numpy(rows.astype(np.float32)).permute(0, 3, 1, 2)).numpy()


def _edge_of_first(source: SeekableSource) -> int | None:
    """Return the height of the first image; None if it can't be read."""
    try:
        return decode(source.sample(0).data).shape[0]
    except BadImage:
        return None


def _is_lossy(data: bytes) -> bool:
    return data.startswith(_JPEG) or (data[8:12] == b"WEBP" and data[12:16] == b"VP8 ")
