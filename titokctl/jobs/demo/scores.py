"""Scores of the demo's samples, beside yardsticks on the same number of images.

All distances are to the training tiles, on EfficientNet-Lite0 features: the Fréchet distance is called fd-lite0, never
FID, and with so few images the unbiased kernel distance (KID) is the better one. Letters: n images, K latent tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch

from titokctl.context import Context
from titokctl.data.images import to_bytes
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.features import extract
from titokctl.evaluation.frechet import frechet_distance, gaussian_of
from titokctl.evaluation.linear_probe import fit_probe
from titokctl.evaluation.metrics import kernel_distance
from titokctl.evaluation.nearest import CloserThanHeldOut, closer_than_held_out
from titokctl.evaluation.reconstruction import psnr
from titokctl.models.titok.tokenizer import TiTok

_DECODE_AT_ONCE = 64


@dataclass(frozen=True)
class Yardstick:
    """The distances between one set of images and the training tiles."""

    name: str
    images: int
    fd_lite0: float
    kid_lite0: float


@dataclass(frozen=True)
class DemoScores:
    """The yardsticks, the accuracies of a class probe, and the share of samples close to training tiles."""

    yardsticks: list[Yardstick]
    probe_samples: float
    probe_held_out: float
    chance: float
    closer: list[CloserThanHeldOut]

    @property
    def kid_ratio(self) -> float:
        """KID of the shuffled ids divided by KID of the samples: how many times closer to real the samples are."""
        kid = {y.name: y.kid_lite0 for y in self.yardsticks}
        return kid[SHUFFLED] / max(kid[SAMPLES], 1e-9)


HELD_OUT = "held-out tiles (real)"
RECONSTRUCTIONS = "their reconstructions"
SAMPLES = "samples"
SHUFFLED = "ids shuffled within each position"
NOISE = "uniform random ids"


@dataclass(frozen=True)
class DemoImages:
    """Pixels (n, S, S, 3) uint8 of the sets named above and of the training tiles, and labels (n,)."""

    training: np.ndarray
    training_labels: np.ndarray
    sets: dict[str, np.ndarray]
    held_out_labels: np.ndarray
    sample_labels: np.ndarray


def score(images: DemoImages, extractor: Extractor, context: Context) -> DemoScores:
    """Compare every set with the training tiles, and classify the samples with a linear probe."""
    everything = [images.training, *images.sets.values()]
    context.progress.start("features", sum(map(len, everything)))
    features = [_features(extractor, pixels, context) for pixels in everything]
    context.progress.close()
    training, by_name = features[0], dict(zip(images.sets, features[1:], strict=True))
    gaussian = gaussian_of(training)
    yardsticks = [
        Yardstick(name, len(f), frechet_distance(gaussian_of(f), gaussian), kernel_distance(f, training))
        for name, f in by_name.items()
    ]
    classes = int(images.training_labels.max()) + 1
    probe = fit_probe(training, images.training_labels, classes)
    return DemoScores(
        yardsticks,
        probe_samples=probe.accuracy(by_name[SAMPLES], images.sample_labels),
        probe_held_out=probe.accuracy(by_name[HELD_OUT], images.held_out_labels),
        chance=1 / classes,
        closer=closer_than_held_out(by_name[SAMPLES], by_name[HELD_OUT], training),
    )


def noise_ids(count: int, num_tokens: int, codebook_size: int) -> np.ndarray:
    """Return uniformly random ids, (count, K) int64, which decode to images without structure."""
    return np.random.default_rng(0).integers(0, codebook_size, (count, num_tokens))


def shuffled_ids(ids: np.ndarray, count: int) -> np.ndarray:
    """Return `ids` with each position shuffled separately, (count, K) int64: the same marginals, no structure."""
    return np.random.default_rng(0).permuted(ids.astype(np.int64), axis=0)[:count]


@torch.inference_mode()
def decoded(tokenizer: TiTok, ids: np.ndarray) -> np.ndarray:
    """Decode ids (n, K) to pixels (n, S, S, 3) uint8."""
    pieces = torch.from_numpy(ids.astype(np.int64)).split(_DECODE_AT_ONCE)
    return np.concatenate([to_bytes(tokenizer.detokenize(piece)).numpy() for piece in pieces])


def mean_colour_psnr(pixels: np.ndarray) -> float:
    """Return the pooled PSNR in dB of tiles (n, S, S, 3) uint8 replaced by their mean colours."""
    tiles = pixels.astype(np.float64)
    return psnr(float(np.mean(np.square(tiles - tiles.mean(axis=(1, 2), keepdims=True)))))


def pca_psnr(training: np.ndarray, pixels: np.ndarray, numbers: int) -> float:
    """Return the pooled PSNR in dB of PCA with `numbers` floats per tile, fitted on `training` by random projection.

    Args:
        training, pixels: (n, S, S, 3) uint8.
    """
    x = torch.from_numpy(training.reshape(len(training), -1)).float()
    y = torch.from_numpy(pixels.reshape(len(pixels), -1)).float()
    mean = x.mean(0)
    torch.manual_seed(0)
    _, _, axes = torch.svd_lowrank(x - mean, q=numbers + 16, niter=4)
    centred, axes = y - mean, axes[:, :numbers]
    return psnr(float(np.mean(np.square((centred - centred @ axes @ axes.T).numpy()))))


def _features(extractor: Extractor, pixels: np.ndarray, context: Context) -> np.ndarray:
    rows = []
    for batch in extract(extractor, [pixels]):
        context.stop.check("Everything but the scores is kept.")
        context.progress.advance(len(batch["pool"]))
        rows.append(batch["pool"])
    return np.concatenate(rows)
