"""Reconstructions beside their originals: PSNR, SSIM, LPIPS, the distance between the two sets, and codebook use.

Letters: n images, S their edge, H and W height and width, K tokens of an image.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from titokctl.context import Context
from titokctl.data.image_decoder import on_host
from titokctl.data.images import to_bytes, to_float
from titokctl.data.order import spread_positions
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import sum_arrays
from titokctl.evaluation.codebook_usage import usage_of
from titokctl.evaluation.extractors import Extractor, FeatureNetwork
from titokctl.evaluation.features import FeatureCollector, FeatureSet, extract
from titokctl.evaluation.metrics import compute, metrics_named
from titokctl.models.device import in_float64, send
from titokctl.models.lpips import Lpips
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.weights.network_files import INCEPTION, LITE0, LPIPS_LINEAR, VGG16, here
from titokctl.weights.perceptual import load_lpips

AUTO, NONE = "auto", "none"

_PEAK = 255.0
_EXACT_PSNR_DB = 100.0
_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
_FEATURES_KEPT = 10_000
# VGG16's maps are large.
_AT_ONCE = 64
_LPIPS_AT_ONCE = 4
Reconstructing = Callable[[], tuple[np.ndarray, np.ndarray]]


Batch = TypeVar("Batch")


def reconstructed(tokenizer: TiTok | MaskGitVqgan, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encode and decode images (n, S, S, 3) uint8; return their tokens and the new pixels, of the same shape."""
    return _begun(tokenizer, pixels)()


def reconstructed_in_turn(
    tokenizer: TiTok | MaskGitVqgan, batches: Iterable[Batch], pixels_of: Callable[[Batch], np.ndarray]
) -> Iterator[tuple[Batch, np.ndarray, np.ndarray]]:
    """Yield each batch with the tokens and the new pixels of its images, as `reconstructed` returns them.

    A GPU has the next batch in hand while the caller uses one.
    """
    begun: tuple[Batch, Reconstructing] | None = None
    for batch in batches:
        before, begun = begun, (batch, _begun(tokenizer, pixels_of(batch)))
        if before is not None:
            yield before[0], *before[1]()
    if begun is not None:
        yield begun[0], *begun[1]()


@torch.inference_mode()
def _begun(tokenizer: TiTok | MaskGitVqgan, pixels: np.ndarray) -> "Reconstructing":
    """Queue the work for some images; return a function that waits for their tokens and new pixels."""
    images = to_float(send(torch.from_numpy(pixels), next(tokenizer.parameters()).device))
    tokens = tokenizer.tokenize_unchecked(images)
    fetch = on_host({"tokens": tokens, "pixels": to_bytes(tokenizer.detokenize_unchecked(tokens))})

    def wait() -> tuple[np.ndarray, np.ndarray]:
        found = fetch()
        return found["tokens"], found["pixels"]

    return wait


@dataclass(frozen=True)
class ReconstructionScore:
    """PSNR in dB of the error pooled over all images and its mean over images; mean SSIM, None below 11 px.

    `psnr_mean_colour` is a baseline: the pooled PSNR of images that are replaced by their mean colours.
    """

    images: int
    psnr_pooled: float
    psnr_mean: float
    ssim: float | None
    psnr_mean_colour: float


class ShownPairs:
    """Originals and reconstructions for a picture, spread over a set: its first images may be all of one class.

    Args:
        count: how many pairs to keep, at most.
        total: number of images in the set.
        size: their edge S in pixels.
    """

    def __init__(self, count: int, total: int, size: int) -> None:
        self._wanted = spread_positions(total, count)
        self._pairs = np.zeros((len(self._wanted), 2, size, size, 3))
        self._is_here = np.zeros(len(self._wanted))

    def add(self, originals: np.ndarray, reconstructions: np.ndarray, positions: np.ndarray) -> None:
        """Add images at `positions` (n,) of the set, (n, S, S, 3) uint8 each; those that aren't shown are dropped."""
        for row in np.flatnonzero(np.isin(positions, self._wanted)):
            place = np.searchsorted(self._wanted, positions[row])
            self._pairs[place] = originals[row], reconstructions[row]
            self._is_here[place] = 1

    def result(self, group: Group) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the pairs of all processes in the order of the set; complete on rank 0 only."""
        sum_arrays([self._pairs, self._is_here], group)
        return [(pair[0], pair[1]) for pair in self._pairs[self._is_here > 0].astype(np.uint8)]


class ReconstructionSums:
    """Running sums over pairs of originals and reconstructions.

    `totals` (6,) float64 are all of them, so that parts of a set can be added up: images, values, squared error, PSNR,
    SSIM (NaN where images are too small for it), and the squared error of mean colours.
    """

    def __init__(self) -> None:
        self.totals = np.zeros(6)

    def add(self, originals: np.ndarray, reconstructions: np.ndarray) -> None:
        """Take in pairs, (n, H, W, 3) uint8 each. Raises ValueError for other shapes or types."""
        for array in (originals, reconstructions):
            if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3 or array.shape != originals.shape:
                shapes = f"{originals.shape} {originals.dtype} and {reconstructions.shape} {reconstructions.dtype}"
                raise ValueError(f"expected two arrays (n, H, W, 3) uint8 of one shape, not {shapes}")
        a, b = (torch.from_numpy(np.ascontiguousarray(x)).double() for x in (originals, reconstructions))
        errors = (a - b).square().sum((1, 2, 3))  # (n,)
        values = math.prod(originals.shape[1:])
        similarity = math.nan
        if min(originals.shape[1:3]) >= _WINDOW:
            similarity = float(ssim(a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2)).sum())
        in_db = sum(_finite_psnr(float(error) / values) for error in errors)
        from_mean = float((a - a.mean((1, 2), keepdim=True)).square().sum())
        self.totals += (len(a), len(a) * values, float(errors.sum()), in_db, similarity, from_mean)

    def score(self) -> ReconstructionScore:
        """The scores of all pairs so far. Raises ValueError when there were none."""
        images, values, squared_error, in_db, similarity, from_mean = self.totals.tolist()
        if not images:
            raise ValueError("no images were compared")
        mean_ssim = None if math.isnan(similarity) else similarity / images
        return ReconstructionScore(
            int(images),
            _finite_psnr(squared_error / values),
            in_db / images,
            mean_ssim,
            _finite_psnr(from_mean / values),
        )


def reconstruct_and_score(tokenizer: TiTok, pixels: np.ndarray) -> tuple[np.ndarray, ReconstructionScore]:
    """Encode and decode images (n, S, S, 3) uint8, in batches; return the new pixels, of the same shape, and scores."""
    made, sums = np.empty_like(pixels), ReconstructionSums()
    for first in range(0, len(pixels), _AT_ONCE):
        rows = slice(first, first + _AT_ONCE)
        made[rows] = reconstructed(tokenizer, pixels[rows])[1]
        sums.add(pixels[rows], made[rows])
    return made, sums.score()


@dataclass(frozen=True)
class Judges:
    """The networks that compare reconstructions with originals; None for one that is left out."""

    lpips: Lpips | None = None
    extractor: Extractor | None = None

    @property
    def distance(self) -> str:
        """The name of the distance between the sets; "" without a feature network."""
        if self.extractor is None:
            return ""
        return "rFID" if self.extractor.is_fid else self.extractor.metric_name("fid")


def find_judges(features: str, lpips: bool | None, context: Context, fetch: bool = True) -> Judges:
    """Return the networks that were asked for.

    Args:
        features: name of the feature network; "auto" for Inception or else lite0, if its weights are on this machine;
            "none" for none.
        lpips: None takes it if its weights are on this machine.
        fetch: download weights of a network that was asked for.

    Raises: UserError or UsageError when a network that was asked for is not there.
    """
    group = context.group
    lpips, features = group.from_main(_judges_here(features, lpips, context) if group.is_main else None)
    network = None
    if lpips:
        with group.main_first():
            network = load_lpips(fetch=fetch).to(context.device)
    extractor = None if features == NONE else FeatureNetwork(features).open(context, fetch)
    return Judges(network, extractor)


def _judges_here(features: str, lpips: bool | None, context: Context) -> tuple[bool, str]:
    """Return whether LPIPS is computed, and the name of the feature network."""
    if lpips is None:
        lpips = bool(here(VGG16) and here(LPIPS_LINEAR))
        if not lpips:
            context.say("no LPIPS: its weights are not on this machine (--lpips fetches them)")
    if features == AUTO:
        features = next((name for name, file in (("inception", INCEPTION), ("lite0", LITE0)) if here(file)), NONE)
        if features != "inception":
            context.say(
                "no rFID: Inception's weights are not on this machine (--features inception fetches them)"
                + ("; fd-lite0 instead, which is not comparable with it" if features == "lite0" else "")
            )
    return lpips, features


class ReconstructScores:
    """Running sums over pairs of originals and reconstructions, (n, S, S, 3) uint8, and the codes between them.

    `codebook_size` is None for a tokenizer without codes.
    """

    def __init__(self, judges: Judges, images: int, device: str, codebook_size: int | None) -> None:
        self._judges, self._device = judges, device
        self._pairs = ReconstructionSums()
        self._lpips: Tensor | None = None  # the sum, on the device
        self._codes = np.zeros(codebook_size or 0)
        network = judges.extractor
        self._sets = [FeatureCollector(network.widths, images, _FEATURES_KEPT) for _ in range(2)] if network else []

    def add(
        self, originals: np.ndarray, reconstructions: np.ndarray, tokens: np.ndarray, positions: np.ndarray
    ) -> None:
        """Take in pairs at `positions` (n,) of the set, and what lies between them: ids (n, K) or latents."""
        if len(self._codes):
            self._codes += np.bincount(tokens.ravel(), minlength=len(self._codes))
        self._pairs.add(originals, reconstructions)
        if self._judges.extractor is not None:
            for collector, images in zip(self._sets, (originals, reconstructions), strict=True):
                left = positions
                for features in extract(self._judges.extractor, [images]):
                    count = len(features["pool"])
                    collector.add(features, left[:count])
                    left = left[count:]
        if self._judges.lpips is not None:
            found = self._sum_of_lpips(self._judges.lpips, originals, reconstructions)
            self._lpips = found if self._lpips is None else self._lpips + found

    def result(self, group: Group) -> dict[str, Any] | None:
        """Return the numbers of all pairs of all processes, the fields of `titokctl reconstruct`'s result.

        They are those of `ReconstructionScore`; `lpips`, the mean; `distances` between the sets by name (rfid or
        fd-lite0, and kid); `inception_score` of the reconstructions (is, is_deviation), if the network has a
        classifier; and how much of the codebook is used. None on all processes but the first. Raises ValueError when
        there were no pairs.
        """
        lpips = np.zeros(1) if self._lpips is None else self._lpips.cpu().numpy()
        sum_arrays([self._pairs.totals, lpips, self._codes], group)
        sets = [collector.result(group) for collector in self._sets] if self._pairs.totals[0] > 1 else []
        if not group.is_main:
            return None
        usage = usage_of(self._codes) if len(self._codes) else None
        score = self._pairs.score()
        return asdict(score) | {
            "lpips": None if self._judges.lpips is None else float(lpips[0]) / score.images,
            "distances": self._numbers(sets, "fid", "kid"),
            "inception_score": self._numbers(sets, "is"),
            "codes_used": usage and usage.used,
            "codebook_size": usage and usage.size,
            "codebook_share": usage and usage.share,
            "codebook_perplexity": usage and usage.perplexity,
        }

    @torch.inference_mode()
    def _sum_of_lpips(self, network: Lpips, originals: np.ndarray, reconstructions: np.ndarray) -> Tensor:
        """Return the sum over the pairs, (1,) float64, on the device if it has float64."""
        total = in_float64(torch.zeros(1, device=self._device))
        for first in range(0, len(originals), _LPIPS_AT_ONCE):
            rows = slice(first, first + _LPIPS_AT_ONCE)
            a, b = (to_float(send(torch.from_numpy(x[rows]), self._device)) for x in (originals, reconstructions))
            total += in_float64(network(a, b)).sum()
        return total

    def _numbers(self, sets: Sequence[FeatureSet], *names: str) -> dict[str, float]:
        """Return the numbers of the metrics `names` that the sets (originals, reconstructions) allow."""
        if self._judges.extractor is None or not sets:
            return {}
        originals, reconstructions = sets
        metrics = [metric for metric in metrics_named(names) if not metric.lacking(reconstructions, originals)]
        found = compute(metrics, reconstructions, originals, self._judges.extractor.metric_name)
        return {f"r{name}" if name.startswith("fid") else name: value for name, value in found.items()}


def psnr(mean_squared_error: float) -> float:
    """Return the peak signal-to-noise ratio in dB for values in [0, 255]; infinity for an exact copy."""
    return 10 * math.log10(_PEAK**2 / mean_squared_error) if mean_squared_error > 0 else math.inf


def _finite_psnr(mean_squared_error: float) -> float:
    """Return the PSNR with an exact copy as 100 dB, so that means stay finite."""
    return min(psnr(mean_squared_error), _EXACT_PSNR_DB)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity (Wang et al. 2004), the mean of RGB.

    The window is a Gaussian of 11 x 11 pixels with sigma 1.5, and lies inside the image.

    Args:
        a, b: (n, 3, H, W) float in [0, 255], H and W at least 11.

    Returns:
        (n,), 1 for equal images.
    """
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a * mean_a
    variance_b = _blur(b * b) - mean_b * mean_b
    covariance = _blur(a * b) - mean_a * mean_b
    numerator = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    denominator = (mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2)
    return (numerator / denominator).mean((1, 2, 3))


def _blur(x: Tensor) -> Tensor:
    """Return the means under all windows inside the images (n, 3, H, W): (n, 3, H - 10, W - 10).

    They are two products with matrices: on a CPU 2 to 11 times as fast as convolutions for edges of 32 to 1,024.
    """
    return _windows(x, x.shape[2]) @ x @ _windows(x, x.shape[3]).T


def _windows(like: Tensor, length: int) -> Tensor:
    """Return (length - 10, length): in each row the weights of one window, and zeros beside it."""
    offsets = torch.arange(_WINDOW, dtype=like.dtype, device=like.device) - _WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * _SIGMA**2))
    rows = torch.zeros(length - _WINDOW + 1, length, dtype=like.dtype, device=like.device)
    for place, weight in enumerate(weights / weights.sum()):
        rows.diagonal(place).fill_(weight)
    return rows
