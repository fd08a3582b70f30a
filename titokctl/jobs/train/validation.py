"""Held-out numbers of a tokenizer while it is trained, and a picture to look at."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.pipeline import decode_units
from titokctl.data.shares import ImagesInBatches, all_rejected, share_of
from titokctl.data.source_check import can_be_checked
from titokctl.data.sources.source import Rejected, Source
from titokctl.distributed.group import Group
from titokctl.distributed.place import available_cores
from titokctl.distributed.reduce import sum_arrays
from titokctl.errors import UserError
from titokctl.evaluation.baselines import (
    VALIDATION,
    HeldOutBaselines,
    SmallImagesCollector,
    logged_baselines,
    shape_in_all,
)
from titokctl.evaluation.codebook_usage import usage_of
from titokctl.evaluation.extractors import Extractor, ExtractorOptions, open_extractor
from titokctl.evaluation.features import FeatureCollector, extract
from titokctl.evaluation.frechet import Gaussian, frechet_distance
from titokctl.evaluation.reconstruction import ReconstructionSums, ShownPairs, reconstructed_in_turn
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.picture import grid, save_png
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.readable import counted
from titokctl.weights.network_files import INCEPTION, here

Tokenizer = TiTok | MaskGitVqgan
_PICTURED = 8
_BATCH = 64
_KEPT_BYTES = 1 << 30


class Validation:
    """Held-out numbers and a picture: the same images every time, each exactly once, shared out over the processes.

    What can't be decoded is left out, and said once. Every process of the group must call it; rank 0 gets the numbers.

    Args:
        source: the held-out images.
        size: edge in pixels.
        folder: where pictures go, reconstructions-<step>.png.
        group: the processes that share the images.
        extractor: features of images, for rFID; None leaves it out.
        say: for remarks.
        exif: apply the EXIF orientation.
        baselines: of the PSNR, beside the mean colour; None leaves them out.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        folder: Path,
        group: Group,
        extractor: Extractor | None,
        say: Callable[[str], None],
        exif: bool = False,
        baselines: HeldOutBaselines | None = None,
    ) -> None:
        self._source, self._size, self._folder = source, size, folder
        self._preprocessing = PreprocessingConfig(size=size, exif=exif)
        self._group, self._say = group, say
        self._extractor = extractor if len(source) > 1 else None
        self._units = share_of(source, _BATCH, group)
        mine = sum(unit.count for unit in self._units)
        self._kept: list[np.ndarray] | None = None
        self._keeps = mine * size * size * 3 <= _KEPT_BYTES
        self._original: Gaussian | None = None
        self._is_told = False
        self._baselines = baselines or HeldOutBaselines(found={})

    def __call__(self, tokenizer: Tokenizer, step: int) -> dict[str, float]:
        """Return numbers by name on rank 0, {} on the others.

        They are PSNR in dB, pooled over all images, and that of the baselines; SSIM, the share of codes in use, their
        perplexity, and rFID.

        Raises UserError when no image can be decoded.
        """
        sums = ReconstructionSums()
        counts = np.zeros(tokenizer.config.codebook_size or 0)
        made = self._reconstructions(tokenizer, step, sums, counts)
        distance = self._distance(made)
        sum_arrays([sums.totals, counts], self._group)
        if not self._group.is_main:
            return {}
        if not sums.totals[0]:
            raise UserError("none of the held-out images can be decoded", "open a few of them with another program")
        linear = {f"{VALIDATION}{name}": value for name, value in (self._baselines.found or {}).items()}
        return _numbers(sums, counts) | linear | distance

    def _reconstructions(
        self, tokenizer: Tokenizer, step: int, sums: ReconstructionSums, counts: np.ndarray
    ) -> Iterator[np.ndarray]:
        """Yield the reconstructions of this process's images, batch by batch, and count them."""
        shown = ShownPairs(_PICTURED, len(self._source), self._size)
        small = SmallImagesCollector(len(self._source), self._size) if self._baselines.found is None else None
        shape: Sequence[int] = ()
        place = self._units[0].first if self._units else 0
        for pixels, tokens, made in reconstructed_in_turn(tokenizer, self._batches(), lambda batch: batch):
            sums.add(pixels, made)
            if len(counts):
                counts += np.bincount(tokens.flatten(), minlength=len(counts))
            positions, shape = np.arange(place, place + len(pixels)), tokens.shape[1:]
            shown.add(pixels, made, positions)
            if small is not None:
                small.add(pixels, positions)
            place += len(pixels)
            yield made
        if small is not None:
            shape = shape_in_all(shape, self._group)
            self._baselines.compute(small.result(self._group), shape, tokenizer.config.codebook_size)
        pairs = shown.result(self._group)
        if pairs and self._group.is_main:
            rows = [image for row in zip(*pairs, strict=True) for image in row]
            save_png(self._folder / f"reconstructions-{step:08d}.png", grid(np.stack(rows), len(pairs)))

    def _distance(self, made: Iterator[np.ndarray]) -> dict[str, float]:
        """Uses up `made`; the Frechet distance to the originals, whose features are computed once."""
        if self._extractor is None:
            for _ in made:
                pass
            return {}
        now = self._gaussian(self._extractor, made)
        self._original = self._original or self._gaussian(self._extractor, self._batches())
        if not self._group.is_main:
            return {}
        return {f"val_r{self._extractor.metric_name('fid')}": frechet_distance(self._original, now)}

    def _gaussian(self, extractor: Extractor, images: Iterator[np.ndarray]) -> Gaussian:
        widths = {"pool": extractor.widths["pool"]}
        collector = FeatureCollector(widths, len(self._source), 0, device=extractor.device)
        for features in extract(extractor, images):
            collector.add(features)
        return collector.result(self._group).pool

    def _batches(self) -> Iterator[np.ndarray]:
        """(n, S, S, 3) uint8, decoded once where they fit into memory."""
        if self._kept is not None:
            yield from self._kept
            return
        kept, rejected = [], []
        for unit in decode_units(self._source, self._units, self._preprocessing, available_cores()):
            rejected += unit.rejected
            for first in range(0, len(unit.pixels), _BATCH):
                pixels = unit.pixels[first : first + _BATCH]
                if self._keeps:
                    kept.append(pixels)
                yield pixels
        if rejected and not self._is_told:
            self._is_told = True
            named = "; ".join(f"{r.key} ({r.kind})" for r in rejected[:5])
            self._say(f"leaving out {counted(len(rejected), 'held-out images')} that can't be decoded: {named}")
        if self._keeps:
            self._kept = kept


def held_out_baselines(
    source: Source, preprocessing: PreprocessingConfig, known: Mapping[int, Rejected], log: MetricsLog, context: Context
) -> HeldOutBaselines:
    """Return the baselines in the log of a resumed run, or else read training images to compute them from.

    Where reading images twice is not cheap, there are none.

    Args:
        source: the training images.
        known: those that can't be decoded, by position.

    Raises Stopped after a signal.
    """
    group = context.group
    found = group.from_main(logged_baselines(log) if group.is_main else None)
    if found or not can_be_checked(source):
        return HeldOutBaselines(found=found)
    small = SmallImagesCollector(len(source), preprocessing.size)
    units = share_of(source, _BATCH, group, [int(place) for place in small.positions if int(place) not in known])
    images = ImagesInBatches(source, units, preprocessing, _BATCH)
    context.progress.start("read images for baselines", len(units))
    with closing(iter(images)) as batches:
        for batch in batches:
            if context.stop.requested:
                break
            small.add(batch.pixels, batch.positions)
            context.progress.advance(len(batch.pixels))
    context.progress.close()
    all_rejected(images.rejected, context, "")
    return HeldOutBaselines(small.result(group))


def inception_if_here(device: str, say: Callable[[str], None]) -> Extractor | None:
    """The network of rFID, when its weights are on this machine; nothing is fetched for it."""
    if here(INCEPTION) is None:
        say(f"no rFID during training: {INCEPTION.names[0]} is not on this machine")
        return None
    return open_extractor("inception", ExtractorOptions(device=device))


def _numbers(sums: ReconstructionSums, counts: np.ndarray) -> dict[str, float]:
    score = sums.score()
    found = {"val_psnr": score.psnr_pooled, "val_psnr_mean_colour": score.psnr_mean_colour}
    if score.ssim is not None:
        found["val_ssim"] = score.ssim
    if len(counts):
        usage = usage_of(counts)
        found |= {"val_codebook_usage": usage.share, "val_perplexity": usage.perplexity}
    return found
