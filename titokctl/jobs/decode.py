"""`titokctl decode`: a token cache -> images, in any of the forms of a sample set's."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.differences import flat_differences
from titokctl.data.image_decoder import ENCODERS, ImageDecoder, recorded_precision
from titokctl.distributed.stop import StopRequest
from titokctl.dry_run import about_to_write
from titokctl.errors import UsageError, UserError
from titokctl.formats.atomic import disk_errors, read_json, write_json
from titokctl.formats.chunk_writer import ChunkWriter, Rows
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.image_output import PRODUCTS, ImageFormat, open_output
from titokctl.formats.run_folder import versions
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.jobs.caches.rows import tokenizer_of
from titokctl.jobs.plan import WritePlan, cache_read, image_bytes
from titokctl.models.device import default_batch_size
from titokctl.models.inference import fastest_precision, kernels
from titokctl.models.precision import Precision
from titokctl.progress import Progress
from titokctl.weights.hashes import weights_sha256

_CHUNK_IMAGES = 1024
_RELEASE_ROWS = 1 << 16
_SETTINGS = "settings.json"
_FILES = (".png", ".webp", ".jpg", ".jpeg", ".tar")  # names of one file, where a folder is made


@dataclass(frozen=True)
class Decoded:
    """The images that were written."""

    output: Path
    image_format: str
    images: int
    view: str


def decode(
    path: Path,
    output: Path,
    runs: Path,
    *,
    image_format: ImageFormat | None = None,
    view: str = PLAIN,
    tokenizer: str | None = None,
    batch_size: int | None = None,
    precision_name: Precision | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress,
    stop: StopRequest,
) -> Decoded:
    """Decode every row of the cache at `path` into `output`, or go on with it.

    Args:
        image_format: None for "npz" where `output` ends in .npz, else "png".
        view: name of the view.
        tokenizer: None for the one that the cache records.
        batch_size: images decoded at once.
        precision_name: "float32" or "bf16"; None for what a sample set was made in, else for the device's fastest.

    Raises: UserError when the output exists, was begun with other settings, or the tokenizer is not here; Stopped after
        a signal, with the finished part kept in a folder beside the output.
    """
    chosen = _checked_format(output, image_format, overwrite)
    cache = TokenCache.open(path)
    rows = cache.view(view)
    model = tokenizer_of(cache, tokenizer, runs, device, progress.say)
    precision = precision_name or recorded_precision(cache.header, device) or fastest_precision(device)
    batch = batch_size or default_batch_size(device, "decode")
    settings = {
        "cache": cache.sha256,
        "view": view,
        "weights_sha256": weights_sha256(model),
        "image_format": chosen,
        "precision": precision,
        "kernels": kernels(device, precision),
        "device": torch.device(device).type,
        "torch": versions()["torch"],
        "batch_size": batch,
    }
    decoder = ImageDecoder(model, device, precision)
    work = output.with_name(f".{output.name}.unfinished")
    about_to_write(lambda: _plan(cache, output, work, settings, overwrite))
    with disk_errors(output):
        work.parent.mkdir(parents=True, exist_ok=True)
    with folder_lock(work):
        _check_begun(work, settings, overwrite)
        store = open_output(
            chosen, work, model.config.image_size, cache.labels, cache.class_names, ENCODERS.get(chosen)
        )
        with ChunkWriter(work, store) as writer:
            writer.read_chunks()
            _decode_missing(decoder, cache, rows, writer, batch, progress, stop)
            if store is not None:
                store.finish([(piece.count, piece.crc) for piece in writer.in_order(len(cache))])
        _put_in_place(work / PRODUCTS[chosen], output)
        shutil.rmtree(work)
    return Decoded(output, chosen, len(cache), view)


def _decode_missing(
    decoder: ImageDecoder,
    cache: TokenCache,
    rows: np.ndarray,
    writer: ChunkWriter,
    batch: int,
    progress: Progress,
    stop: StopRequest,
) -> None:
    progress.start("decode", len(cache), "images", writer.num_done)
    try:
        for first in range(0, len(cache), batch):
            if first in writer.done:
                continue
            block = rows[first : first + batch]
            writer.add(first, len(block), partial(_without_ids, decoder.begin(block, batch)))
            progress.advance(len(block))
            if writer.num_pending >= _CHUNK_IMAGES or stop.requested:
                writer.commit(wait=stop.requested)
                stop.check(f"{writer.num_done:,} of {len(cache):,} images are kept beside the output.")
            if first % _RELEASE_ROWS < batch:
                cache.release()
        writer.commit()
    finally:
        progress.close()


def _without_ids(fetch: Callable[[], np.ndarray]) -> Rows:
    images = fetch()
    return Rows(np.empty((len(images), 0), np.uint16), images)


def _checked_format(output: Path, image_format: ImageFormat | None, overwrite: bool) -> ImageFormat:
    chosen: ImageFormat = image_format or ("npz" if output.suffix == ".npz" else "png")
    if chosen == "none":
        raise UsageError("--format none is for `titokctl sample`", "name the form that the images should have")
    if (chosen == "npz") != (output.suffix == ".npz") or output.suffix in _FILES:
        what = "an .npz file" if chosen == "npz" else f"a folder of {chosen}"
        hint = "e.g. -o out.npz, or -o images/ --format webp; `titokctl preview` puts rows into one picture"
        raise UsageError(f"-o {output} is no name for {what}", hint)
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already", "choose another -o, or replace it with --overwrite")
    return chosen


def _plan(cache: TokenCache, output: Path, work: Path, settings: dict[str, Any], overwrite: bool) -> WritePlan:
    kept = ChunkWriter(work, None)
    if not _is_other(work, settings, overwrite):
        kept.read_chunks()
    return WritePlan(
        reads=cache_read(cache, settings["view"]),
        output=output,
        count=len(cache),
        done=kept.num_done,
        num_bytes=image_bytes(settings["image_format"], len(cache), cache.header.image_size),
        settings={name: settings[name] for name in ("image_format", "precision", "device")},
        replaces=output.exists(),
    )


def _is_other(work: Path, settings: dict[str, Any], overwrite: bool) -> bool:
    """Whether `work` was begun with other settings. Raises UserError then, unless `overwrite`."""
    begun = work / _SETTINGS
    changed = flat_differences(read_json(begun), settings) if begun.is_file() else []
    if changed and not overwrite:
        raise UserError(
            f"{work} was begun with other settings:\n" + "\n".join(f"  {line}" for line in changed),
            "repeat the command with those, remove that folder, or start over with --overwrite",
        )
    return bool(changed)


def _check_begun(work: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Begin, or go on with what was begun with the same settings."""
    if _is_other(work, settings, overwrite):
        for path in work.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(work / _SETTINGS, settings)


def _put_in_place(product: Path, output: Path) -> None:
    with disk_errors(output):
        if output.is_dir() and not output.is_symlink():
            os.replace(output, product.with_name("replaced"))  # goes with the folder of the unfinished output
        os.replace(product, output)
