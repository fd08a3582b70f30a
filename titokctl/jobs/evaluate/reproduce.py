"""`titokctl reproduce`: released weights -> 50,000 samples -> FID, beside the number that was published for them.

Each stage keeps its results: weights in the caches, images of an unfinished set in its folder, features beside the
finished one. Run the command again to resume.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from titokctl.config import recipe_files
from titokctl.config.sampling import SamplingConfig
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.evaluation.metrics import FID_IMAGES
from titokctl.formats.evaluation import write_reproduction
from titokctl.formats.statistics import is_statistics, read_statistics
from titokctl.jobs.evaluate.fid import Fid, FidResult
from titokctl.jobs.plan import WritePlan
from titokctl.jobs.sample.request import Sample
from titokctl.models.precision import PRECISIONS, Precision, low_dtype
from titokctl.weights.known import BY_NAME
from titokctl.weights.read import locate

# Which generator was published with which tokenizer.
GENERATORS = {
    "titok-l-32": "maskgit-vit-l-32",
    "titok-b-64": "maskgit-vit-b-64",
    "titok-s-128": "maskgit-uvit-s-128",
}
# How far from the published FID a reproduction may be, chosen before any was measured. Another seed moves an FID of 2
# to 3 on 50,000 images by some hundredths; the published pixels were truncated to bytes where ours are rounded, and
# their features came from other kernels, which should be of the same size. Wrong settings are far outside: with
# constant guidance and without softmax annealing, a user of the code before 3 July 2024, when linear guidance and
# annealing arrived together, got 6.9 where 2.77 was published (issue 11 of bytedance/1d-tokenizer). The documented
# sampling script has both.
TOLERANCE = 0.10


@dataclass(frozen=True)
class Reproduction:
    """The published and the measured number, and whether they agree.

    `agrees` is None when the measurement is not comparable with the published number; `reasons` say why.
    """

    name: str
    published: float
    lowest: float
    highest: float
    metric: str
    measured: float
    standard_error: float | None
    images: int
    precision: str
    agrees: bool | None
    reasons: list[str]
    samples: str
    evaluation: str | None
    reference_sha256: str | None


@dataclass(frozen=True)
class Reproduce:
    """Fetch, sample and judge one of the published pairs with its published settings.

    Making one raises UsageError for an unknown name or too few images.

    Args:
        name: of the tokenizer, a key of GENERATORS.
        reference: ADM's statistics of ImageNet's training set, VIRTUAL_imagenet256_labeled.npz.
        num_images: another number than 50,000 gives a result that is not comparable, and says so.
        network: another network than Inception gives no FID, and the result says so.
        precision: of the generator and the decoder; None for that of the official pipeline, TF32 on a GPU and float32
            on a CPU. A 16-bit one gives a result that is not comparable, and says so.
    """

    name: str
    reference: Path
    num_images: int = FID_IMAGES
    network: FeatureNetwork = field(default_factory=FeatureNetwork)
    precision: Precision | None = None

    def __post_init__(self) -> None:
        if self.name not in GENERATORS:
            raise UsageError(f"nothing was published for {self.name!r}", f"one of: {', '.join(GENERATORS)}")
        if self.num_images < 2:
            raise UsageError(f"-n must be at least 2, not {self.num_images}")
        if self.precision not in (None, *PRECISIONS):
            raise UsageError(f"unknown precision {self.precision!r}", f"one of: {', '.join(PRECISIONS)}")

    def plan(self, context: Context) -> WritePlan:
        """Return what would be drawn. Raises UserError or UsageError for weights or a reference that can't be used."""
        self._check(context, is_plan=True)
        return self._sample(context).plan(context)

    def run(self, context: Context) -> Reproduction:
        """Return the verdict; of several processes, which share the work, each returns the same.

        Raises: UserError or UsageError for weights or a reference that can't be used; Stopped after a signal.
        """
        reasons = self._check(context, is_plan=False)
        request = self._sample(context)
        drawn = request.run(context)
        judge = Fid(drawn.samples, self.reference, network=self.network, tokenizer=self.name, save_features=True)
        result = verdict(self.name, judge.run(context), drawn.samples, str(request.precision), reasons)
        if context.group.is_main:
            write_reproduction(drawn.samples, asdict(result))
        return result

    def _sample(self, context: Context) -> Sample:
        settings: SamplingConfig = recipe_files.load(self.name, "sampling")
        return Sample(
            generator=GENERATORS[self.name],
            tokenizer=self.name,
            num_images=self.num_images,
            settings=settings.as_changes(),
            image_format="npz",
            precision=self._precision(context),
        )

    def _check(self, context: Context, is_plan: bool) -> list[str]:
        """Look for all inputs before hours are spent; return why the result is not comparable.

        A plan fetches no weights.
        """
        if not self.reference.exists():
            raise UserError(
                f"reference not found: {self.reference}",
                "fetch VIRTUAL_imagenet256_labeled.npz, which github openai/guided-diffusion (evaluations/) describes",
            )
        # Rank 0 fetches; the others find the files in the cache.
        for wanted in (self.name, GENERATORS[self.name]) if context.group.is_main else ():
            context.say(f"{wanted}: {locate(wanted, not is_plan).path}")
        self.network.open(context, fetch=not is_plan)
        return not_comparable(self.num_images, self._precision(context), self.network, _is_like_adms(self.reference))

    def _precision(self, context: Context) -> Precision:
        on_gpu = torch.device(context.device).type == "cuda"
        return self.precision or ("tf32" if on_gpu else "float32")


def verdict(name: str, found: FidResult, samples: Path, precision: str, reasons: list[str]) -> Reproduction:
    """Return whether a result agrees with the published number; with `reasons` it isn't comparable."""
    metric = "fid" if found.extractor["name"] == "inception" else f"fd-{found.extractor['name']}"
    published, measured = BY_NAME[GENERATORS[name]].gfid or 0.0, found.metrics[metric]
    low, high = published - TOLERANCE, published + TOLERANCE
    return Reproduction(
        name=name,
        published=published,
        lowest=low,
        highest=high,
        metric=metric,
        measured=measured,
        standard_error=found.metrics.get(f"{metric}_standard_error"),
        images=found.samples["count"],
        precision=precision,
        agrees=None if reasons else low <= measured <= high,
        reasons=reasons,
        samples=str(samples),
        evaluation=found.kept_in,
        reference_sha256=found.reference.get("sha256"),
    )


def not_comparable(num_images: int, precision: Precision, network: FeatureNetwork, is_adm: bool) -> list[str]:
    """Return what keeps a result from being comparable with the published number.

    Args:
        precision: of the generator and the decoder.
        is_adm: the reference is a file like ADM's.
    """
    reasons = []
    if num_images != FID_IMAGES:
        reasons.append(f"{num_images:,} images, not {FID_IMAGES:,}")
    if low_dtype(precision) is not None:
        reasons.append(f"drawn in {precision}, not in float32 or TF32")
    if network.name != "inception":
        reasons.append(f"features of {network.name}, not of Inception: this is not FID")
    elif network.precision != "float32":
        reasons.append(f"features in {network.precision}")
    if not is_adm and network.name == "inception":
        reasons.append("the reference is not a file like ADM's, with mu, sigma, mu_s and sigma_s")
    return reasons


def _is_like_adms(reference: Path) -> bool:
    """Return True for a file with ADM's statistics. Raises UserError for a damaged one."""
    if reference.suffix != ".npz" or not is_statistics(reference):
        return False
    statistics = read_statistics(reference)
    return not statistics.about and statistics.spatial_mean is not None
