"""What `titokctl fid` costs: features beside the bare network, statistics, the trace; what --fast and --tf32 change.

    python -m benchmarks.fid [--device cpu|cuda] [--quick] [--json out.json]    # Inception at full size, random weights
    python -m benchmarks.fid --what deviation                  # float32 beside bf16 and TF32, on rendered scenes

Speed: the whole way of `titokctl stats` (an .npz on the disk -> features -> sums) beside the bare network on batches
that are ready; the float64 sums and the trace of two covariances of 2,048 features beside one float64 matrix product of
the same size.

Deviation: lite0 has its published weights; Inception, whose weights are not here, has the weights of the formula that
the tests compare it by (tests/golden.py), so its figures tell about the arithmetic and not about FIDs. A CPU has no
TF32: there the factors of each layer's products lose the last 13 bits of their fractions, as in a GPU's tensor cores.
"""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import BASELINE, Figures, Way, compare, parser, report, report_numbers
from titokctl.context import Context
from titokctl.data.scenes.factors import scene
from titokctl.data.scenes.renderer import render
from titokctl.data.scenes.shards import HELD_OUT_FROM
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.evaluation.extractors import Extractor, ExtractorOptions, inception_extractor, open_extractor
from titokctl.evaluation.feature_pass import KEEP_OF_SAMPLES, FeaturePass, measure
from titokctl.evaluation.features import extract_all
from titokctl.evaluation.frechet import GaussianSums, frechet_distance, gaussian_of, trace_of_root
from titokctl.evaluation.image_sets import ArrayImages
from titokctl.evaluation.metrics import kernel_distance
from titokctl.models import inception
from titokctl.models.inception import Inception
from titokctl.weights.feature_networks import inception_from

ROOT = Path(__file__).resolve().parents[1]
SIZE, WIDTH = 256, 2048


def main() -> None:
    """Measure what the command line asks for and print it."""
    made = parser(__doc__)
    made.add_argument("--what", choices=("speed", "deviation"), default="speed")
    given = made.parse_args()
    if given.what == "deviation":
        report_numbers("fid: bf16 and TF32 beside float32", given, deviation(given.device, 24 if given.quick else 160))
    else:
        report("fid: features, sums and the trace", given, speed(given.device, given.quick), image_size=SIZE)


def speed(device: str, quick: bool) -> dict[str, Figures]:
    """The whole way, and its parts."""
    torch.manual_seed(0)
    extractor = inception_extractor(Inception().eval().requires_grad_(False), ExtractorOptions(device))
    count = extractor.batch_size * (2 if quick else 12 if device == "cpu" else 60)
    pixels = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    batches = [torch.from_numpy(pixels[i : i + extractor.batch_size]) for i in range(0, count, extractor.batch_size)]
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        context = Context(device=device, stop=stop)
        np.savez(Path(folder) / "images.npz", pixels)
        images = ArrayImages(Path(folder) / "images.npz")

        def one(batch: torch.Tensor) -> torch.Tensor:
            with torch.inference_mode():
                return extractor.network(batch.to(device))["pool"]

        def bare() -> None:
            if device != "cpu":
                [one(batch) for batch in batches][-1].cpu()
                return
            threads = torch.get_num_threads()  # one batch each is the quickest way there is on a CPU
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(one, batches))

        def whole() -> None:
            measure(images, KEEP_OF_SAMPLES, "images", FeaturePass(extractor, context))

        ways = {BASELINE: Way(bare, items=count), "ours": Way(whole, items=count)}
        return compare(ways | statistics_ways(), device, 1 if quick else 3)


def statistics_ways() -> dict[str, Way]:
    """The sums for mean and covariance of 1,024 images, and the trace, each beside bare products."""
    rng = np.random.default_rng(0)
    rows = rng.random((1024, WIDTH), dtype=np.float32)
    ready, collected = torch.from_numpy(rows).double(), GaussianSums(WIDTH)
    mixing = rng.standard_normal((WIDTH, WIDTH)) * np.linspace(0.01, 1, WIDTH)
    a, b = (gaussian_of((rng.standard_normal((5000, WIDTH)) @ mixing).astype(np.float32)) for _ in range(2))
    x = torch.from_numpy(a.covariance)
    of_rows, square = "product of 1,024 rows", "square product"
    return {
        of_rows: Way(lambda: ready.T @ ready, items=len(rows), beside=of_rows),
        "sums": Way(lambda: collected.add(rows), items=len(rows), beside=of_rows),
        square: Way(lambda: x @ x, beside=square),
        "trace": Way(lambda: trace_of_root(a.covariance, b.covariance), beside=square),
    }


def deviation(device: str, count: int) -> dict[str, object]:
    """How far bf16 and TF32 move features and distances between two sets of `count` scenes."""
    first, second = scenes(0, count), scenes(HELD_OUT_FROM, count)
    found: dict[str, object] = {"images_a_set": count}
    for name, make in (("lite0", lambda o: open_extractor("lite0", o)), ("inception_by_formula", by_formula)):
        sets = {}
        for precision in ("float32", "bf16", "tf32"):
            extractor = make(ExtractorOptions(device, precision=precision))  # type: ignore[arg-type]
            with shortened_factors() if (precision, device) == ("tf32", "cpu") else contextlib.nullcontext():
                sets[precision] = [
                    extract_all(extractor, [pixels])["pool"].astype(np.float64) for pixels in (first, second)
                ]
        x, y = sets.pop("float32")
        exact, kid = frechet_distance(gaussian_of(x), gaussian_of(y)), kernel_distance(x, y)
        found |= {f"{name}_fd": exact, f"{name}_kid": kid}
        for precision, (u, v) in sets.items():
            found |= {
                f"{name}_{precision}_features_relative": float(np.linalg.norm(x - u) / np.linalg.norm(x)),
                f"{name}_{precision}_fd_relative": frechet_distance(gaussian_of(u), gaussian_of(v)) / exact - 1,
                f"{name}_{precision}_fd_of_one_set_in_both": frechet_distance(gaussian_of(x), gaussian_of(u)),
                f"{name}_{precision}_kid_relative": kernel_distance(u, v) / kid - 1,
            }
    return found


@contextlib.contextmanager
def shortened_factors() -> Iterator[None]:
    """Let convolutions and linear layers multiply numbers of 10 bits after the point, as TF32 has; weights stay so."""

    def shorten(x: torch.Tensor) -> torch.Tensor:
        return (x.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)

    def before(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            return None
        module.weight.data.copy_(shorten(module.weight.data))
        return tuple(shorten(x) for x in inputs)

    handle = torch.nn.modules.module.register_module_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def by_formula(options: ExtractorOptions) -> Extractor:
    """Inception with the weights that the tests' formula gives to its published names."""
    sys.path.insert(0, str(ROOT / "tests"))
    from golden import fill

    table = {name: torch.from_numpy(fill(name, shape)) for name, shape in published_shapes()}
    return inception_extractor(inception_from(table), options)


def published_shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the published file."""
    for name, module in Inception().named_modules():
        if isinstance(module, torch.nn.Conv2d):
            theirs = name[0].upper() + name[1:]
            yield f"{theirs}.conv.weight", tuple(module.weight.shape)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                yield f"{theirs}.bn.{leaf}", (module.out_channels,)
    yield "fc.weight", (inception.NUM_CLASSES, inception.POOL_WIDTH)
    yield "fc.bias", (inception.NUM_CLASSES,)


def scenes(first: int, count: int) -> np.ndarray:
    """(count, 64, 64, 3) uint8 rendered scenes from index `first` on."""
    return np.stack([render(scene(0, first + index)) for index in range(count)])


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"{error.message}\n{error.hint}")
