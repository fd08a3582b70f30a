"""`titokctl compare`: kept results side by side, and whether their distances differ by more than chance."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.evaluation.feature_pass import (
    FeaturePass,
    from_statistics,
    kept_features,
    measured_samples,
    statistics_key,
)
from titokctl.evaluation.features import FeatureSet
from titokctl.evaluation.frechet import IMAGES_PER_FEATURE, Gaussian, frechet_distance, holm, influences, paired_test
from titokctl.evaluation.image_sets import ImageSet, Opening, open_images
from titokctl.formats.atomic import file_sha256
from titokctl.formats.evaluation import read_evaluations
from titokctl.formats.statistics import read_statistics
from titokctl.jobs.evaluate.fid import Fid
from titokctl.readable import counted

# The images changed if a kept distance and that of the images as they are now differ by more than this share.
_SAME = 1e-3


@dataclass(frozen=True)
class Judged:
    """One kept result: the name of the set, and the fields of the result of `titokctl fid`."""

    name: str
    metrics: dict[str, float]
    samples: dict[str, Any]
    reference: dict[str, Any]
    extractor: dict[str, Any]
    warnings: list[str]


@dataclass(frozen=True)
class PairTested:
    """The difference of two Fréchet distances (`first` minus `second`), tested.

    `p` is the p-value, `p_of_all` the one corrected for the number of pairs (Holm); `is_paired` is True if images were
    compared one to one.
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
    """All results, and the tests of all pairs; `remarks` say why there are none."""

    results: list[Judged]
    tests: list[PairTested]
    remarks: list[str]


class _NoTest(Exception):
    """The reason why distances can't be tested."""


@dataclass(frozen=True)
class Compare:
    """Put results side by side and test each pair of distances to the same reference.

    Making one raises UsageError for fewer than two sets.

    Args:
        sets: sets of images as `Fid` takes them, or kept results (.json).
        reference: what sets without a kept result are compared with, as `Fid` takes it.
        network: whose results are compared.
        tokenizer: for token caches whose tokenizer is not in the runs folder.
        save_features: keep features that have to be computed.
        skip_bad: leave out images that can't be read.
    """

    sets: Sequence[str]
    reference: Path | None = None
    network: FeatureNetwork = field(default_factory=FeatureNetwork)
    tokenizer: str | None = None
    save_features: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if len(set(self.sets)) < 2:
            raise UsageError("a comparison needs two different sets", "e.g. titokctl compare samples-a/ samples-b/")

    def run(self, context: Context) -> Comparison:
        """Return results and tests; sets without a kept result are judged first.

        Raises: UserError or UsageError as `Fid` does, or for a kept result of other images; Stopped after a signal.
        """
        opening = Opening(context, self.tokenizer)
        records = [self._record(given, opening) for given in self.sets]
        fields = ("metrics", "samples", "reference", "extractor", "warnings")
        results = [
            Judged(given, *(record[name] for name in fields)) for given, record in zip(self.sets, records, strict=True)
        ]
        try:
            return Comparison(results, self._tests(results, opening), [])
        except _NoTest as why:
            keys = [record.get("key", "") for record in records]
            old = [judged.name for judged, key in zip(results, keys, strict=True) if _is_outdated(judged, key, opening)]
            remarks = [f"warning: {name} has changed since; judge it again with `titokctl fid`" for name in old]
            return Comparison(results, [], [f"no test: {why}", *remarks])

    def _record(self, given: str, opening: Opening) -> dict[str, Any]:
        """Return the kept result of a set, else judge it."""
        path, context = Path(given), opening.context
        kept = self._kept(path, opening)
        if kept is not None:
            return kept
        against = "" if self.reference is None else " against this reference"
        context.say(f"{given} was not judged on these features{against} yet; judging it now")
        judge = Fid(
            path,
            self.reference,
            network=self.network,
            tokenizer=self.tokenizer,
            skip_bad=self.skip_bad,
            save_features=self.save_features,
        )
        return asdict(judge.run(context))

    def _kept(self, path: Path, opening: Opening) -> dict[str, Any] | None:
        """Return what was kept of an earlier `fid`, on the reference if one is given; None if there is nothing."""
        if path.suffix == ".json":
            return read_evaluations(path)[0]
        file = open_images(path, opening).beside(f"{self.network.name}.json")
        kept = read_evaluations(file) if file is not None and file.is_file() else []
        wanted = None if self.reference is None else str(self.reference.absolute())
        return next((record for record in kept if wanted in (None, record["reference"].get("path"))), None)

    def _tests(self, results: Sequence[Judged], opening: Opening) -> list[PairTested]:
        metric = _distance_of_all(results)
        reference = _reference_of_all(results)
        found = []
        for judged in results:
            features = self._features(judged, opening)
            distance = frechet_distance(features.pool, reference)
            if abs(distance - judged.metrics[metric]) > _SAME * abs(distance) + 1e-6:
                raise UserError(
                    f"the images of {judged.name} changed since they were scored: {metric} is {distance:.5g} now and "
                    f"was {judged.metrics[metric]:.5g}",
                    "judge them again with `titokctl fid`",
                )
            if not features.has_all_features or features.features is None:
                raise _NoTest(f"features are kept for fewer images than {judged.name} has")
            width = len(reference.mean)
            if features.count < IMAGES_PER_FEATURE * width:
                needed = IMAGES_PER_FEATURE * width
                raise _NoTest(f"{judged.name} has {counted(features.count, 'images')}, at least {needed:,} needed")
            found.append((judged.name, distance, influences(features.features, features.pool, reference)))
        return _of_all_pairs(found)

    def _features(self, judged: Judged, opening: Opening) -> FeatureSet:
        """Return the features of a set: current ones that are kept, for which no network is needed, else computed."""
        images, (name, description) = _images_of(judged, opening), _network(judged)
        kept = kept_features(images, name, description, opening.context)
        if kept is not None:
            return kept.features
        try:
            extractor = self.network.called(name).open(opening.context)
        except UserError as error:
            raise _NoTest(f"the features of {judged.name} are not kept, and {error.message}") from error
        if extractor.description != description:
            raise _NoTest(f"{judged.name} was judged with other settings of the feature network")
        work = FeaturePass(extractor, opening.context, skip_bad=self.skip_bad or bool(judged.samples.get("skipped")))
        found = measured_samples(images, self.save_features, work)
        assert found is not None
        return found.features


def _is_outdated(judged: Judged, key: str, opening: Opening) -> bool:
    """Return True if a result that was kept with `key` is of other images than those that are there now."""
    if not key or not Path(str(judged.samples["path"])).exists():
        return False
    images = _images_of(judged, opening)
    return statistics_key(images, *_network(judged)) != key


def _images_of(judged: Judged, opening: Opening) -> ImageSet:
    """Open the images that were judged, at the size at which they were judged."""
    record = judged.samples.get("preprocessing")
    own = None if record is None else PreprocessingConfig.model_validate(record)
    return open_images(Path(str(judged.samples["path"])), replace(opening, preprocessing=own))


def _network(judged: Judged) -> tuple[str, dict[str, Any]]:
    """Return name and description of the feature network."""
    return judged.extractor["name"], {key: value for key, value in judged.extractor.items() if key != "name"}


def _of_all_pairs(found: Sequence[tuple[str, float, np.ndarray]]) -> list[PairTested]:
    pairs = [(a, b, paired_test(a[1], b[1], a[2], b[2])) for a, b in combinations(found, 2)]
    corrected = holm([test.p for _, _, test in pairs])
    return [PairTested(a[0], b[0], p_of_all=corrected[i], **vars(test)) for i, (a, b, test) in enumerate(pairs)]


def _distance_of_all(results: Sequence[Judged]) -> str:
    """Return the name of the Fréchet distance that all results have."""
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
        raise _NoTest(f"the statistics of the reference were moved or deleted ({file})")
    if file_sha256(file) != references[0]["sha256"]:
        raise _NoTest(f"the reference {file} has changed since")
    return from_statistics(read_statistics(file)).pool
