"""`titokctl tokenize`: images -> a token cache, every image exactly once, whatever happens on the way.

The source is cut into units. Decoded units wait in a short queue; each is encoded in tiles of a fixed number of images
and written as a part, whole or not at all. The same command goes on with the parts that are there; when all are, they
are merged in the order of the source.
"""

import itertools
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from titokctl import __version__
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.pipeline import DecodedUnit, decode_units
from titokctl.data.sources import Source, Unit, open_source
from titokctl.data.workers import available_cores
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UsageError, UserError
from titokctl.formats.token_cache import CacheHeader, TokenCache
from titokctl.formats.token_merge import Tally, all_parts, merge, write_rejected
from titokctl.formats.token_parts import PartsFolder, TokenPart
from titokctl.jobs.chain import pick_tokenizer
from titokctl.jobs.tile_encoder import VIEWS, TileEncoder, default_tile, made_with
from titokctl.models.precision import Precision, precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.progress import Progress
from titokctl.weights.hashes import encoder_sha256, weights_sha256
from titokctl.weights.load import load_tokenizer

DEFAULT_MAX_REJECTED = 0.001
_SAVED = "finished parts are kept."


@dataclass(frozen=True)
class TokenizeResult:
    """What was made. rows + rejected = samples."""

    output: Path
    rows: int
    rejected: int
    samples: int
    rejected_by_kind: dict[str, int]
    views: list[str]
    classes: int
    units_reused: int
    seconds: float
    images_per_second: float
    sha256: str


def tokenize(
    paths: Sequence[Path | str],
    output: Path,
    tokenizer: str | None,
    runs: Path,
    *,
    views: Sequence[str] = ("flip",),
    batch_size: int | None = None,
    precision_name: Precision = "float32",
    workers: int | None = None,
    max_rejected: float = DEFAULT_MAX_REJECTED,
    source_kind: str | None = None,
    accept_cut: bool = False,
    crop: str = "center",
    exif: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress,
    stop: StopRequest,
) -> TokenizeResult:
    """Make the token cache `output` of all images in `paths`, or go on with it.

    Args:
        paths: what `open_source` takes.
        output: the file to make; `<output>.parts/` holds what is finished until then.
        tokenizer: what `load_tokenizer` takes; None for the newest in the runs folder.
        runs: the runs folder.
        views: further views of each image, names of VIEWS.
        batch_size: images a tile; None for what suits the device. On a CPU the ids don't depend on it.
        workers: decoding threads; None for the number of cores.
        max_rejected: the largest share of images that may be unusable.

    Raises: UserError when the output exists, the settings changed, or too many images are unusable; Stopped after a
        signal.
    """
    check_output(output, overwrite)
    _check_settings(views, precision_name, device)
    missing = [p for p in map(Path, paths) if not p.exists() and "{" not in str(p)]
    if missing:
        raise UserError(f"no such file or folder: {missing[0]}")
    name = pick_tokenizer(tokenizer, runs, progress.say)
    source = open_source(paths, source_kind, accept_cut)
    model = load_tokenizer(name, device)
    if not model.config.is_discrete:
        raise UserError(f"the tokenizer {name} makes Gaussian latents, not ids", "name one with a codebook")
    preprocessing = PreprocessingConfig.model_validate({"size": model.config.image_size, "crop": crop, "exif": exif})
    tile = batch_size or default_tile(device)
    header = _header(source, model, preprocessing, views, made_with(tile, precision_name, device))
    _check_space(output, header, len(source))
    encoder = TileEncoder(model, views, tile, device)
    with precision(precision_name, device):
        return _Job(source, preprocessing, encoder, header, output, progress, stop).run(
            workers, max_rejected, overwrite
        )


def check_output(output: Path, overwrite: bool) -> None:
    """Raise UserError when `output` is taken and may not be replaced."""
    if output.is_dir():
        raise UserError(f"{output} is a folder", "name a file, e.g. -o tokens.h5")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists already", "choose another -o, or replace it with --overwrite")


@dataclass
class _Job:
    """One run of the command over all units that are not finished."""

    source: Source
    preprocessing: PreprocessingConfig
    encoder: TileEncoder
    header: CacheHeader
    output: Path
    progress: Progress
    stop: StopRequest

    def run(self, workers: int | None, max_rejected: float, overwrite: bool) -> TokenizeResult:
        """Finish the parts, then merge them."""
        began = time.monotonic()
        folder, units = PartsFolder(self.output), self.source.units
        with folder.locked():
            resumed = folder.begin(self.header, len(units), overwrite)
            tally = Tally()
            todo = [unit for unit in units if not (resumed and self._is_finished(folder, unit, tally))]
            reused = tally.units
            if reused:
                self.progress.say(f"going on with {self.output}: {reused:,} of {len(units):,} parts are finished")
            before = tally.samples
            self._encode(folder, todo, tally, workers)
            seconds = time.monotonic() - began
            tally.reject(self._problems())
            self._check_rejected(folder, tally, max_rejected)
            self._merge(folder, tally)
            folder.remove()
        return TokenizeResult(
            output=self.output,
            rows=tally.rows,
            rejected=tally.rejected,
            samples=tally.samples,
            rejected_by_kind=tally.by_kind,
            views=["plain", *self.header.views],
            classes=len(self.header.class_names),
            units_reused=reused,
            seconds=time.monotonic() - began,
            images_per_second=(len(self.source) - before) / max(seconds, 1e-9),
            sha256=TokenCache.open(self.output, check_ids=False).sha256,
        )

    def _is_finished(self, folder: PartsFolder, unit: Unit, tally: Tally) -> bool:
        self.stop.check(_SAVED)
        try:
            part = folder.read(unit.index)
        except UserError as error:
            self.progress.say(f"{error.message}: made again")
            return False
        if part is None or (part.first, part.count) != (unit.first, unit.count):
            return False
        tally.add(part)
        return True

    def _encode(self, folder: PartsFolder, todo: list[Unit], tally: Tally, workers: int | None) -> None:
        self.progress.start("tokenize", len(self.source), done=tally.samples)
        # Two threads at least: with one, decoding would wait for the encoder.
        workers = max(workers or available_cores(), 2)
        with closing(decode_units(self.source, todo, self.preprocessing, workers)) as decoded:  # type: ignore[type-var]
            for unit, images in zip(todo, decoded, strict=True):
                self.stop.check(_SAVED)
                part = self._part(unit, images)
                folder.write(part)
                tally.add(part)
                self.progress.advance(len(part.rejected))
        self.progress.close()
        self.stop.check(_SAVED)

    def _part(self, unit: Unit, decoded: DecodedUnit) -> TokenPart:
        ids, views = self.encoder.ids(decoded.pixels, self._tile_done)
        keys = np.array([key.encode() for key in decoded.keys], dtype=None if decoded.keys else "S1")
        rejected = [{"key": p.key, "kind": p.kind, "reason": p.text} for p in decoded.rejected]
        return TokenPart(unit.index, unit.first, unit.count, unit.name, ids, decoded.labels, keys, views, rejected)

    def _tile_done(self, images: int) -> None:
        self.progress.advance(images)
        self.stop.check(_SAVED)

    def _problems(self) -> Iterator[dict[str, str]]:
        """What the source itself could not give."""
        return ({"key": p.key, "kind": p.kind, "reason": p.text} for p in self.source.problems)

    def _check_rejected(self, folder: PartsFolder, tally: Tally, max_rejected: float) -> None:
        """Write the list of rejected images. Raises UserError when they are too many."""
        listing = self.output.with_name(self.output.name + ".rejected.jsonl")
        in_parts = (
            {"unit": part.name} | one for part in all_parts(folder, len(self.source.units)) for one in part.rejected
        )
        write_rejected(listing, itertools.chain(self._problems(), in_parts if tally.rejected else ()))
        if not tally.rejected:
            return
        self.progress.say(f"{tally.rejected:,} of {tally.samples:,} images can't be used: {listing}")
        share = tally.rejected / tally.samples
        if tally.rows == 0 or share > max_rejected:
            more = f" and {tally.rejected - len(tally.examples):,} more" * (tally.rejected > len(tally.examples))
            kept = "the finished parts are kept: run the same command "
            raise UserError(
                f"{tally.rejected:,} of {tally.samples:,} images ({share:.2%}) can't be used, more than --max-rejected "
                f"{max_rejected:g} allows: {'; '.join(tally.examples)}{more} (all in {listing})",
                "none is left"
                if tally.rows == 0
                else f"{kept}with --max-rejected {_rounded_up(share)} to do without them",
            )

    def _merge(self, folder: PartsFolder, tally: Tally) -> None:
        self.progress.start("merge", tally.rows, "rows")
        merge(folder, self.header, len(self.source.units), tally, self._tile_done)
        self.progress.close()


def _header(
    source: Source, model: TiTok, preprocessing: PreprocessingConfig, views: Sequence[str], made_with: dict[str, Any]
) -> CacheHeader:
    record = preprocessing.model_dump(mode="json")
    return CacheHeader(
        tokenizer=model.config.model_dump(mode="json"),
        encoder_sha256=encoder_sha256(model),
        weights_sha256=weights_sha256(model),
        codebook_size=model.config.codebook_size or 0,
        num_latent_tokens=model.config.num_latent_tokens,
        image_size=model.config.image_size,
        preprocessing=record,
        source=json.loads(json.dumps(source.description)),
        views={name: record | VIEWS[name][0] for name in views},
        class_names=tuple(source.class_names),
        created_by=f"titokctl {__version__}",
        made_with=made_with,
    )


def _check_settings(views: Sequence[str], precision_name: Precision, device: str) -> None:
    try:
        with precision(precision_name, device):
            pass
    except ValueError as error:
        raise UsageError(str(error)) from error
    unknown = [name for name in views if name not in VIEWS]
    if unknown:
        raise UsageError(f"there is no view named {unknown[0]!r}", f"one of: {', '.join(VIEWS)}, or none")


def _check_space(output: Path, header: CacheHeader, samples: int) -> None:
    """Parts and file lie side by side while they are merged."""
    row = (1 + len(header.views)) * header.num_latent_tokens * header.id_dtype.itemsize
    needed = 2 * samples * (row + 64)
    folder = next(p for p in output.resolve().parents if p.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{output} needs about {needed / 1e6:,.0f} MB while it is made, and {folder} has {free / 1e6:,.0f} MB free",
            "free some space, or write to another disk with -o",
        )


def _rounded_up(share: float) -> str:
    """A share just above `share`, in two digits."""
    return f"{min(1.0, share * 1.05 + 1e-6):.2g}"
