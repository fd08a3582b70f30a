"""Statistics of the features of a set of images, from which distances to that set are computed.

Specification: an .npz without pickles, so that other evaluators read it too, with
    mu (D,), sigma (D, D)        mean and covariance (divided by n - 1) of the features, float64
    mu_s (S,), sigma_s (S, S)    the same of the spatial features (sFID); only with Inception
    count ()                     number of images, int64
    features (m, D)              float32 features of images evenly spread over the set: of up to 10,000 of a reference,
                                 of up to 50,000 of samples whose features are kept
    score_sums (S, 2 + C)        float64, only with Inception, for its score. A row for every 5,000 positions of the
                                 set: images, sum of p log p over images and classes, sum of p over images a class
    about ()                     JSON text: format "titokctl/statistics", format_version 1, features (the name of the
                                 network), extractor, source, preprocessing, image_size
Files of other programs are read, too: ADM's (mu, sigma, mu_s, sigma_s, and images as arr_0) and pytorch-fid's
(mu, sigma); they have no `about` and no `count`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path, check_version
from titokctl.formats.npz_reader import NpzReader

FORMAT = "titokctl/statistics"
FORMAT_VERSION = 1
IMAGES = "arr_0"
UNKNOWN_MAKER, ADM = "unknown", "ADM's evaluator"
# A covariance is symmetric up to this share of its largest variance.
_ASYMMETRY = 1e-3
_HINT = "make statistics with `titokctl stats DATA -o ref.npz`, or name images as the reference"


@dataclass(frozen=True)
class Statistics:
    """Means (D,), covariances (D, D) float64, and what is recorded of the set; `count` is 0 if it wasn't recorded."""

    mean: np.ndarray
    covariance: np.ndarray
    spatial_mean: np.ndarray | None = None
    spatial_covariance: np.ndarray | None = None
    features: np.ndarray | None = None
    count: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    score_sums: np.ndarray | None = None

    @property
    def made_by(self) -> str:
        """The program that made them, as far as the file records it; "" for titokctl."""
        return "" if self.about else UNKNOWN_MAKER if self.spatial_mean is None else ADM


def is_statistics(path: Path) -> bool:
    """Return True for an .npz that holds statistics, of any program; False for any other readable .npz."""
    with NpzReader(path) as npz:
        return bool({"mu", "sigma", "mu_s", "sigma_s"} & set(npz.names))


def has_images(path: Path) -> bool:
    """Return True for an .npz that holds images."""
    with NpzReader(path) as npz:
        return IMAGES in npz.names


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write `path` atomically."""
    about = {"format": FORMAT, "format_version": FORMAT_VERSION} | statistics.about
    arrays: dict[str, Any] = {
        "mu": np.asarray(statistics.mean, np.float64),
        "sigma": np.asarray(statistics.covariance, np.float64),
        "count": np.int64(statistics.count),
        "about": np.array(json.dumps(about, ensure_ascii=False)),
    }
    if statistics.spatial_mean is not None:
        arrays |= {"mu_s": statistics.spatial_mean, "sigma_s": statistics.spatial_covariance}
    if statistics.features is not None:
        arrays["features"] = np.asarray(statistics.features, np.float32)
    if statistics.score_sums is not None:
        arrays["score_sums"] = np.asarray(statistics.score_sums, np.float64)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_statistics(path: Path) -> Statistics:
    """Return the statistics in `path`: ours, ADM's or pytorch-fid's.

    Raises UserError for anything else: objects, wrong shapes, a missing sigma, a newer format.
    """
    with NpzReader(path) as npz:
        about = _about(npz)
        mean, covariance = _gaussian(npz, "mu", "sigma")
        spatial_mean, spatial_covariance = None, None
        if {"mu_s", "sigma_s"} & set(npz.names):
            spatial_mean, spatial_covariance = _gaussian(npz, "mu_s", "sigma_s")
        count = npz.array("count") if "count" in npz.names else np.zeros((), np.int64)
        if count.shape != () or count.dtype.kind not in "iu" or count < 0:
            raise UserError(f"count of {path} is not a number of images")
        features = _floats(npz, "features", len(mean)) if "features" in npz.names else None
        scores = _floats(npz, "score_sums", None) if "score_sums" in npz.names else None
    return Statistics(mean, covariance, spatial_mean, spatial_covariance, features, int(count), about, scores)


def _gaussian(npz: NpzReader, mean_name: str, covariance_name: str) -> tuple[np.ndarray, np.ndarray]:
    for name, other in ((mean_name, covariance_name), (covariance_name, mean_name)):
        if name not in npz.names:
            raise UserError(f"{npz.path} holds {other}, but no {name}: the reference is incomplete", _HINT)
    shapes = npz.member(mean_name).shape, npz.member(covariance_name).shape
    if len(shapes[0]) != 1 or shapes[1] != shapes[0] * 2:
        raise UserError(
            f"{npz.path}: expected {mean_name} (D,) and {covariance_name} (D, D), found {shapes[0]} and {shapes[1]}",
            _HINT,
        )
    mean, covariance = (npz.array(name).astype(np.float64) for name in (mean_name, covariance_name))
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{npz.path}: {mean_name} or {covariance_name} holds numbers that are not finite", _HINT)
    variances, apart = covariance.diagonal(), np.abs(covariance - covariance.T).max(initial=0)
    if variances.min(initial=0) < 0 or apart > _ASYMMETRY * variances.max(initial=0):
        raise UserError(
            f"{npz.path}: {covariance_name} is not a covariance matrix: not symmetric, or a variance below 0", _HINT
        )
    return mean, covariance


def _floats(npz: NpzReader, name: str, width: int | None) -> np.ndarray:
    found = npz.member(name)
    if len(found.shape) != 2 or (width is not None and found.shape[1] != width) or found.dtype.kind != "f":
        raise UserError(f"{npz.path}: expected {name} (m, {width or 'C'}) float, found {found.shape} {found.dtype}")
    return npz.array(name)


def _about(npz: NpzReader) -> dict[str, Any]:
    if "about" not in npz.names:
        return {}
    try:
        about = json.loads(str(npz.array("about")))
    except (ValueError, RecursionError) as error:
        raise UserError(f"about of {npz.path} is not JSON") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{npz.path} does not hold statistics of titokctl")
    check_version(about.get("format_version", 0), FORMAT_VERSION, npz.path, "statistics")
    return about
