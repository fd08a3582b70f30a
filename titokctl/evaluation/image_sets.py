"""Sets of images to be judged, whatever they are kept in: an .npz, files, shards, a token cache, a sample set."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.image_decoder import ImageDecoder, recorded_precision
from titokctl.data.images import to_bytes
from titokctl.data.sources import Rejected, Source, open_source, reopen_source
from titokctl.dry_run import is_dry_run
from titokctl.errors import UserError
from titokctl.evaluation.image_set import ImageSet, Numbered, Opening, edge_of_first, read_files, sha256_of_all
from titokctl.formats.npz_reader import NpzReader
from titokctl.formats.sample_set import SampleSet, state_of
from titokctl.formats.statistics import IMAGES
from titokctl.formats.token_cache import TokenCache
from titokctl.weights.chain import tokenizer_with
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_tokenizer

ROWS_AT_ONCE = 64
_ROUNDING = "clipped to [0, 1], times 255, rounded"
_DECODE_AT_ONCE = 8
_HDF5 = (".h5", ".hdf5")


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
    if state_of(path) in ("finished", "unfinished") or (path / "run.json").is_file():
        return from_sample_set(path, opening)
    return from_source(open_source(shards or [path], keep_index=not is_dry_run()), path, opening.preprocessing)


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
    if len(shape) != 4 or shape[3] != 3 or 0 in shape or (dtype != np.uint8 and dtype.kind != "f"):
        raise UserError(
            f"arr_0 of {path} is {shape} {dtype}; expected (n, height, width, 3) uint8",
            "save pixels from 0 to 255 as uint8, colours last",
        )
    about = {"kind": "npz", "rounding": "none" if dtype == np.uint8 else _ROUNDING}

    def read(images: ImageSet, wanted: range) -> Iterator[Numbered]:
        first = wanted.start
        with NpzReader(path) as npz:
            for rows in npz.rows(IMAGES, ROWS_AT_ONCE, wanted):
                yield range(first, first + len(rows)), rows if dtype == np.uint8 else _from_floats(rows, path)
                first += len(rows)

    results = path.with_suffix(".evaluation")
    identity = {"sha256_of": str(path)}
    return ImageSet(path, shape[0], about, identity, results, read, image_size=shape[1])


def from_token_cache(path: Path, opening: Opening) -> ImageSet:
    """Images decoded from a token cache while they are read."""
    cache = TokenCache.open(path)
    header = cache.header
    name = tokenizer_with(header.encoder_sha256, header.weights_sha256, opening.tokenizer, opening.root, opening.say)

    def read(images: ImageSet, wanted: range) -> Iterator[Numbered]:
        made_in = recorded_precision(header, opening.device) or "float32"
        decoder = ImageDecoder(load_tokenizer(name, opening.device, fetch=not is_dry_run()), opening.device, made_in)
        for first in range(wanted.start, wanted.stop, _DECODE_AT_ONCE):
            places = range(first, min(first + _DECODE_AT_ONCE, wanted.stop))
            ids = torch.from_numpy(cache.ids[places.start : places.stop].astype(np.int64))
            yield places, decoder.images(ids.to(opening.device)).cpu().numpy()

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
        origin={"source": header.source, "preprocessing": header.preprocessing, "cache": str(path.absolute())}
        if is_reconstruction
        else {},
        exact=lambda: {"decoder": weights_sha256(load_tokenizer(name))},
    )


def from_sample_set(path: Path, opening: Opening) -> ImageSet:
    """The images of a sample set, decoded where none were kept; its labels come from its ids."""
    found = SampleSet.open(path)
    if found.images == found.ids:
        images = from_token_cache(found.ids, opening)
    elif found.images.is_dir():
        images = from_source(open_source([found.images], keep_index=not is_dry_run()), found.images, None)
    else:
        images = from_npz(found.images)
    images.path, images.results = found.folder, found.folder / "evaluation"
    images.labels = TokenCache.open(found.ids, check_ids=False).labels if found.ids.is_file() else None
    recorded = found.manifest.get("inputs", {})
    images.origin = {name: recorded[name] for name in ("source", "preprocessing", "cache") if name in recorded}
    images.about |= {"kind": "sample set", "rounding": _ROUNDING}
    if "guidance" in found.manifest:
        images.about["guidance"] = found.manifest["guidance"]
    return images


def from_source(source: Source, path: Path, preprocessing: PreprocessingConfig | None) -> ImageSet:
    """Image files of a folder or of shards, preprocessed, or as they are (then all of one size)."""
    files = source.by_position()
    record = None if preprocessing is None else preprocessing.model_dump(mode="json")
    about = {"kind": source.description["kind"], "fingerprint": source.description["fingerprint"]}
    return ImageSet(
        path,
        len(source),
        about | {"preprocessing": record, "rounding": "none"},
        {"source": source.description["fingerprint"], "preprocessing": record},
        path / "evaluation" if path.is_dir() else None,
        lambda images, wanted: read_files(files, preprocessing, images, wanted),
        image_size=preprocessing.size if preprocessing else edge_of_first(files),
        labels=files.labels(),
        exact=lambda: {"bytes": sha256_of_all(files)},
    )


def from_origin(origin: dict[str, Any]) -> ImageSet:
    """The images that something was made from, as it recorded them; those without a row in its cache are known as bad.

    Raises UserError when they changed or are gone.
    """
    source, preprocessing = origin["source"], PreprocessingConfig.model_validate(origin["preprocessing"])
    try:
        found = reopen_source(source, not is_dry_run())
    except UserError as error:
        raise UserError(
            f"the images to compare with are not where they were: {error.message}", "name the reference with --ref"
        ) from error
    if found.description["fingerprint"] != source.get("fingerprint"):
        raise UserError(
            f"the images in {source['paths'][0]} are not those that were tokenized: names or sizes changed",
            "name the reference with --ref",
        )
    images = from_source(found, Path(source["paths"][0]), preprocessing)
    if known := _listed_as_rejected(origin.get("cache")):
        images.known_bad = known
        images.identity |= {"known_bad": sorted(known)}
    return images


def _listed_as_rejected(cache: str | None) -> frozenset[str]:
    """Keys of the images that have no row in the token cache; none where its list is gone or can't be read."""
    if cache is None:
        return frozenset()
    try:
        with Path(cache + ".rejected.jsonl").open(encoding="utf-8") as lines:
            return frozenset(Rejected.of(json.loads(line)).key for line in lines)
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def _from_floats(rows: np.ndarray, path: Path) -> np.ndarray:
    low, high = float(rows.min()), float(rows.max())
    if not (low >= 0 and high <= 1):
        found = "values that are no numbers (NaN)" if np.isnan(low) else f"floats from {low:g} to {high:g}"
        raise UserError(
            f"arr_0 of {path} holds {found}; expected uint8, or floats in [0, 1]", "save pixels from 0 to 255 as uint8"
        )
    return to_bytes(torch.from_numpy(rows.astype(np.float32)).permute(0, 3, 1, 2)).numpy()
