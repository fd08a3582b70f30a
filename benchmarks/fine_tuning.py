"""How much training from the weights of other classes gains over training from scratch, in the same few steps.

    python -m benchmarks.fine_tuning [--images 4000] [--steps 1200] [--generator-steps 420] [--folder FOLDER]
        [--device cpu|cuda] [--quick] [--json out.json]

Rendered scenes are divided by class: a tokenizer and a generator (recipes tiny) learn the first half of the classes.
Then both learn the other half for a tenth of those steps, once from these weights (--init) and once from random values,
each judged on held-out scenes of the other half. Both generators learn ids of the first tokenizer. With --folder, the
same command resumes what was stopped.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import parser
from titokctl.context import Context
from titokctl.data.sources import open_source
from titokctl.formats.run_folder import versions
from titokctl.jobs.scenes import Scenes
from titokctl.jobs.tokenize.request import Tokenize
from titokctl.jobs.train.generator import TrainGenerator
from titokctl.jobs.train.tokenizer import TrainTokenizer

SHARE = 10  # the fine-tuned runs take a tenth of the steps
HALVES = ("first", "second")


def main() -> None:
    """Train, and print the held-out numbers of both ways."""
    made = parser(__doc__)
    made.add_argument("--images", type=int, help="scenes of all classes (default: 4000, or 240 with --quick)")
    made.add_argument("--steps", type=int, help="of the first tokenizer (default: 1200, or 40 with --quick)")
    made.add_argument("--generator-steps", type=int, help="of the first generator (default: 420, or 40 with --quick)")
    made.add_argument("--folder", type=Path, help="for images and runs (default: a temporary one)")
    given = made.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = measured(given, given.folder or Path(temporary))
    for name, number in found.items():
        print(f"{name:40} {number:.4g}")
    if given.json is not None:
        facts = {"command": vars(given), "threads": torch.get_num_threads(), "versions": versions()}
        given.json.write_text(json.dumps({"facts": facts, "figures": found}, indent=1, default=str))


def measured(given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train everything under `folder`, and return the held-out numbers by name."""
    context, quick = Context(folder / "runs", given.device), given.quick
    halves(folder, given.images or (240 if quick else 4000))
    steps = given.steps or (40 if quick else 1200)
    first = tokenizer(folder, context, "first", steps, steps // 2)
    short = steps // SHARE
    tuned = tokenizer(folder, context, "tuned", short, 0, str(first.run), rate=5e-4)
    scratch = tokenizer(folder, context, "scratch", short, short // 2)
    numbers = {"tuned_psnr_db": psnr(tuned), "scratch_psnr_db": psnr(scratch), "gain_db": psnr(tuned) - psnr(scratch)}

    for half in HALVES:
        for split in ("train", "heldout"):
            target = folder / f"{half}-{split}.h5"
            if not target.exists():
                Tokenize([folder / half / split], target, str(first.run)).run(context)
    steps = given.generator_steps or (40 if quick else 420)
    learnt = generator(folder, context, "first", "first", steps)
    again = generator(folder, context, "second", "tuned", steps // SHARE, str(learnt.run), rate=5e-4)
    new = generator(folder, context, "second", "scratch", steps // SHARE)
    a, b = again.metrics["held_out_loss"], new.metrics["held_out_loss"]
    return numbers | {"tuned_loss_nats": a, "scratch_loss_nats": b, "lower_by": 1 - a / b}


def halves(folder: Path, images: int) -> None:
    """Render scenes, and put each half of the classes into `<half>/<split>`, a folder per class."""
    if (folder / HALVES[1] / "heldout").is_dir():
        return
    Scenes(folder / "scenes", images, max(images // 10, 60)).run(Context())
    for split in ("train", "heldout"):
        source = open_source([folder / "scenes" / split]).by_position()
        names = source.class_names
        for label, name in enumerate(names):
            (folder / HALVES[label * 2 // len(names)] / f".{split}" / name).mkdir(parents=True, exist_ok=True)
        for position in range(len(source)):
            sample = source.sample(position)
            half = HALVES[sample.label * 2 // len(names)]
            target = folder / half / f".{split}" / names[sample.label] / f"{position:06d}.png"
            target.write_bytes(sample.data)
        for half in HALVES:
            (folder / half / f".{split}").rename(folder / half / split)


def tokenizer(
    folder: Path, context: Context, name: str, steps: int, continuous: int, init: str | None = None, rate: float = 1e-3
) -> Any:
    """Train a tokenizer: run "first" on the first half of the classes, others on the second."""
    half = folder / HALVES[name != "first"]
    changes = [
        f"training.steps={steps}", f"training.evaluate_every={steps}", f"optimizer.learning_rate={rate}",
        f"codebook.continuous_steps={continuous}", "loss={reconstruction: l2, perceptual: {}}",
        f"schedule.warmup_steps={min(30, steps // 4)}", f"optimizer.muon_learning_rate={2 * rate}",
    ]  # fmt: skip
    request = TrainTokenizer(
        [half / "train"], "tiny", changes, validation=[half / "heldout"], init=init, name=f"tokenizer-{name}"
    )
    return request.run(context)


def generator(
    folder: Path, context: Context, half: str, name: str, steps: int, init: str | None = None, rate: float = 2e-3
) -> Any:
    """Train a generator on the ids of one half of the classes."""
    changes: Sequence[str] = [
        f"training.steps={steps}", f"training.evaluate_every={steps}", f"optimizer.learning_rate={rate}",
        f"schedule.warmup_steps={min(50, steps // 4)}", f"optimizer.muon_learning_rate={2 * rate}", "views=[plain]",
    ]  # fmt: skip
    cache, judged = folder / f"{half}-train.h5", folder / f"{half}-heldout.h5"
    request = TrainGenerator(cache, "tiny", changes, judged, name=f"generator-{name}", init=init)
    return request.run(context)


def psnr(trained: Any) -> float:
    """Return the PSNR in dB of held-out images."""
    return float(trained.metrics["val_psnr"])


if __name__ == "__main__":
    main()
