"""`titokctl reproduce`: released weights -> 50,000 samples -> FID, beside the number that was published for them.

Each stage keeps what it made: weights in the caches, images of an unfinished set in its folder, features beside the
finished one. Run again, it goes on where it stopped.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

from titokctl.config import recipe_files
from titokctl.config.sampling import SamplingConfig
from titokctl.context import Context
from titokctl.distributed.group import Group, single_group
from titokctl.distributed.stop import StopRequest
from titokctl.dry_run import is_dry_run
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.extractors import ExtractorOptions
from titokctl.evaluation.feature_pass import extractor_for
from titokctl.formats.atomic import write_json
from titokctl.formats.run_folder import versions
from titokctl.formats.statistics import is_statistics, read_statistics
from titokctl.jobs.evaluate.fid import FidResult, fid
from titokctl.jobs.sample.request import Sample
from titokctl.progress import Progress
from titokctl.weights.known import BY_NAME
from titokctl.weights.read import locate

FORMAT = "titokctl/reproduction"
FORMAT_VERSION = 1
RESULT = "reproduction.json"
USUAL_COUNT = 50_000
# Which generator was published with which tokenizer.
GENERATORS = {
    "titok-l-32": "maskgit-vit-l-32",
    "titok-b-64": "maskgit-vit-b-64",
    "titok-s-128": "maskgit-uvit-s-128",
}
# How far from the published FID a reproduction may be, chosen before any was measured. Another seed moves an FID of 2
# to 3 on 50,000 images by some hundredths; the published pixels were truncated to bytes where ours are rounded, and
# their features came from other kernels, which should be of the same size. Wrong settings are far outside.
TOLERANCE = 0.10


@dataclass(frozen=True)
class Reproduction:
    """What was published, what was measured, and whether they agree.

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
    agrees: bool | None
    reasons: list[str]
    samples: str
    evaluation: str | None
    reference_sha256: str | None


def reproduce(
    name: str,
    reference: Path,
    runs: Path,
    *,
    num_images: int = USUAL_COUNT,
    features: str = "inception",
    options: ExtractorOptions | None = None,
    progress: Progress,
    stop: StopRequest,
    group: Group | None = None,
) -> Reproduction:
    """Fetch, sample and judge one of the published pairs with its published settings.

    Args:
        name: of the tokenizer, a key of GENERATORS.
        reference: ADM's statistics of ImageNet's training set, VIRTUAL_imagenet256_labeled.npz.
        num_images: another number than 50,000 gives a result that is not comparable, and says so.
        features: another network than Inception gives no FID, and says so.
        options: device, weights and precision of the feature network; the device is also that of sampling.
        group: processes that share the work; each returns the same.

    Raises: UserError or UsageError for a name, weights or reference that can't be used; Stopped after a signal.
    """
    options, group = options or ExtractorOptions(), group or single_group()
    if name not in GENERATORS:
        raise UsageError(f"nothing was published for {name!r}", f"one of: {', '.join(GENERATORS)}")
    if num_images < 2:
        raise UsageError(f"-n must be at least 2, not {num_images}")
    is_adm = _check_reference(reference, features)
    # What may be missing is looked for before hours are spent: rank 0 fetches, the others find it in the cache.
    for wanted in (name, GENERATORS[name]) if group.is_main else ():
        progress.say(f"{wanted}: {locate(wanted, not is_dry_run())}")
    extractor_for(features, options, progress, group)
    settings: SamplingConfig = recipe_files.load(name, "sampling")
    drawn = Sample(
        generator=GENERATORS[name],
        tokenizer=name,
        num_images=num_images,
        settings=settings.model_dump(mode="json"),
        image_format="npz",
    ).run(Context(runs, options.device, progress, stop, group))
    found = fid(
        str(drawn.samples),
        str(reference),
        runs,
        features=features,
        options=options,
        tokenizer=name,
        save_features=True,
        progress=progress,
        stop=stop,
        group=group,
    )
    result = _verdict(name, found, drawn.samples, _not_comparable(num_images, features, options, is_adm))
    if group.is_main:
        header = {"format": FORMAT, "format_version": FORMAT_VERSION, "versions": versions()}
        write_json(drawn.samples / RESULT, header | asdict(result))
    return result


def _verdict(name: str, found: FidResult, samples: Path, reasons: list[str]) -> Reproduction:
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
        agrees=None if reasons else low <= measured <= high,
        reasons=reasons,
        samples=str(samples),
        evaluation=found.kept_in,
        reference_sha256=found.reference.get("sha256"),
    )


def _check_reference(reference: Path, features: str) -> bool:
    """Whether the reference is a file like ADM's. Raises UserError for one that can't be compared with."""
    if not reference.exists():
        raise UserError(
            f"no reference at {reference}",
            "fetch VIRTUAL_imagenet256_labeled.npz, which github openai/guided-diffusion (evaluations/) describes",
        )
    if reference.suffix != ".npz" or not is_statistics(reference):
        return False
    statistics = read_statistics(reference)
    return not statistics.about and statistics.spatial_mean is not None and features == "inception"


def _not_comparable(num_images: int, features: str, options: ExtractorOptions, is_adm: bool) -> list[str]:
    reasons = []
    if num_images != USUAL_COUNT:
        reasons.append(f"{num_images:,} images, not {USUAL_COUNT:,}")
    if features != "inception":
        reasons.append(f"features of {features}, not of Inception: this is no FID")
    elif options.precision != "float32":
        reasons.append(f"features in {options.precision}")
    if not is_adm and features == "inception":
        reasons.append("the reference is not a file like ADM's, with mu, sigma, mu_s and sigma_s")
    return reasons
