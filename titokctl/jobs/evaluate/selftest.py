"""`titokctl fid --selftest`: whether this installation's numbers agree with those published for ADM's samples.

The samples are admnet_guided_upsampled_imagenet256.npz and the reference VIRTUAL_imagenet256_labeled.npz, both from
github openai/guided-diffusion (evaluations/README.md), which quotes the numbers. All of them come from TensorFlow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from titokctl.context import Context
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.jobs.evaluate.fid import Fid, FidResult


@dataclass(frozen=True)
class Expected:
    """A published number and how far ours may be from it."""

    value: float
    tolerance: float


# Chosen before any measurement. Half a percent leaves room for another order of sums and other kernels, while another
# resize, bias or split shows as several percent. Precision and recall count comparisons of distances, which ADM's
# evaluator makes in half precision where it can, so borderline images fall either way.
PUBLISHED = {
    "is": Expected(215.84, 1.08),
    "fid": Expected(3.943, 0.02),
    "sfid": Expected(6.140, 0.031),
    "precision": Expected(0.8265, 0.01),
    "recall": Expected(0.5309, 0.01),
}
METRICS = ("fid", "sfid", "is", "pr")


@dataclass(frozen=True)
class Check:
    """One number of the table."""

    metric: str
    published: float
    tolerance: float
    measured: float
    passed: bool


@dataclass(frozen=True)
class SelftestResult:
    """The table, whether all of it agrees, and the evaluation it came from."""

    passed: bool
    checks: list[Check]
    evaluation: FidResult


@dataclass(frozen=True)
class Selftest:
    """Judge published samples and compare the numbers with the published ones.

    Args:
        samples, reference: the two files.
        network: the feature network; only Inception's numbers were published.
        expected: the numbers to compare with, by name.
    """

    samples: Path
    reference: Path
    network: FeatureNetwork = field(default_factory=FeatureNetwork)
    expected: Mapping[str, Expected] = field(default_factory=lambda: PUBLISHED)

    def run(self, context: Context) -> SelftestResult:
        """Return the table. Raises UserError when the files don't allow one of the metrics; Stopped after a signal."""
        found = Fid(self.samples, self.reference, METRICS, self.network).run(context)
        checks = [_check(metric, wanted, _measured(found, metric)) for metric, wanted in self.expected.items()]
        return SelftestResult(all(check.passed for check in checks), checks, found)


def _check(metric: str, wanted: Expected, measured: float) -> Check:
    passed = abs(measured - wanted.value) <= wanted.tolerance
    return Check(metric, wanted.value, wanted.tolerance, measured, passed)


def _measured(found: FidResult, metric: str) -> float:
    """Return the number under the name that the feature network gives it."""
    names = (metric, f"{'fd' if metric == 'fid' else metric}-{found.extractor['name']}")
    return next(found.metrics[name] for name in names if name in found.metrics)
