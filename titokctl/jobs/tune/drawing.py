"""Drawing the images that settings are compared by, and their features. Only features are kept."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from titokctl.config.sampling import GuidanceConfig
from titokctl.context import Context
from titokctl.evaluation.extractors import Extractor
from titokctl.evaluation.features import extract_all
from titokctl.evaluation.racing import Score
from titokctl.formats.tuning import KeptFeatures
from titokctl.jobs.sample.inputs import Networks
from titokctl.jobs.sample.tiles import as_kept
from titokctl.models.noise import KeyedNoise
from titokctl.models.precision import Precision, precision
from titokctl.sampling.plan import Plan

_PIECE_TILES = 8


@dataclass
class Drawing:
    """Images of several settings on common random numbers: image i has the same label and noise for all of them.

    Args:
        settings: by their number in the race.
        networks: generator and decoder.
        plan: the labels, and the tiles in which images are drawn.
        batch_size: images decoded at once.
        kept: the features of images that were drawn already.
        score: returns the score of features.
    """

    settings: Sequence[GuidanceConfig]
    networks: Networks
    plan: Plan
    precision: Precision
    batch_size: int
    extractor: Extractor
    kept: KeptFeatures
    score: Callable[[np.ndarray], Score]
    context: Context

    def measure(self, setting: int, images: range) -> Score:
        """Return the score of a setting on the images of a range of whole tiles; missing ones are drawn.

        Raises Stopped after a signal; finished pieces are kept.
        """
        pieces, first = [], images.start
        while first < images.stop:
            rows = self.kept.at(setting, first)
            if rows is None:
                rows = self._drawn(setting, first, min(images.stop - first, _PIECE_TILES * self.plan.tile_size))
            pieces.append(rows)
            first += len(rows)
        return self.score(np.concatenate(pieces))

    def timed(self) -> list[float]:
        """Return the seconds that an image of each setting takes, measured by its first tile, which is kept."""
        tile = self.plan.tile_size
        if self.kept.at(0, 0) is None:
            self._features(0, 0)  # the first images take longer, since kernels and memory are prepared
        for setting in range(len(self.settings)):
            if self.kept.at(setting, 0) is None:
                self._drawn(setting, 0, tile)
        return [self.kept.seconds(setting, 0) / tile for setting in range(len(self.settings))]

    def _drawn(self, setting: int, first: int, count: int) -> np.ndarray:
        began, tiles = time.monotonic(), range(first, first + count, self.plan.tile_size)
        rows = []
        for tile in tiles:
            self.context.stop.check(f"The features of {self.kept.num_images:,} images are kept.")
            rows.append(self._features(setting, tile))
            self.context.progress.advance(self.plan.tile_size)
        features = np.concatenate(rows)
        self.kept.add(setting, first, features, time.monotonic() - began)
        return features

    def _features(self, setting: int, first: int) -> np.ndarray:
        """Draw a tile, and return the features (tile size, D) of its images."""
        settings, device = self.settings[setting], self.context.device
        indices = torch.arange(first, first + self.plan.tile_size, device=device)
        with precision(self.precision, device):
            noise = KeyedNoise(settings.seed, indices)
            ids = as_kept(self.networks.generator.sample(self.plan.labels(indices), settings, noise))
        pixels = (self.networks.decoder.images(part).cpu().numpy() for part in ids.split(self.batch_size))
        return extract_all(self.extractor, pixels)["pool"]
