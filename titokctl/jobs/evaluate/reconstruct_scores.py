"""The numbers of `titokctl reconstruct`: errors image by image, and the distance between the two sets (rFID)."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from titokctl.data.images import to_float
from titokctl.dry_run import is_dry_run
from titokctl.errors import UserError
from titokctl.evaluation.codebook_usage import usage_of
from titokctl.evaluation.extractors import Extractor, ExtractorOptions
from titokctl.evaluation.feature_pass import extractor_for
from titokctl.evaluation.feature_set import FeatureCollector
from titokctl.evaluation.features import extract
from titokctl.evaluation.metrics import compare
from titokctl.evaluation.reconstruction import ReconstructionSums
from titokctl.models.lpips import Lpips
from titokctl.progress import Progress
from titokctl.weights.network_files import INCEPTION, LITE0, LPIPS_LINEAR, VGG16, here
from titokctl.weights.perceptual import load_lpips

AUTO, NONE = "auto", "none"
_KEPT = 10_000
# VGG16's maps are large.
_LPIPS_AT_ONCE = 4


@dataclass(frozen=True)
class Judges:
    """The networks that look at originals and reconstructions, where there are."""

    lpips: Lpips | None = None
    extractor: Extractor | None = None


def find_judges(features: str, lpips: bool | None, device: str, progress: Progress) -> Judges:
    """The networks that were asked for; with `features` "auto" and `lpips` None those whose weights are here.

    Raises: UserError or UsageError when a network that was asked for is not there.
    """
    if lpips is None:
        lpips = bool(here(VGG16) and here(LPIPS_LINEAR))
        if not lpips:
            progress.say("no LPIPS: its weights are not on this machine (--lpips fetches them)")
    if features == AUTO:
        features = next((name for name, file in (("inception", INCEPTION), ("lite0", LITE0)) if here(file)), NONE)
        if features != "inception":
            progress.say(
                "no rFID: Inception's weights are not on this machine (--features inception fetches them)"
                + ("; fd-lite0 instead, which is not comparable with it" if features == "lite0" else "")
            )
    network = load_lpips(fetch=not is_dry_run()).to(device) if lpips else None
    extractor = None if features == NONE else extractor_for(features, ExtractorOptions(device), progress)
    return Judges(network, extractor)


class ReconstructScores:
    """Running sums over pairs of originals and reconstructions, (n, S, S, 3) uint8, and the codes between them.

    `codebook_size` is None for a tokenizer without codes.
    """

    def __init__(self, judges: Judges, images: int, device: str, codebook_size: int | None) -> None:
        self._judges, self._device = judges, device
        self._pairs = ReconstructionSums()
        self._lpips, self._count = 0.0, 0
        self._codes = np.zeros(codebook_size, np.int64) if codebook_size else None
        network = judges.extractor
        self._sets = [FeatureCollector(network.widths, images, _KEPT) for _ in range(2)] if network else []

    def add(self, originals: np.ndarray, reconstructions: np.ndarray, tokens: np.ndarray) -> None:
        """Take in a batch of pairs with what lies between them, ids (n, K) or latents."""
        if self._codes is not None:
            self._codes += np.bincount(tokens.ravel(), minlength=len(self._codes))
        self._pairs.add(originals, reconstructions)
        self._count += len(originals)
        if self._judges.extractor is not None:
            for collector, images in zip(self._sets, (originals, reconstructions), strict=True):
                for features in extract(self._judges.extractor, [images]):
                    collector.add(features)
        if self._judges.lpips is not None:
            self._lpips += self._sum_of_lpips(self._judges.lpips, originals, reconstructions)

    def result(self) -> dict[str, Any]:
        """The numbers of all pairs so far: those of `ReconstructionScore`; `lpips`, the mean, None without its network;
        `distances` between the sets by name: rfid, or fd-lite0, and kid; and how much of the codebook is used, None
        without one. Raises ValueError when there were no pairs.
        """
        usage = None if self._codes is None else usage_of(self._codes)
        return asdict(self._pairs.score()) | {
            "lpips": None if self._judges.lpips is None else self._lpips / self._count,
            "distances": self._distances(),
            "codes_used": usage and usage.used,
            "codebook_size": usage and usage.size,
            "codebook_share": usage and usage.share,
            "codebook_perplexity": usage and usage.perplexity,
        }

    @torch.inference_mode()
    def _sum_of_lpips(self, network: Lpips, originals: np.ndarray, reconstructions: np.ndarray) -> float:
        total = 0.0
        for first in range(0, len(originals), _LPIPS_AT_ONCE):
            rows = slice(first, first + _LPIPS_AT_ONCE)
            a, b = (to_float(torch.from_numpy(x[rows]).to(self._device)) for x in (originals, reconstructions))
            total += float(network(a, b).double().sum())
        return total

    def _distances(self) -> dict[str, float]:
        if self._judges.extractor is None or self._count < 2:
            return {}
        originals, reconstructions = (collector.result() for collector in self._sets)
        found = compare(reconstructions, originals, ["fid", "kid"], self._judges.extractor.metric_name)
        return {f"r{name}" if name.startswith("fid") else name: value for name, value in found.items()}


def check_count(judges: Judges, images: int, progress: Progress) -> None:
    """Say so when the images are too few for the distance to mean much. Raises UserError for fewer than two."""
    if judges.extractor is None:
        return
    if images < 2:
        raise UserError("a distance between sets needs at least 2 images", "give more, or --features none")
    width = judges.extractor.widths["pool"]
    name = "rFID" if judges.extractor.is_fid else judges.extractor.metric_name("fid")
    if images <= width:
        progress.warn(f"{images:,} images are fewer than the {width:,} features: {name} says little")
    elif images < 50_000:
        progress.warn(f"{images:,} images: {name} is larger than it would be for 50,000")
