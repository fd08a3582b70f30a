"""Sets of images to be judged, whatever they are kept in: an .npz, files, shards, a token cache, a sample set.

An `ImageSet` says what it is without reading pixels, and gives them a few at a time, so that memory does not depend on
the number of images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import BadImage, decode, preprocess, to_bytes
from titokctl.data.sources import Rejected, Source, open_source, reopen_source
from titokctl.data.workers import available_cores, in_order
from titokctl.errors import UserError
from titokctl.formats.npz_reader import NpzReader
from titokctl.formats.sample_set import MANIFEST, SampleSet
from titokctl.formats.statistics import IMAGES, file_sha256
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.chain import tokenizer_with
from titokctl.models.precision import precision
from titokctl.weights.load import load_tokenizer

ROWS_AT_ONCE = 64
_ROUNDING = "clipped to [0, 1], times 255, rounded"
_FILES_AT_ONCE = 16
_DECODE_AT_ONCE = 8
_HDF5 = (".h5", ".hdf5")
_LOSSY_STARTS = (b"\xff\xd8\xff",)

Say = Callable[[str], None]


@dataclass
class ImageSet:
    """Images of one size, and where they come from.

    `about` is JSON for the record; `identity` is JSON that changes with the images; `origin` is what the images were
    made from ({"source": ..., "preprocessing": ...}) where that was recorded; a result may be kept as
    `<results>-<name of the features>.json`.
    `rejected` and `lossy` are filled while `batches` are read.
    """

    path: Path
    count: int
    about: dict[str, Any]
    identity: dict[str, Any]
    results: Path | None
    read: Callable[["ImageSet"], Iterator[np.ndarray]]
    image_size: int | None = None
    labels: np.ndarray | None = None
    origin: dict[str, Any] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    lossy: int = 0

    def batches(self) -> Iterator[np.ndarray]:
        """(n, H, W, 3) uint8 in order, all of one size. Raises UserError when sizes differ."""
        self.rejected, self.lossy = [], 0
        return self.read(self)


@dataclass(frozen=True)
class Opening:
    """What may be needed to open a set: the runs folder, a tokenizer for ids, the preprocessing of files, a device."""

    root: Path
    say: Say
    tokenizer: str | None = None
    preprocessing: PreprocessingConfig | None = None
    device: str = "cpu"


def open_images(path: Path, opening: Opening, shards: Sequence[str] = ()) -> ImageSet:
    """The set of images at `path`, or of several `shards` of which it is the first.

    Raises UserError when there is none.
    """
    if not path.exists() and "{" not in str(path):
        raise UserError(f"no such file or folder: {path}", "check the path")
    if path.suffix == ".npz":
        return from_npz(path)
    if path.suffix in _HDF5:
        return from_token_cache(path, opening)
    if (path / MANIFEST).is_file() or (path / "run.json").is_file():
        return from_sample_set(path, opening)
    return from_source(open_source(shards or [path]), path, opening.preprocessing)


def from_npz(path: Path) -> ImageSet:
    """Images in `arr_0` of an .npz: uint8, or float in [0, 1], (n, S, S, 3)."""
    with NpzReader(path) as npz:
        if IMAGES not in npz.names:
            raise UserError(
                f"{path} holds no images: arr_0 is missing, found {', '.join(npz.names) or 'nothing'}",
                "samples are an .npz with arr_0 (n, height, width, 3) uint8; statistics belong to --ref",
            )
        member = npz.member(IMAGES)
    shape, dtype = member.shape, member.dtype
    if len(shape) != 4 or shape[3] != 3 or not shape[0] or (dtype != np.uint8 and dtype.kind != "f"):
        raise UserError(
            f"arr_0 of {path} is {shape} {dtype}; expected (n, height, width, 3) uint8",
            "save pixels from 0 to 255 as uint8, colours last",
        )
    about = {"kind": "npz", "rounding": "none" if dtype == np.uint8 else _ROUNDING}

    def read(images: ImageSet) -> Iterator[np.ndarray]:
        with NpzReader(path) as npz:
            for rows in npz.rows(IMAGES, ROWS_AT_ONCE):
                yield rows if dtype == np.uint8 else _from_floats(rows, path)

    results = path.with_suffix(".evaluation")
    identity = {"sha256_of": str(path)}
    return ImageSet(path, shape[0], about, identity, results, read, image_size=shape[1])


def from_token_cache(path: Path, opening: Opening) -> ImageSet:
    """Images decoded from a token cache while they are read."""
    cache = TokenCache.open(path)
    header = cache.header
    name = tokenizer_with(header.encoder_sha256, header.weights_sha256, opening.tokenizer, opening.root, opening.say)

    def read(images: ImageSet) -> Iterator[np.ndarray]:
        tokenizer = load_tokenizer(name, opening.device)
        with precision("float32", opening.device):
            for first in range(0, len(cache), _DECODE_AT_ONCE):
                ids = torch.from_numpy(cache.ids[first : first + _DECODE_AT_ONCE].astype(np.int64))
                yield to_bytes(tokenizer.detokenize(ids.to(opening.device))).cpu().numpy()

    is_reconstruction = header.source.get("kind") != "samples"
    about = {
        "kind": "reconstructions" if is_reconstruction else "samples",
        "tokenizer": str(name),
        "cache_sha256": cache.sha256,
        "rounding": _ROUNDING,
    }
    return ImageSet(
        path,
        len(cache),
        about,
        {"cache": cache.sha256, "weights": header.weights_sha256, "tokenizer": str(name)},
        path.with_suffix(".evaluation"),
        read,
        image_size=header.image_size,
        labels=cache.labels,
        origin={"source": header.source, "preprocessing": header.preprocessing} if is_reconstruction else {},
    )


def from_sample_set(path: Path, opening: Opening) -> ImageSet:
    """The images of a sample set; its labels come from its ids."""
    found = SampleSet.open(path)
    if found.images.is_dir():
        images = from_source(open_source([found.images]), found.images, None)
    else:
        images = from_npz(found.images)
    images.path, images.results = found.folder, found.folder / "evaluation"
    images.labels = TokenCache.open(found.ids, check_ids=False).labels if found.ids.is_file() else None
    images.origin = {k: v for k, v in found.manifest.get("inputs", {}).items() if k in ("source", "preprocessing")}
    images.about |= {"kind": "sample set", "rounding": _ROUNDING}
    if "guidance" in found.manifest:
        images.about["guidance"] = found.manifest["guidance"]
    return images


def from_source(source: Source, path: Path, preprocessing: PreprocessingConfig | None) -> ImageSet:
    """Image files of a folder or of shards, preprocessed, or as they are (then all of one size)."""
    record = None if preprocessing is None else preprocessing.model_dump(mode="json")
    about = {"kind": source.description["kind"], "fingerprint": source.description["fingerprint"]}
    return ImageSet(
        path,
        len(source),
        about | {"preprocessing": record, "rounding": "none"},
        {"source": source.description["fingerprint"], "preprocessing": record},
        path / "evaluation" if path.is_dir() else None,
        lambda images: _read_files(source, preprocessing, images),
        image_size=preprocessing.size if preprocessing else _edge_of_first(source),
        labels=source.labels(),
    )


def from_origin(origin: dict[str, Any]) -> ImageSet:
    """The images that something was made from, as it recorded them. Raises UserError when they changed or are gone."""
    source, preprocessing = origin["source"], PreprocessingConfig.model_validate(origin["preprocessing"])
    try:
        found = reopen_source(source)
    except UserError as error:
        raise UserError(
            f"the images to compare with are not where they were: {error.message}", "name the reference with --ref"
        ) from error
    if found.description["fingerprint"] != source.get("fingerprint"):
        raise UserError(
            f"the images in {source['paths'][0]} are not those that were tokenized: names or sizes changed",
            "name the reference with --ref",
        )
    return from_source(found, Path(source["paths"][0]), preprocessing)


def identity_of(images: ImageSet) -> dict[str, Any]:
    """`identity`, with files that are only named replaced by their SHA-256."""
    if "sha256_of" in images.identity:
        return {"file": file_sha256(Path(images.identity["sha256_of"]))}
    return images.identity


def _read_files(source: Source, preprocessing: PreprocessingConfig | None, images: ImageSet) -> Iterator[np.ndarray]:
    """Decoded files in order; bad ones go to `images.rejected`, other sizes raise UserError."""
    images.rejected += source.problems

    def make(task: tuple[int, int]) -> list[tuple[str, bool, np.ndarray | BadImage]]:
        samples = source.read_many(range(*task))
        return [(s.key, _is_lossy(s.data), _pixels(s.data, preprocessing)) for s in samples]

    tasks = ((i, min(i + _FILES_AT_ONCE, len(source))) for i in range(0, len(source), _FILES_AT_ONCE))
    first: tuple[str, tuple[int, ...]] | None = None
    for _, decoded in in_order(make, tasks, available_cores()):
        good = []
        for key, lossy, pixels in decoded:
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
            good.append(pixels)
        if good:
            yield np.stack(good)


def _edge_of_first(source: Source) -> int | None:
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


def _from_floats(rows: np.ndarray, path: Path) -> np.ndarray:
    low, high = float(rows.min()), float(rows.max())
    if not (low >= 0 and high <= 1):  # also where a value is not a number
        raise UserError(
            f"arr_0 of {path} holds floats from {low:g} to {high:g}; expected uint8, or floats in [0, 1]",
            "save pixels from 0 to 255 as uint8",
        )
    return to_bytes(torch.from_numpy(rows.astype(np.float32)).permute(0, 3, 1, 2)).numpy()


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
