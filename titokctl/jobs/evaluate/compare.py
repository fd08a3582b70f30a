"""`titokctl compare`: kept results side by side, and whether their distances differ by more than luck."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import ExtractorOptions
from titokctl.evaluation.feature_pass import FeaturePass, extractor_for, from_statistics, statistics_key
from titokctl.evaluation.feature_set import FeatureSet
from titokctl.evaluation.frechet import Gaussian, frechet_distance
from titokctl.evaluation.frechet_error import IMAGES_PER_FEATURE, influences, paired_test
from titokctl.evaluation.image_set import ImageSet, Opening
from titokctl.evaluation.image_sets import open_images
from titokctl.evaluation.kept_features import features_of, kept_features
from titokctl.formats.evaluation import read_evaluations
from titokctl.formats.statistics import file_sha256, read_statistics
from titokctl.jobs.evaluate.fid import fid
from titokctl.progress import Progress

# A kept distance and the one of the images as they are now agree to this share, or the images have changed.
_SAME = 1e-3


@dataclass(frozen=True)
class Judged:
    """One kept result: the set's name and place, and the fields of `titokctl fid`'s result."""

    name: str
    metrics: dict[str, float]
    samples: dict[str, Any]
    reference: dict[str, Any]
    extractor: dict[str, Any]
    warnings: list[str]


@dataclass(frozen=True)
class PairTested:
    """The difference of two Fréchet distances (`first` minus `second`) and how much of it is luck.

    `p` is the chance of a difference as large between equals, `p_of_all` the same when the best of all pairs is picked
    (Holm's correction); `is_paired` tells whether images were compared one to one.
    """

    first: str
    second: str
    difference: float
    standard_error: float
    p: float
    p_of_all: float
    is_paired: bool


@dataclass(frozen=True)
class Comparison:
    """All results, the tests of all pairs, and why there are none."""

    results: list[Judged]
    tests: list[PairTested]
    remarks: list[str]


class _NoTest(Exception):
    """Why distances can't be tested."""


def compare(
    sets: Sequence[str],
    reference: str | None,
    runs: Path,
    *,
    features: str = "inception",
    options: ExtractorOptions | None = None,
    tokenizer: str | None = None,
    save_features: bool = False,
    progress: Progress,
    stop: StopRequest,
) -> Comparison:
    """Put results side by side and test each pair of distances to the same reference.

    Args:
        sets: sets of images as `fid` takes them, or kept results (.json).
        reference: what sets without a kept result are compared with, as `fid` takes it.
        features: whose results are meant.
        save_features: keep features that have to be computed.

    Raises: UserError or UsageError as `fid` does, or for a kept result of other images; Stopped after a signal.
    """
    if len(set(sets)) < 2:
        raise UsageError("a comparison needs two different sets", "e.g. titokctl compare samples-a/ samples-b/")
    opening = Opening(runs, progress.say, tokenizer, None, (options or ExtractorOptions()).device)
    results, keys = [], []
    for given in sets:
        record = _kept_result(Path(given), features, reference, opening)
        if record is None:
            against = "" if reference is None else " against this reference"
            progress.say(f"{given} was not judged on these features{against} before")
            record = asdict(
                fid(
                    given, reference, runs, features=features, options=options, tokenizer=tokenizer,
                    save_features=save_features, progress=progress, stop=stop,
                )
            )  # fmt: skip
        fields = ("metrics", "samples", "reference", "extractor", "warnings")
        results.append(Judged(given, *(record[field] for field in fields)))
        keys.append(record.get("key", ""))
    try:
        tests = _tests(results, partial(_features, options, opening, save_features, progress, stop))
    except _NoTest as why:
        old = [judged.name for judged, key in zip(results, keys, strict=True) if _is_outdated(judged, key, opening)]
        remarks = [f"warning: {name} has changed since; judge it again with `titokctl fid`" for name in old]
        return Comparison(results, [], [f"no test: {why}", *remarks])
    return Comparison(results, tests, [])


def _kept_result(path: Path, features: str, reference: str | None, opening: Opening) -> dict[str, Any] | None:
    """What was kept of an earlier `fid`; None when there is nothing, or it is on another reference than the given."""
    if path.suffix == ".json":
        return read_evaluations(path)[0]
    file = open_images(path, opening).beside(f"{features}.json")
    kept = read_evaluations(file) if file is not None and file.is_file() else []
    wanted = None if reference is None else str(Path(reference).absolute())
    return next((record for record in kept if wanted in (None, record["reference"].get("path"))), None)


def _is_outdated(judged: Judged, key: str, opening: Opening) -> bool:
    """Whether a result that was kept with `key` is of other images than those that are there now."""
    if not key or not Path(str(judged.samples["path"])).exists():
        return False
    images = _images_of(judged, opening)
    return statistics_key(images, *_network(judged)) != key


def _images_of(judged: Judged, opening: Opening) -> ImageSet:
    """The images that were judged, brought to the size that they were judged at."""
    record = judged.samples.get("preprocessing")
    own = None if record is None else PreprocessingConfig.model_validate(record)
    return open_images(Path(str(judged.samples["path"])), replace(opening, preprocessing=own))


def _network(judged: Judged) -> tuple[str, dict[str, Any]]:
    """Name and description of the feature network."""
    return judged.extractor["name"], {key: value for key, value in judged.extractor.items() if key != "name"}


def _tests(results: Sequence[Judged], features_of_set: Callable[[Judged], FeatureSet]) -> list[PairTested]:
    metric = _distance_of_all(results)
    reference = _reference_of_all(results)
    found = []
    for judged in results:
        features = features_of_set(judged)
        distance = frechet_distance(features.pool, reference)
        if abs(distance - judged.metrics[metric]) > _SAME * abs(distance) + 1e-6:
            raise UserError(
                f"{judged.name} holds other images than its kept result is of: {metric} is {distance:.5g} now and was "
                f"{judged.metrics[metric]:.5g}",
                "judge it again with `titokctl fid`",
            )
        if not features.has_all_features or features.features is None:
            raise _NoTest(f"{judged.name} has more images than features are kept of")
        width = len(reference.mean)
        if features.count < IMAGES_PER_FEATURE * width:
            raise _NoTest(
                f"{judged.name} has {features.count:,} images, at least {IMAGES_PER_FEATURE * width:,} needed"
            )
        found.append((judged.name, distance, influences(features.features, features.pool, reference)))
    return _of_all_pairs(found)


def _of_all_pairs(found: Sequence[tuple[str, float, np.ndarray]]) -> list[PairTested]:
    pairs = [(a, b, paired_test(a[1], b[1], a[2], b[2])) for a, b in combinations(found, 2)]
    # Holm: the smallest p counts as many times as there are pairs, the next one less, and so on.
    order, highest, corrected = sorted(range(len(pairs)), key=lambda i: pairs[i][2].p), 0.0, {}
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, pairs[i][2].p * (len(pairs) - rank)))
        corrected[i] = highest
    return [PairTested(a[0], b[0], p_of_all=corrected[i], **vars(test)) for i, (a, b, test) in enumerate(pairs)]


def _distance_of_all(results: Sequence[Judged]) -> str:
    """The name of the Fréchet distance that all results have."""
    if any(judged.extractor != results[0].extractor for judged in results):
        raise _NoTest("the results are on other features, or on features computed with other settings")
    name = results[0].extractor["name"]
    metric = "fid" if name == "inception" else f"fd-{name}"
    if any(metric not in judged.metrics for judged in results):
        raise _NoTest(f"not every result has {metric}")
    return metric


def _reference_of_all(results: Sequence[Judged]) -> Gaussian:
    references = [judged.reference for judged in results]
    if len({about.get("sha256") for about in references}) > 1:
        raise _NoTest("the results are on different references")
    file = Path(str(references[0].get("statistics") or references[0].get("path")))
    if not references[0].get("sha256") or not file.is_file():
        raise _NoTest(f"the statistics of the reference are gone ({file})")
    if file_sha256(file) != references[0]["sha256"]:
        raise _NoTest(f"the reference {file} has changed since")
    return from_statistics(read_statistics(file)).pool


def _features(
    options: ExtractorOptions | None,
    opening: Opening,
    save: bool,
    progress: Progress,
    stop: StopRequest,
    judged: Judged,
) -> FeatureSet:
    """The features of a set: kept ones where they fit, for which no network is needed, else computed."""
    images, (name, description) = _images_of(judged, opening), _network(judged)
    kept = kept_features(images, name, description, progress)
    if kept is not None:
        return kept
    try:
        extractor = extractor_for(name, options, progress)
    except UserError as error:
        raise _NoTest(f"the features of {judged.name} are not kept, and {error.message}") from error
    if extractor.description != description:
        raise _NoTest(f"{judged.name} was judged with other settings of the feature network")
    work = FeaturePass(extractor, progress, stop, skip_bad=bool(judged.samples.get("skipped")))
    found = features_of(images, save, work)
    assert found is not None
    return found
