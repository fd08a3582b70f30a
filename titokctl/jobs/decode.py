"""`titokctl decode`: a token cache -> images, in one of the forms of a sample set's images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.context import Context
from titokctl.data.image_decoder import ENCODERS, ImageDecoder, recorded_precision
from titokctl.errors import UsageError
from titokctl.formats.image_output import PRODUCTS, ChunkWriter, ImageFormat, OutputSpec, Rows, open_output
from titokctl.formats.replacing import NPZ, files_to_delete, seal
from titokctl.formats.run_folder import versions
from titokctl.formats.sample_set import IDS
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.formats.unfinished import Unfinished, check_output, finished_already
from titokctl.jobs.caches.rows import tokenizer_of
from titokctl.jobs.plan import WritePlan, cache_read, image_bytes
from titokctl.models.device import default_batch_size
from titokctl.models.inference import fastest_precision, kernels
from titokctl.models.precision import Precision
from titokctl.weights.hashes import weights_sha256

_CHUNK_IMAGES = 1024
_RELEASE_ROWS = 1 << 16
_FILES = (".png", ".webp", ".jpg", ".jpeg", ".tar")  # endings that a folder should not have


@dataclass(frozen=True)
class Decoded:
    """The images that were written."""

    output: Path
    image_format: str
    images: int
    view: str


@dataclass(frozen=True)
class Decode:
    """Decode every row of the token cache at `path` into `output`, or resume that.

    Args:
        image_format: None for "npz" where `output` ends in .npz, else "png".
        view: name of the view.
        tokenizer: None for the one that the cache records.
        batch_size: images decoded at once.
        precision: None for the one in which a sample set was made, else for the device's fastest.
        overwrite: replace a file or folder at `output`.
    """

    path: Path
    output: Path
    image_format: ImageFormat | None = None
    view: str = PLAIN
    tokenizer: str | None = None
    batch_size: int | None = None
    precision: Precision | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        form, suffix = self._form, self.output.suffix
        if form == "none":
            raise UsageError("--format none is for `titokctl sample`", "choose npz, png, webp or wds")
        if (form == "npz") != (suffix == ".npz") or suffix in _FILES:
            problem = "does not end in .npz" if form == "npz" else f"names a file, but {form} output is a folder"
            hint = "e.g. -o out.npz, or -o images/ --format webp; `titokctl preview` puts rows into one picture"
            raise UsageError(f"-o {self.output} {problem}", hint)
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"--batch-size must be at least 1, not {self.batch_size}")

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written.

        Raises UserError when the output exists or was begun with other settings, or the tokenizer is not found.
        """
        work = self._work(context, fetch=False)
        work.unfinished.check_not_at_work()
        finished = work.unfinished.is_finished(work.settings, self.overwrite)
        kept = ChunkWriter(work.unfinished.folder, None)
        if not finished and work.unfinished.resumes(work.settings, self.overwrite):
            kept.read_chunks()
        return WritePlan(
            reads=cache_read(work.cache, self.view),
            output=self.output,
            count=len(work.cache),
            done=len(work.cache) if finished else kept.num_done,
            num_bytes=image_bytes(self._form, len(work.cache), work.cache.header.image_size),
            settings={name: work.settings[name] for name in ("image_format", "precision", "device")},
            removes=() if finished else files_to_delete(self.output),
        )

    def run(self, context: Context) -> Decoded:
        """Write the images. Raises as `plan`; Stopped after a signal, with the finished part kept beside the output."""
        work = self._work(context, fetch=True)
        if work.unfinished.is_finished(work.settings, self.overwrite):
            context.say(finished_already(self.output))
            work.unfinished.remove_if_idle()
            return self._result(work)
        with work.unfinished.locked():
            work.unfinished.begin(work.settings, self.overwrite)
            work.decode(context)
            work.unfinished.publish(work.unfinished.folder / PRODUCTS[self._form], work.settings)
        return self._result(work)

    def _result(self, work: "_Work") -> Decoded:
        return Decoded(self.output, self._form, len(work.cache), self.view)

    @property
    def _form(self) -> ImageFormat:
        return self.image_format or ("npz" if self.output.suffix == ".npz" else "png")

    def _work(self, context: Context, fetch: bool) -> "_Work":
        check_output(self.output, self.overwrite, NPZ if self._form == "npz" else None)
        in_a_sample_set = self.path / IDS
        path = in_a_sample_set if in_a_sample_set.is_file() else self.path
        cache, device = TokenCache.open_whole(path), context.device
        rows = cache.view(self.view)
        model = tokenizer_of(cache, self.tokenizer, context, fetch)
        precision = self.precision or recorded_precision(cache.header, device) or fastest_precision(device)
        settings = {
            "command": "decode",
            "cache": cache.sha256,
            "view": self.view,
            "weights_sha256": weights_sha256(model),
            "image_format": self._form,
            "precision": precision,
            "kernels": kernels(device, precision),
            "device": torch.device(device).type,
            "torch": versions()["torch"],
            "batch_size": self.batch_size or default_batch_size(device, "decode"),
        }
        encode = ENCODERS.get(self._form)
        spec = OutputSpec(self._form, model.config.image_size, cache.labels, cache.class_names, encode)
        decoder = ImageDecoder(model, device, precision)
        return _Work(Unfinished(self.output), settings, cache, rows, decoder, spec)


@dataclass(frozen=True)
class _Work:
    """A decoding that was checked.

    Args:
        settings: everything that decides about the images.
        rows: (N, K) ids or (N, K, C) latents of the view.
    """

    unfinished: Unfinished
    settings: dict[str, Any]
    cache: TokenCache
    rows: np.ndarray
    decoder: ImageDecoder
    spec: OutputSpec

    def decode(self, context: Context) -> None:
        """Decode the missing images, and complete the product in the folder of the unfinished work."""
        folder = self.unfinished.folder
        store = open_output(folder, self.spec)
        with ChunkWriter(folder, store) as writer:
            writer.read_chunks()
            context.progress.start("decode", len(self.cache), "images", writer.num_done)
            try:
                self._decode_missing(writer, context)
            finally:
                context.progress.close()
            if store is not None:
                store.finish([(piece.count, piece.crc) for piece in writer.in_order(len(self.cache))])
        if self.spec.image_format in ("png", "webp"):
            seal(folder / PRODUCTS[self.spec.image_format], "images")

    def _decode_missing(self, writer: ChunkWriter, context: Context) -> None:
        total, batch, stop = len(self.cache), self.settings["batch_size"], context.stop
        for first in range(0, total, batch):
            if first in writer.done:
                continue
            block = self.rows[first : first + batch]
            writer.add(first, len(block), partial(_without_ids, self.decoder.begin(block, batch)))
            context.progress.advance(len(block))
            if writer.num_pending >= _CHUNK_IMAGES or stop.requested:
                writer.commit(wait=stop.requested)
                stop.check(f"{writer.num_done:,} of {total:,} images are kept beside the output.")
            if first % _RELEASE_ROWS < batch:
                self.cache.release()
        writer.commit()


def _without_ids(fetch: Callable[[], np.ndarray]) -> Rows:
    images = fetch()
    return Rows(np.empty((len(images), 0), np.uint16), images)
