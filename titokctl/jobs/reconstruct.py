"""`titokctl reconstruct`: images through a tokenizer and back, looked at and measured."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import to_bytes, to_float
from titokctl.data.pipeline import decode_units
from titokctl.data.sources import Rejected, Source, Unit, open_source
from titokctl.data.workers import available_cores
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.codebook_usage import codebook_usage
from titokctl.formats.atomic import make_folder, write_json
from titokctl.formats.picture import grid, save_png
from titokctl.formats.run_folder import versions
from titokctl.jobs.chain import pick_tokenizer
from titokctl.jobs.plans import source_read
from titokctl.jobs.reconstruct_scores import AUTO, Judges, ReconstructScores, check_count, find_judges
from titokctl.models.precision import precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.progress import Plan, Progress, about_to_write
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_tokenizer

FORMAT = "titokctl/reconstruction"
FORMAT_VERSION = 1
PICTURE, RESULT = "reconstructions.png", "reconstruction.json"
_SHOWN = 16
_COLUMNS = 8
_BATCH_SIZE = {"cpu": 16}
_NAMED_BAD = 5


@dataclass(frozen=True)
class ReconstructResult:
    """Errors over all images, how much of the codebook they use (None without one), what was compared.

    `psnr_pooled` (dB) follows from the squared error of all images together, `psnr_mean` averages over images; `lpips`
    is the mean, None without its weights. `distances` between originals and reconstructions: rfid on Inception's
    features, fd-<name> on others, and kid of the same.
    """

    output: str
    images: int
    psnr_pooled: float
    psnr_mean: float
    ssim: float | None
    lpips: float | None
    distances: dict[str, float]
    codes_used: int | None
    codebook_size: int | None
    codebook_share: float | None
    codebook_perplexity: float | None
    skipped: int
    about: dict[str, Any] = field(default_factory=dict)


def reconstruct(
    data: Sequence[str],
    tokenizer: str | None,
    output: Path,
    runs: Path,
    *,
    num_images: int | None = None,
    features: str = AUTO,
    lpips: bool | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
    progress: Progress,
    stop: StopRequest,
) -> ReconstructResult:
    """Encode and decode images; write the picture and the numbers into the folder `output`.

    Args:
        data: what `open_source` takes.
        tokenizer: what `load_tokenizer` takes; None for the newest in the runs folder.
        num_images: how many, spread evenly over the source; None for all.
        features: network for the distance between the sets; "auto" takes Inception, else lite0, if its weights are
            here; "none" does without.
        lpips: whether to compute it; None where its weights are here.
        skip_bad: go on without images that can't be read.

    Raises: UserError for unreadable images or an output that exists; Stopped after a signal.
    """
    if num_images is not None and num_images < 1:
        raise UsageError(f"-n must be at least 1, not {num_images}")
    _check_output(output, overwrite)
    name = pick_tokenizer(tokenizer, runs, progress.say, pixels=True)
    source = open_source(data)
    model = load_tokenizer(name, device)
    if not model.config.pixel_decoder:
        raise UserError(f"{name} was trained in stage proxy only and makes no pixels", "train its decoder (--init)")
    preprocessing = PreprocessingConfig(size=model.config.image_size)
    units = _spread(source, num_images)
    judges, total = find_judges(features, lpips, device, progress), sum(unit.count for unit in units)
    check_count(judges, total, progress)
    about_to_write(lambda: _plan(source_read(data, source) | {"tokenizer": name}, output, total, judges, device))
    make_folder(output)  # before hours are spent on what goes into it
    loop = _Loop(model, judges, total, device, stop)
    progress.start("reconstruct", total)
    decoded = decode_units(source, units, preprocessing, available_cores())
    with precision("float32", device), closing(decoded):  # type: ignore[type-var]
        for unit in decoded:
            loop.take(unit.pixels, unit.rejected, progress)
        loop.flush(progress)
    progress.close()
    loop.check_rejected(skip_bad, progress)
    about = {
        "tokenizer": name,
        "weights_sha256": weights_sha256(model),
        "source": source.description,
        "preprocessing": preprocessing.model_dump(mode="json"),
        "rounding": "clipped to [0, 1], times 255, rounded",
        "features": None
        if judges.extractor is None
        else {"name": judges.extractor.name, **judges.extractor.description},
    }
    return _write(output, loop, about)


def _plan(reads: dict[str, Any], output: Path, total: int, judges: Judges, device: str) -> Plan:
    network = judges.extractor
    settings = {"features": network.name if network else None, "lpips": judges.lpips is not None, "device": device}
    is_there = any((output / name).exists() for name in (PICTURE, RESULT))
    return Plan(reads, output, total, settings=settings | {"files": [PICTURE, RESULT]}, replaces=is_there)


class _Loop:
    """Batches through the tokenizer, and what is kept of them."""

    def __init__(self, model: TiTok, judges: Judges, total: int, device: str, stop: StopRequest) -> None:
        self.model, self.device, self.stop = model, device, stop
        self.batch_size = _BATCH_SIZE.get(torch.device(device).type, 64)
        self.scores = ReconstructScores(judges, total, device)
        self.rejected: list[Rejected] = []
        self.ids: list[np.ndarray] = []
        self.shown: list[tuple[np.ndarray, np.ndarray]] = []
        self.waiting: list[np.ndarray] = []
        self.count = 0

    def take(self, pixels: np.ndarray, rejected: list[Rejected], progress: Progress) -> None:
        """Take in the pixels (n, S, S, 3) uint8 of one unit; whole batches go through at once."""
        self.rejected += rejected
        progress.advance(len(rejected))
        self.waiting += list(pixels)
        while len(self.waiting) >= self.batch_size:
            self._batch(progress)

    def flush(self, progress: Progress) -> None:
        """Send what is left through."""
        if self.waiting:
            self._batch(progress)

    def check_rejected(self, skip_bad: bool, progress: Progress) -> None:
        """Raise UserError when images could not be read and that was not allowed, or none is left."""
        if self.rejected:
            named = "; ".join(f"{bad.key} ({bad.reason})" for bad in self.rejected[:_NAMED_BAD])
            text = f"{len(self.rejected):,} images can't be read: {named}"
            if not skip_bad or not self.count:
                raise UserError(text, "mend or remove them, or do without them with --skip-bad")
            progress.warn(text)

    def _batch(self, progress: Progress) -> None:
        self.stop.check("Nothing was written.")
        originals = np.stack(self.waiting[: self.batch_size])
        del self.waiting[: self.batch_size]
        reconstructions = self._through(originals)
        self.scores.add(originals, reconstructions)
        self.shown += list(zip(originals, reconstructions, strict=True))[: _SHOWN - len(self.shown)]
        self.count += len(originals)
        progress.advance(len(originals))

    def _through(self, pixels: np.ndarray) -> np.ndarray:
        """(n, S, S, 3) uint8 -> the same through encoder, quantizer and decoder."""
        codes = self.model.tokenize(to_float(torch.from_numpy(pixels).to(self.device)))
        if self.model.config.is_discrete:
            self.ids.append(codes.cpu().numpy())
        return to_bytes(self.model.detokenize(codes)).cpu().numpy()


def _check_output(output: Path, overwrite: bool) -> None:
    taken = [name for name in (PICTURE, RESULT) if (output / name).exists()]
    if output.is_file():
        raise UsageError(f"-o {output} is a file; the result is a folder")
    if taken and not overwrite:
        raise UserError(f"{output / taken[0]} exists already", "choose another -o, or replace it with --overwrite")


def _spread(source: Source, num_images: int | None) -> list[Unit]:
    """Units of `num_images` images spread evenly over the source; its own units when all are wanted."""
    total = len(source)
    if num_images is None or num_images >= total:
        return source.units
    positions = [i * total // num_images for i in range(num_images)]
    return [Unit(i, position, 1, str(position)) for i, position in enumerate(positions)]


def _write(output: Path, loop: _Loop, about: dict[str, Any]) -> ReconstructResult:
    score = loop.scores.result()
    size = loop.model.config.codebook_size
    usage = codebook_usage(np.concatenate(loop.ids), size) if loop.ids and size else None
    result = ReconstructResult(
        output=str(output),
        images=score.pairs.images,
        psnr_pooled=score.pairs.psnr_pooled,
        psnr_mean=score.pairs.psnr_mean,
        ssim=score.pairs.ssim,
        lpips=score.lpips,
        distances=score.distances,
        codes_used=usage.used if usage else None,
        codebook_size=size,
        codebook_share=usage.share if usage else None,
        codebook_perplexity=usage.perplexity if usage else None,
        skipped=len(loop.rejected),
        about=about,
    )
    save_png(output / PICTURE, picture(loop.shown))
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "versions": versions()}
    write_json(output / RESULT, header | asdict(result))
    return result


def picture(pairs: Sequence[tuple[np.ndarray, np.ndarray]], columns: int = _COLUMNS) -> np.ndarray:
    """Originals over their reconstructions, `columns` pairs a row: (h, w, 3) uint8.

    Args:
        pairs: (original, reconstruction), each (S, S, 3) uint8, at least one.
    """
    return np.concatenate([grid(np.stack(rows), len(rows) // 2) for rows in _rows(pairs, min(columns, len(pairs)))])


def _rows(pairs: Sequence[tuple[np.ndarray, np.ndarray]], columns: int) -> Iterator[list[np.ndarray]]:
    blank = np.full_like(pairs[0][0], 255)
    for first in range(0, len(pairs), columns):
        row = list(pairs[first : first + columns])
        row += [(blank, blank)] * (columns - len(row))
        yield [original for original, _ in row] + [reconstruction for _, reconstruction in row]
