"""`titokctl reconstruct`: images through a tokenizer and back, looked at and measured."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.pipeline import DecodedUnit, decode_units
from titokctl.data.sources import Rejected, Source, Unit, open_source
from titokctl.data.workers import available_cores
from titokctl.distributed.stop import StopRequest
from titokctl.dry_run import about_to_write, is_dry_run
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.features import fixed_batches
from titokctl.evaluation.image_set import unreadable
from titokctl.evaluation.reconstruction import reconstructed
from titokctl.formats.atomic import make_folder, write_json
from titokctl.formats.picture import grid, save_png
from titokctl.formats.run_folder import versions
from titokctl.formats.sample_set import IDS, MANIFEST, SampleSet
from titokctl.jobs.evaluate.reconstruct_scores import AUTO, Judges, ReconstructScores, check_count, find_judges
from titokctl.jobs.plan import WritePlan, source_read
from titokctl.models.device import default_batch_size
from titokctl.models.precision import precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.progress import Progress
from titokctl.weights.chain import pick_tokenizer
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_tokenizer

FORMAT = "titokctl/reconstruction"
FORMAT_VERSION = 1
PICTURE, RESULT = "reconstructions.png", "reconstruction.json"
_SHOWN = 16
_COLUMNS = 8
Pair = tuple[np.ndarray, np.ndarray]  # original and reconstruction, each (S, S, 3) uint8


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
    data = _images_of(data)
    source = open_source(data, keep_index=not is_dry_run())
    model = load_tokenizer(name, device, fetch=not is_dry_run())
    if not model.config.pixel_decoder:
        raise UserError(f"{name} was trained in stage proxy only and makes no pixels", "train its decoder (--init)")
    preprocessing = PreprocessingConfig(size=model.config.image_size)
    units = _spread(source, num_images)
    judges, total = find_judges(features, lpips, device, progress), sum(unit.count for unit in units)
    check_count(judges, total, progress)
    about_to_write(lambda: _plan(source_read(data, source) | {"tokenizer": name}, output, total, judges, device))
    make_folder(output)  # before hours are spent on what goes into it
    scores = ReconstructScores(judges, total, device, model.config.codebook_size)
    progress.start("reconstruct", total)
    decoded = decode_units(source, units, preprocessing, available_cores())
    with precision("float32", device), closing(decoded):  # type: ignore[type-var]
        shown, rejected = _through(model, decoded, scores, progress, stop)
    progress.close()
    if rejected:
        if not skip_bad or not shown:
            raise UserError(unreadable(rejected), "mend or remove them, or do without them with --skip-bad")
        progress.warn(unreadable(rejected))
    about = {
        "tokenizer": name,
        "weights_sha256": weights_sha256(model),
        "source": source.description,
        "preprocessing": preprocessing.model_dump(mode="json"),
        "rounding": "clipped to [0, 1], times 255, rounded",
        "features": judges.extractor and {"name": judges.extractor.name, **judges.extractor.description},
    }
    result = ReconstructResult(output=str(output), **scores.result(), skipped=len(rejected), about=about)
    save_png(output / PICTURE, picture(shown))
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, "versions": versions()}
    write_json(output / RESULT, header | asdict(result))
    return result


def _through(
    model: TiTok, decoded: Iterable[DecodedUnit], scores: ReconstructScores, progress: Progress, stop: StopRequest
) -> tuple[list[Pair], list[Rejected]]:
    """All images through the tokenizer into `scores`; returns the first pairs, and images that gave no pixels."""
    batch_size = default_batch_size(model.latent_tokens.device, "reconstruct")
    shown: list[Pair] = []
    rejected: list[Rejected] = []

    def pieces() -> Iterator[np.ndarray]:
        for unit in decoded:
            rejected.extend(unit.rejected)
            progress.advance(len(unit.rejected))
            yield from (unit.pixels[i : i + batch_size] for i in range(0, len(unit.pixels), batch_size))

    for originals in fixed_batches(pieces(), batch_size):
        stop.check("Nothing was written.")
        tokens, made = reconstructed(model, originals)
        scores.add(originals, made, tokens)
        shown += list(zip(originals, made, strict=True))[: _SHOWN - len(shown)]
        progress.advance(len(originals))
    return shown, rejected


def _images_of(data: Sequence[str]) -> Sequence[str]:
    """`data`, or the image files of the sample set that it is, whose grid is none of them."""
    folder = Path(data[0])
    if len(data) > 1 or not ((folder / MANIFEST).is_file() and (folder / IDS).is_file()):
        return data
    found = SampleSet.open(folder)
    if not found.images.is_dir():
        raise UserError(
            f"{folder} is a sample set whose images are in {found.images.name}; expected image files or shards",
            "draw it with --format png, or compare it with images by `titokctl fid`",
        )
    return [str(found.images)]


def _plan(reads: dict[str, Any], output: Path, total: int, judges: Judges, device: str) -> WritePlan:
    network = judges.extractor
    settings = {"features": network.name if network else None, "lpips": judges.lpips is not None, "device": device}
    is_there = any((output / name).exists() for name in (PICTURE, RESULT))
    return WritePlan(reads, output, total, settings=settings | {"files": [PICTURE, RESULT]}, replaces=is_there)


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


def picture(pairs: Sequence[Pair], columns: int = _COLUMNS) -> np.ndarray:
    """Originals over their reconstructions, `columns` pairs a row: (h, w, 3) uint8.

    Args:
        pairs: (original, reconstruction), each (S, S, 3) uint8, at least one.
    """
    return np.concatenate([grid(np.stack(rows), len(rows) // 2) for rows in _rows(pairs, min(columns, len(pairs)))])


def _rows(pairs: Sequence[Pair], columns: int) -> Iterator[list[np.ndarray]]:
    blank = np.full_like(pairs[0][0], 255)
    for first in range(0, len(pairs), columns):
        row = list(pairs[first : first + columns])
        row += [(blank, blank)] * (columns - len(row))
        yield [original for original, _ in row] + [reconstruction for _, reconstruction in row]
