"""`titokctl decode`: a token cache -> images, in one of the forms of a sample set's images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.context import Context
from titokctl.data.image_decoder import ENCODERS, ImageDecoder, recorded_precision
from titokctl.errors import UsageError
from titokctl.formats.ids_lines import SUFFIXES, read_ids_lines
from titokctl.formats.image_output import PRODUCTS, ChunkWriter, ImageFormat, OutputSpec, Rows, open_output
from titokctl.formats.replacing import NPZ, files_to_delete, seal
from titokctl.formats.run_folder import versions
from titokctl.formats.sample_set import IDS
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.formats.unfinished import Unfinished, check_output, finished_already
from titokctl.jobs.caches.rows import tokenizer_of
from titokctl.jobs.plan import WritePlan, cache_read, image_bytes
from titokctl.jobs.tokenize.ids import check_ids
from titokctl.models.device import default_batch_size
from titokctl.models.inference import fastest_precision, kernels
from titokctl.models.precision import Precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.readable import counted
from titokctl.weights.chain import pick_tokenizer
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_tokenizer

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
        path: a token cache, the folder of a sample set, or ids as JSON (`ids_lines`), whose images keep their names.
        image_format: None for "npz" where `output` ends in .npz, else "png".
        view: name of the view.
        tokenizer: None for the one that the cache records, or for ids as JSON for the newest in the runs folder.
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
            reads=work.reads,
            output=self.output,
            count=len(work.rows),
            done=len(work.rows) if finished else kept.num_done,
            num_bytes=image_bytes(self._form, len(work.rows), work.spec.image_size),
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
        return Decoded(self.output, self._form, len(work.rows), self.view)

    @property
    def _form(self) -> ImageFormat:
        return self.image_format or ("npz" if self.output.suffix == ".npz" else "png")

    def _work(self, context: Context, fetch: bool) -> "_Work":
        check_output(self.output, self.overwrite, NPZ if self._form == "npz" else None)
        is_text = self.path.suffix in SUFFIXES and self.path.is_file()
        found = self._from_text(context, fetch) if is_text else self._from_cache(context, fetch)
        model, device = found.model, context.device
        precision = self.precision or found.precision or fastest_precision(device)
        settings = {
            "command": "decode",
            "cache": found.sha256,
            "view": self.view,
            "weights_sha256": weights_sha256(model),
            "image_format": self._form,
            "precision": precision,
            "kernels": kernels(device, precision),
            "device": torch.device(device).type,
            "torch": versions()["torch"],
            "batch_size": self.batch_size or default_batch_size(device, "decode"),
        }
        encode, size = ENCODERS.get(self._form), model.config.image_size
        names = found.names if self._form in ("png", "webp") else ()
        spec = OutputSpec(self._form, size, found.labels, found.class_names, encode, names)
        decoder = ImageDecoder(model, device, precision)
        return _Work(Unfinished(self.output), settings, found.reads, found.rows, decoder, spec, found.release)

    def _from_cache(self, context: Context, fetch: bool) -> "_Ids":
        in_a_sample_set = self.path / IDS
        cache = TokenCache.open_whole(in_a_sample_set if in_a_sample_set.is_file() else self.path)
        return _Ids(
            rows=cache.view(self.view),
            labels=cache.labels,
            sha256=cache.sha256,
            model=tokenizer_of(cache, self.tokenizer, context, fetch),
            reads=cache_read(cache, self.view),
            class_names=cache.class_names,
            precision=recorded_precision(cache.header, context.device),
            release=cache.release,
        )

    def _from_text(self, context: Context, fetch: bool) -> "_Ids":
        if self.view != PLAIN:
            raise UsageError(f"{self.path} holds one view of each image", "leave out --view")
        found = read_ids_lines(self.path)
        name = pick_tokenizer(self.tokenizer, context.runs, context.say, pixels=True)
        model = load_tokenizer(name, context.device, fetch=fetch)
        check_ids(found.rows, model.config, f"{self.path} has", name)
        if not found.names:
            context.say(
                f"the images of {self.path} are numbered: their names are missing, not unique, or can't be file names"
            )
        reads = {"ids": str(self.path), "images": len(found), "tokenizer": name}
        return _Ids(found.rows, found.labels, found.sha256, model, reads, names=found.names)


@dataclass(frozen=True)
class _Ids:
    """Rows of ids or latents, and the tokenizer that decodes them.

    Args:
        rows: (N, K) ids or (N, K, C) latents.
        labels: (N,) int32.
        sha256: of the rows.
        reads: describes them for a plan.
        precision: in which a sample set was made.
        names: of the images; () for numbers.
        release: frees the memory of rows that were read.
    """

    rows: np.ndarray
    labels: np.ndarray
    sha256: str
    model: TiTok
    reads: dict[str, Any]
    class_names: Sequence[str] = ()
    precision: Precision | None = None
    names: Sequence[str] = ()
    release: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class _Work:
    """A decoding that was checked.

    Args:
        settings: everything that decides about the images.
        reads: describes the rows for a plan.
        rows: (N, K) ids or (N, K, C) latents of the view.
        release: frees the memory of rows that were read.
    """

    unfinished: Unfinished
    settings: dict[str, Any]
    reads: dict[str, Any]
    rows: np.ndarray
    decoder: ImageDecoder
    spec: OutputSpec
    release: Callable[[], None]

    def decode(self, context: Context) -> None:
        """Decode the missing images, and complete the product in the folder of the unfinished work."""
        folder = self.unfinished.folder
        store = open_output(folder, self.spec)
        with ChunkWriter(folder, store) as writer:
            writer.read_chunks()
            context.progress.start("decode", len(self.rows), "images", writer.num_done)
            try:
                self._decode_missing(writer, context)
            finally:
                context.progress.close()
            if store is not None:
                store.finish([(piece.count, piece.crc) for piece in writer.in_order(len(self.rows))])
        if self.spec.image_format in ("png", "webp"):
            seal(folder / PRODUCTS[self.spec.image_format], "images")

    def _decode_missing(self, writer: ChunkWriter, context: Context) -> None:
        total, batch, stop = len(self.rows), self.settings["batch_size"], context.stop
        for first in range(0, total, batch):
            if first in writer.done:
                continue
            block = self.rows[first : first + batch]
            writer.add(first, len(block), partial(_without_ids, self.decoder.begin(block, batch)))
            context.progress.advance(len(block))
            if writer.num_pending >= _CHUNK_IMAGES or stop.requested:
                writer.commit(wait=stop.requested)
                stop.check(f"{writer.num_done:,} of {counted(total, 'images')} kept beside the output.")
            if first % _RELEASE_ROWS < batch:
                self.release()
        writer.commit()


def _without_ids(fetch: Callable[[], np.ndarray]) -> Rows:
    images = fetch()
    return Rows(np.empty((len(images), 0), np.uint16), images)
