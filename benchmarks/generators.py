"""Kinds of generators after equal training on one cache: bits an id, and KID of their samples, over several seeds.

    python -m benchmarks.generators --demo demo/ [--seeds 3] [--seconds 80] [--images 600] [--folder FOLDER]
        [--device cpu|cuda] [--quick] [--json FILE]

The caches, the tokenizer and the held-out scenes are those of a finished `titokctl demo`, which stays as it is. First a
step of each recipe is timed, in turns; then each trains for as many steps as fit into --seconds. On a CPU these are
seconds of processor time, which other programs on the machine hardly change. Each seed trains, and draws images with
the recipe's own settings; KID is that against the held-out scenes on Lite2, a network that nothing was trained on.
With --folder, the same command resumes what was stopped; then seconds are those of the last call.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import parser, report_numbers, synchronize
from titokctl.config import recipe_files
from titokctl.context import Context
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.formats.run_folder import finished_runs
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.evaluate.fid import Fid
from titokctl.jobs.evaluate.nll import Nll
from titokctl.jobs.evaluate.stats import Stats
from titokctl.jobs.sample.request import Sample
from titokctl.jobs.train.generator import TrainGenerator, build_task, training_rows
from titokctl.training.generator_task import GeneratorTask

FIRST, SECOND = RECIPES = ("tiny", "tiny-rar")
_WARM_STEPS = 3
_PASSES = 4  # of the masked bound
# Student's t for an interval of 95 %, by the number of seeds.
_T95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Demo:
    """The files of a finished demo that the generators are trained and judged with."""

    folder: Path

    @property
    def cache(self) -> Path:
        """The token cache of the training scenes."""
        return self.folder / "tokens.h5"

    @property
    def held_out(self) -> Path:
        """The token cache of the held-out scenes."""
        return self.folder / "heldout.h5"

    @property
    def pictures(self) -> Path:
        """The held-out scenes."""
        return self.folder / "shards" / "heldout"

    def reference(self, context: Context) -> Path:
        """Return a file with the features of the held-out scenes, which is made once."""
        path = context.runs / "reference-lite2.npz"
        if not path.exists():
            Stats([self.pictures], path, _judge(context)).run(context)
        return path

    @property
    def tokenizer(self) -> str:
        """The run folder of the tokenizer."""
        return str(finished_runs(self.folder / "runs", "tokenizer")[0].path)


def main() -> None:
    """Train, judge, and print the numbers."""
    made = parser(__doc__)
    made.add_argument("--demo", type=Path, default=Path("demo"), help="folder of a finished demo (default: demo)")
    made.add_argument("--seeds", type=int, help="(default: 3, or 2 with --quick)")
    made.add_argument("--seconds", type=float, help="of training, for each (default: 80, or 2 with --quick)")
    made.add_argument("--images", type=int, help="to draw for KID (default: 600, or 96 with --quick)")
    made.add_argument("--folder", type=Path, help="for runs and samples (default: a temporary one)")
    given = made.parse_args()
    seeds, images = given.seeds or (2 if given.quick else 3), given.images or (96 if given.quick else 600)
    seconds = given.seconds or (2.0 if given.quick else 80.0)
    with tempfile.TemporaryDirectory() as temporary:
        context = Context((given.folder or Path(temporary)) / "runs", given.device)
        steps = steps_in(seconds, Demo(given.demo), context)
        found = [
            {name: judged(name, steps[name], seed, images, Demo(given.demo), context) for name in RECIPES}
            for seed in range(seeds)
        ]
    report_numbers("generators", given, {f"{name}: steps": steps[name] for name in RECIPES} | summary(found))


def steps_in(seconds: float, demo: Demo, context: Context) -> dict[str, int]:
    """Return the number of training steps that fit into `seconds` by recipe; kept in the folder for the next run."""
    kept = context.runs / f"steps-in-{seconds:g}.json"
    if kept.exists():
        found: dict[str, int] = json.loads(kept.read_text())
        return found
    spent = _step_seconds(demo, context)
    steps = {name: round(seconds / one) for name, one in spent.items()}
    context.runs.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(steps))
    return steps


def _step_seconds(demo: Demo, context: Context, rounds: int = 15) -> dict[str, float]:
    """Return the median seconds of a training step by recipe, taken in turns."""
    tasks = {name: _task(name, demo, context) for name in RECIPES}
    spent: dict[str, list[float]] = {name: [] for name in RECIPES}
    for step in range(_WARM_STEPS + rounds):
        for name, task in tasks.items():
            began = _clock(context.device)
            task.prepare(step)
            task.step(step)
            spent[name].append(_clock(context.device) - began)
    return {name: statistics.median(times[_WARM_STEPS:]) for name, times in spent.items()}


def _task(name: str, demo: Demo, context: Context) -> GeneratorTask:
    recipe = recipe_files.load(name, "generator")
    rows = training_rows(recipe, TokenCache.open(demo.cache), None, context.device)
    return build_task(recipe, rows, context.device, context.group)


def _judge(context: Context) -> FeatureNetwork:
    return FeatureNetwork("lite2", fast=context.device == "cpu")


def _clock(device: str) -> float:
    """Return seconds: of processor time on a CPU, of the wall clock on a GPU."""
    synchronize(device)
    return time.process_time() if device == "cpu" else time.perf_counter()


def judged(name: str, steps: int, seed: int, images: int, demo: Demo, context: Context) -> dict[str, float]:
    """Train one generator, and return its numbers by name."""
    changes = [
        f"training.steps={steps}", f"training.seed={seed}", f"training.evaluate_every={steps}",
        f"training.checkpoint_every={steps}", f"schedule.warmup_steps={min(50, steps // 4)}",
    ]  # fmt: skip
    began = _clock(context.device)
    trained = TrainGenerator(demo.cache, name, changes, demo.held_out, name=f"{name}-{seed}").run(context)
    after = _clock(context.device)
    likelihood = Nll(demo.held_out, str(trained.run), _PASSES).run(context)
    drawing = _clock(context.device)
    folder = context.runs / f"samples-{name}-{seed}"
    if not (folder / "manifest.json").exists():
        Sample(str(trained.run), demo.tokenizer, images, settings={"seed": seed}, output=folder).run(context)
    drawn = _clock(context.device)
    scores = Fid(folder, demo.reference(context), ["kid"], _judge(context)).run(context)
    found = {
        "seconds of training, with evaluation": after - began,
        "seconds of drawing": drawn - drawing,
        "bits an id": _bits(likelihood.numbers),
        "standard error of bits": _bits(likelihood.numbers, "standard_error_per_id"),
        "KID": scores.metrics["kid-lite2_all_pairs"],
    }
    print(f"{name}, seed {seed}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items()), flush=True)
    return found


def _bits(numbers: Mapping[str, float | None], name: str = "bits_per_id") -> float:
    """Return a number of the likelihood, whether it is exact or a bound."""
    return float(numbers.get(name) or numbers[f"{name}_bound"] or math.nan)


def summary(found: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Return all numbers by name: of every seed, their means, and the difference of the kinds with its interval."""
    numbers: dict[str, Any] = {}
    for name in RECIPES:
        for key in found[0][name]:
            values = [each[name][key] for each in found]
            numbers[f"{name}: {key}"] = ", ".join(f"{value:.4g}" for value in values)
            numbers[f"{name}: {key}, mean"] = statistics.mean(values)
    for key in ("KID", "bits an id"):
        differences = [each[SECOND][key] - each[FIRST][key] for each in found]
        numbers[f"{SECOND} - {FIRST}: {key}"] = statistics.mean(differences)
        if (t := _T95.get(len(differences))) is not None:
            half = t * statistics.stdev(differences) / math.sqrt(len(differences))
            numbers[f"{SECOND} - {FIRST}: {key}, 95 % interval +-"] = half
    return numbers


if __name__ == "__main__":
    main()
