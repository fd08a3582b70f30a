"""Scores of the demo's tokenizer and samples, beside baselines on the same images.

Distances are to training images, on the features of two networks: EfficientNet-Lite0, which the tokenizer's perceptual
loss uses, and EfficientNet-Lite2, which no loss has seen. The Fréchet distance is called fd-lite0 and fd-lite2, never
FID, and with so few images the unbiased kernel distance (KID) is the better one. Letters: n images, K latent tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from titokctl.context import Context
from titokctl.data.images import to_bytes
from titokctl.evaluation.attributes import colour_histogram, edge_histogram, softened
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.features import extract
from titokctl.evaluation.frechet import frechet_distance, gaussian_of
from titokctl.evaluation.linear_probe import fit_probe
from titokctl.evaluation.metrics import kernel_distance
from titokctl.evaluation.nearest import CloserThanHeldOut, closer_than_held_out
from titokctl.models.titok.tokenizer import TiTok

SEEN, UNSEEN = "lite0", "lite2"
_DECODE_AT_ONCE = 64


@dataclass(frozen=True)
class Yardstick:
    """The distances between one set of images and the training images, by the name of the metric: fd-lite0, ..."""

    name: str
    images: int
    distances: dict[str, float]


@dataclass(frozen=True)
class Probe:
    """Share of images whose attribute a linear probe of training images reads right; `chance` is that of guessing.

    The share of reconstructions says what the tokenizer keeps of the attribute, and so what samples can reach.
    """

    attribute: str
    samples: float
    reconstructions: float
    held_out: float
    chance: float


@dataclass(frozen=True)
class DemoScores:
    """The yardsticks, the probes' accuracies, and the share of samples close to training images."""

    yardsticks: list[Yardstick]
    probes: list[Probe]
    closer: list[CloserThanHeldOut]

    @property
    def kid_ratio(self) -> float:
        """KID of the shuffled ids divided by KID of the samples, on the unseen network."""
        kid = {y.name: y.distances[f"kid-{UNSEEN}"] for y in self.yardsticks}
        return kid[SHUFFLED] / max(kid[SAMPLES], 1e-9)


HELD_OUT = "held-out images (real)"
RECONSTRUCTIONS = "their reconstructions"
SAMPLES = "samples"
SHUFFLED = "ids shuffled within each position"
_READ = (SAMPLES, RECONSTRUCTIONS, HELD_OUT)
_TRAINING, _SOFT = "training", "softened training images"
_READERS = {"colour": colour_histogram, "shape": edge_histogram}  # other attributes are read from features


@dataclass(frozen=True)
class DemoImages:
    """Pixels (n, S, S, 3) uint8 of training images and of the sets named above.

    Held-out images, reconstructions and samples have the same labels (n,) int64, -1 for none. `attributes` are numbers
    (C,) of each class by name, such as its shape and its colour, which the probes read. Features are computed for the
    first `num_reference` training images only, since they take most of the time; histograms use all.
    """

    training: np.ndarray
    training_labels: np.ndarray
    sets: dict[str, np.ndarray]
    labels: np.ndarray
    attributes: Mapping[str, np.ndarray]
    num_reference: int


def score(images: DemoImages, extractors: Mapping[str, Extractor], context: Context) -> DemoScores:
    """Compare every set with the training images on each network, and read attributes of the samples.

    Raises Stopped after a signal.
    """
    reference = images.training[: images.num_reference]
    sets = {_TRAINING: reference, **images.sets}
    soft = {_SOFT: softened(reference)} if images.attributes.keys() - _READERS.keys() else {}
    wanted = {name: sets | soft if name == UNSEEN else sets for name in extractors}
    context.progress.start("features", sum(len(pixels) for each in wanted.values() for pixels in each.values()))
    features = {name: _features(extractors[name], each, context) for name, each in wanted.items()}
    context.progress.close()
    yardsticks = _yardsticks(images.sets, features)
    unseen = features[UNSEEN]
    closer = closer_than_held_out(unseen[SAMPLES], unseen[HELD_OUT], unseen[_TRAINING])
    return DemoScores(yardsticks, _probes(images, unseen), closer)


def _yardsticks(sets: Mapping[str, np.ndarray], features: Mapping[str, Mapping[str, np.ndarray]]) -> list[Yardstick]:
    """Return the distances of each set, from the features (n, D) of all sets by network and name."""
    distances: dict[str, dict[str, float]] = {name: {} for name in sets}
    for network, of in features.items():
        training = gaussian_of(of[_TRAINING])
        for name, found in distances.items():
            found[f"fd-{network}"] = frechet_distance(gaussian_of(of[name]), training)
            found[f"kid-{network}"] = kernel_distance(of[name], of[_TRAINING])
    return [Yardstick(name, len(pixels), distances[name]) for name, pixels in sets.items()]


def _probes(images: DemoImages, features: Mapping[str, np.ndarray]) -> list[Probe]:
    """Return the probes of all attributes; `features` (n, D) of each set are for those that no histogram shows."""
    if images.attributes.keys().isdisjoint(_READERS):
        pixels = {}
    else:
        pixels = {_TRAINING: images.training, _SOFT: softened(images.training), **images.sets}
    found = []
    for name, numbers in images.attributes.items():
        reader = _READERS.get(name)
        rows = {which: reader(pixels[which]) for which in (_TRAINING, _SOFT, *_READ)} if reader else features
        found.append(_probe(name, numbers, images, rows))
    return found


def _probe(name: str, numbers: np.ndarray, images: DemoImages, rows: Mapping[str, np.ndarray]) -> Probe:
    """Fit a probe to the rows (n, D) of training images and softened copies, and read the attribute from each set."""
    count = int(numbers.max()) + 1
    wanted = numbers[images.training_labels[: len(rows[_TRAINING])]]
    fitted = fit_probe(np.concatenate([rows[_TRAINING], rows[_SOFT]]), np.tile(wanted, 2), count)
    samples, again, real = (fitted.accuracy(rows[which], numbers[images.labels]) for which in _READ)
    return Probe(name, samples, again, real, 1 / count)


def shuffled_ids(ids: np.ndarray, count: int) -> np.ndarray:
    """Return `ids` with each position shuffled separately, (count, K) int64: the same marginals, no structure."""
    return np.random.default_rng(0).permuted(ids.astype(np.int64), axis=0)[:count]


@torch.inference_mode()
def decoded(tokenizer: TiTok, ids: np.ndarray) -> np.ndarray:
    """Decode ids (n, K) to pixels (n, S, S, 3) uint8."""
    pieces = torch.from_numpy(ids.astype(np.int64)).split(_DECODE_AT_ONCE)
    return np.concatenate([to_bytes(tokenizer.detokenize(piece)).numpy() for piece in pieces])


def _features(extractor: Extractor, sets: Mapping[str, np.ndarray], context: Context) -> dict[str, np.ndarray]:
    """Return the features of each set, (n, D) float32, from one pass over all of them, so that batches are full."""
    rows = []
    for batch in extract(extractor, sets.values()):
        context.stop.check("Everything but the scores is kept.")
        context.progress.advance(len(batch["pool"]))
        rows.append(batch["pool"])
    ends = np.cumsum([len(pixels) for pixels in sets.values()])
    return dict(zip(sets, np.split(np.concatenate(rows), ends[:-1]), strict=True))
