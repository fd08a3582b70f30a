"""`titokctl reconstruct`: images through a tokenizer and back, shown and measured."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.order import spread_positions
from titokctl.data.shares import ImagesInBatches, all_rejected, share_of
from titokctl.data.source_check import can_be_checked, checked_source
from titokctl.data.sources import Rejected, Source, open_source
from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.baselines import SmallImagesCollector, linear_baselines, logged_baselines, shape_in_all
from titokctl.evaluation.image_sets import unreadable
from titokctl.evaluation.reconstruction import (
    AUTO,
    NONE,
    Judges,
    ReconstructScores,
    ShownPairs,
    find_judges,
    reconstructed_in_turn,
)
from titokctl.evaluation.warnings import count_warnings
from titokctl.formats.atomic import make_folder
from titokctl.formats.evaluation import (
    RECONSTRUCTION,
    RECONSTRUCTION_PICTURE,
    read_reconstruction,
    unfinished_reconstruction,
    write_reconstruction,
)
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.picture import grid
from titokctl.formats.replacing import JSON, PNG, check_free, files_to_delete
from titokctl.formats.run_folder import open_run
from titokctl.formats.sample_set import IDS, MANIFEST, SampleSet
from titokctl.formats.settings_record import recorded_settings
from titokctl.formats.unfinished import finished_already
from titokctl.jobs.plan import WritePlan, source_read
from titokctl.models.device import default_batch_size
from titokctl.models.precision import precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.chain import pick_tokenizer
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_tokenizer
from titokctl.weights.read import trained_with_exif

_PRODUCTS = {RECONSTRUCTION_PICTURE: PNG, RECONSTRUCTION: JSON}
_SHOWN = 16
_REPAIR = "repair or delete them, or leave them out with --skip-bad"
_COLUMNS = 8
Pair = tuple[np.ndarray, np.ndarray]  # original and reconstruction, each (S, S, 3) uint8


@dataclass(frozen=True)
class ReconstructResult:
    """Errors over all images, how much of the codebook they use (None without one), and what was compared.

    `psnr_pooled` (dB) follows from the squared error of all images together, `psnr_mean` averages over images; `lpips`
    is the mean, None without its weights. `psnr_mean_colour`, `psnr_pca` and `psnr_gaussian` are baselines: pooled PSNR
    of mean colours, and as `linear_baselines` has them; None for too few images, or in results of older versions.
    `distances` between originals and reconstructions: rfid on Inception's
    features, fd-<name> on others, and kid of the same. `inception_score` is that of the
    reconstructions, {} for a network without a classifier.
    """

    output: str
    images: int
    psnr_pooled: float
    psnr_mean: float
    ssim: float | None
    lpips: float | None
    distances: dict[str, float]
    inception_score: dict[str, float]
    codes_used: int | None
    codebook_size: int | None
    codebook_share: float | None
    codebook_perplexity: float | None
    skipped: int
    about: dict[str, Any] = field(default_factory=dict)
    psnr_mean_colour: float | None = None
    psnr_pca: float | None = None
    psnr_gaussian: float | None = None


@dataclass(frozen=True)
class Reconstruct:
    """Encode and decode images; write a picture and the numbers into the folder `output`.

    Making one raises UsageError for fewer than one image.

    Args:
        data: images, as `open_source` takes them, or a sample set with image files.
        tokenizer: as `load_tokenizer` takes it; None for the newest in the runs folder.
        output: the folder.
        num_images: how many, spread over the source; None for all.
        features: network for the distance between the sets; "auto" takes Inception, else lite0, if its weights are
            here; "none" does without.
        lpips: whether to compute it; None if its weights are here.
        skip_bad: leave out images that can't be read.
        overwrite: replace results in `output`.
        choices: as for `open_source`; labels don't matter here.
        exif: apply the EXIF orientation; None for what the tokenizer was trained with.
    """

    data: Sequence[Path | str]
    tokenizer: str | None = None
    output: Path = Path("reconstructed")
    num_images: int | None = None
    features: str = AUTO
    lpips: bool | None = None
    skip_bad: bool = False
    overwrite: bool = False
    choices: Choices = NO_CHOICES
    exif: bool | None = None

    def __post_init__(self) -> None:
        if self.num_images is not None and self.num_images < 1:
            raise UsageError(f"-n must be at least 1, not {self.num_images}")

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written. Raises UserError or UsageError as `run` does before it decodes images."""
        opened = self._open(context, is_plan=True)
        network, device = opened.judges.extractor, context.device
        finished = self._finished_before(opened, context) is not None
        settings = {"features": network.name if network else None, "lpips": opened.judges.lpips is not None}
        return WritePlan(
            reads=source_read(opened.data, opened.source) | {"tokenizer": opened.tokenizer},
            output=self.output,
            count=opened.count,
            done=opened.count if finished else 0,
            settings=settings | {"device": device, "files": list(_PRODUCTS)},
            removes=[] if finished else [path for name in _PRODUCTS for path in files_to_delete(self.output / name)],
        )

    def run(self, context: Context) -> ReconstructResult:
        """Write picture and numbers; of several processes, which share the images, each returns the same result.

        Raises UserError for unreadable images too, and Stopped after a signal.
        """
        opened, group = self._open(context, is_plan=False), context.group
        before = group.from_main(self._finished_before(opened, context) if group.is_main else None)
        if before is not None:
            context.say(finished_already(self.output))
            return ReconstructResult(**before)
        if group.is_main:
            make_folder(self.output)  # before hours are spent on what goes into it
        if not self.skip_bad and opened.chosen is None and can_be_checked(opened.source):
            bad = checked_source(opened.source, context).in_order()
            if bad:  # before hours of work, not after them
                raise UserError(unreadable(bad), _REPAIR)
        scores = ReconstructScores(opened.judges, opened.count, context.device, opened.model.config.codebook_size)
        shown, baselines, rejected = _through(opened, scores, context)
        if rejected:
            if not self.skip_bad or len(rejected) == opened.count:
                raise UserError(unreadable(rejected), _REPAIR)
            context.progress.warn(unreadable(rejected))
        found = scores.result(group)
        if found is not None:
            about = opened.about()
            found |= {**baselines, "skipped": len(rejected), "about": about}
            result = ReconstructResult(output=str(self.output), **found)
            write_reconstruction(self.output, asdict(result), picture(shown), opened.settings(context.device))
            found = asdict(result)
        return ReconstructResult(**group.from_main(found))

    def _finished_before(self, opened: "_Opened", context: Context) -> dict[str, Any] | None:
        """Return the fields of the result if the same command wrote it before. Raises UserError for other settings."""
        work = unfinished_reconstruction(self.output)
        if not work.is_finished(opened.settings(context.device), self.overwrite):
            return None
        if not (self.output / RECONSTRUCTION_PICTURE).is_file():
            return None
        kept = read_reconstruction(self.output)
        return {field.name: kept[field.name] for field in fields(ReconstructResult) if field.name in kept} | {
            "output": str(self.output)
        }

    def _open(self, context: Context, is_plan: bool) -> "_Opened":
        """Open everything that `run` reads; a plan downloads and keeps nothing. Raises as `plan`."""
        if self.output.is_file():
            raise UsageError(f"-o {self.output} is a file; the result is a folder")
        if context.group.is_main:  # which may have written them when others check
            # Half of the results is there after a process was killed while it moved them to their names.
            is_recorded = recorded_settings(self.output / RECONSTRUCTION) is not None
            may_replace = self.overwrite or unfinished_reconstruction(self.output).folder.is_dir()
            for product, kind in _PRODUCTS.items():
                check_free(self.output / product, may_replace or is_recorded, kind)
        group, data = context.group, _files_of(self.data)
        picked = pick_tokenizer(self.tokenizer, context.runs, context.say, pixels=True) if group.is_main else ""
        name: str = group.from_main(picked)
        with group.main_first():
            choices = self.choices.whatever_labels()
            source = open_source(data, keep_index=not is_plan, choices=choices, context=context)
            model = load_tokenizer(name, context.device, fetch=not is_plan)
        if not model.config.pixel_decoder:
            raise UserError(
                f"{name} was trained in stage proxy only and does not produce pixels", "train its decoder (--init)"
            )
        exif = trained_with_exif(name, fetch=not is_plan) if self.exif is None else self.exif
        chosen = _chosen(len(source), self.num_images)
        is_one = len(source if chosen is None else chosen) == 1  # without distances unless they were asked for
        features = NONE if self.features == AUTO and is_one else self.features
        judges = find_judges(features, self.lpips, context, fetch=not is_plan)
        opened = _Opened(name, model, data, source, chosen, judges, exif)
        if judges.extractor is not None:
            if opened.count < 2:
                raise UserError("a distance between sets needs at least 2 images", "give more, or --features none")
            for warning in count_warnings(opened.count, judges.extractor, judges.distance, instead=False):
                context.progress.warn(warning)
        return opened


@dataclass(frozen=True)
class _Opened:
    """The tokenizer, the images, and the networks that compare."""

    tokenizer: str
    model: TiTok
    data: Sequence[Path | str]
    source: Source
    chosen: Sequence[int] | None  # positions of the images; None for all
    judges: Judges
    exif: bool

    @property
    def count(self) -> int:
        return len(self.source) if self.chosen is None else len(self.chosen)

    @property
    def preprocessing(self) -> PreprocessingConfig:
        return PreprocessingConfig(size=self.model.config.image_size, exif=self.exif)

    def settings(self, device: str) -> dict[str, Any]:
        """Return everything that decides about the result, as JSON."""
        network = self.judges.extractor
        return {
            "command": "reconstruct",
            "source": self.source.description["fingerprint"],
            "images": self.count,
            "weights_sha256": weights_sha256(self.model),
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "features": network and {"name": network.name, **network.description},
            "lpips": self.judges.lpips is not None,
            "device": torch.device(device).type,
        }

    def about(self) -> dict[str, Any]:
        """Return JSON about what was compared."""
        network = self.judges.extractor
        return {
            "tokenizer": self.tokenizer,
            "weights_sha256": weights_sha256(self.model),
            "source": self.source.description,
            "preprocessing": self.preprocessing.model_dump(mode="json"),
            "rounding": "clipped to [0, 1], times 255, rounded",
            "features": network and {"name": network.name, **network.description},
        }


def trained_on(result: ReconstructResult, data: Sequence[Path | str]) -> Sequence[Path | str]:
    """Return what the tokenizer was trained on, if its run records that and it is still there; else `data`."""
    try:
        recorded = open_run(Path(str(result.about["tokenizer"]))).inputs["data"]["paths"]
        paths = [Path(path) for path in recorded]
    except (UserError, OSError, KeyError, TypeError):
        return data
    here = Path.cwd()
    found = [path.relative_to(here) if path.is_relative_to(here) else path for path in paths if path.exists()]
    return found if found and len(found) == len(paths) else data


def _through(
    opened: _Opened, scores: ReconstructScores, context: Context
) -> tuple[list[Pair], dict[str, float], list[Rejected]]:
    """Take this process's images through the tokenizer into `scores`.

    Returns some pairs, spread over the images of all processes, the linear baselines (on rank 0), and the images that
    gave no pixels. Raises Stopped after a signal.
    """
    batch_size = default_batch_size(context.device, "reconstruct")
    share = share_of(opened.source, batch_size, context.group, opened.chosen)
    config = opened.model.config
    shown = ShownPairs(_SHOWN, opened.count, config.image_size)
    small = SmallImagesCollector(opened.count, config.image_size)
    shape: tuple[int, ...] = ()
    images = ImagesInBatches(opened.source, share, opened.preprocessing, batch_size)
    context.progress.start("reconstruct", sum(unit.count for unit in share))
    with precision("float32", context.device), closing(iter(images)) as batches:
        for batch, tokens, made in reconstructed_in_turn(opened.model, batches, attrgetter("pixels")):
            if context.stop.requested:
                break
            places = batch.positions if opened.chosen is None else np.searchsorted(opened.chosen, batch.positions)
            scores.add(batch.pixels, made, tokens, places)
            shown.add(batch.pixels, made, places)
            small.add(batch.pixels, places)
            shape = tokens.shape[1:]
            context.progress.advance(len(batch.pixels))
    context.progress.close()
    rejected = all_rejected(images.rejected, context, "Nothing was written.")
    judged, shape = small.result(context.group), shape_in_all(shape, context.group)
    if judged is None:
        return shown.result(context.group), {}, rejected
    baselines = _baselines_of_training(opened) or linear_baselines(judged, shape, config.codebook_size)
    return shown.result(context.group), baselines, rejected


def _baselines_of_training(opened: _Opened) -> dict[str, float]:
    """Return the linear baselines that training computed, if these are all of its held-out images; else {}."""
    try:
        run = open_run(Path(opened.tokenizer))
        judged = run.inputs["validation"]["fingerprint"]
    except (UserError, OSError, KeyError, TypeError):
        return {}
    is_same = opened.chosen is None and judged == opened.source.description["fingerprint"]
    return logged_baselines(MetricsLog(run.path / "metrics.jsonl")) if is_same else {}


def _files_of(data: Sequence[Path | str]) -> Sequence[Path | str]:
    """Return `data`, or the image files of the sample set that it is, without its grid."""
    folder = Path(data[0])
    if len(data) > 1 or not ((folder / MANIFEST).is_file() and (folder / IDS).is_file()):
        return data
    found = SampleSet.open(folder)
    if not found.images.is_dir():
        raise UserError(
            f"{folder} is a sample set whose images are in {found.images.name}; expected image files or shards",
            "draw it with --format png, or compare it with images by `titokctl fid`",
        )
    return [found.images]


def _chosen(total: int, num_images: int | None) -> list[int] | None:
    """Return the positions of `num_images` images spread over `total`; None for all of them."""
    if num_images is None or num_images >= total:
        return None
    return spread_positions(total, num_images).tolist()


def picture(pairs: Sequence[Pair], columns: int = _COLUMNS) -> np.ndarray:
    """Draw originals above their reconstructions, `columns` pairs a row: (h, w, 3) uint8.

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
