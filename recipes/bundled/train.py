"""Train the bundled models scenes-64 and maskgit-scenes-64 with titokctl's own commands.

    python recipes/bundled/train.py -o bundled/ --seconds 200 --device cuda

Everything is made from rendered scenes, so nothing is downloaded. The folder gets scenes-64.safetensors and
maskgit-scenes-64.safetensors (bf16, 15.8 MB together), numbers.json and log.txt. Run the same command again to resume:
finished steps are skipped, and training goes on from its newest checkpoint.

`--init-tokenizer scenes-64 --init-generator maskgit-scenes-64` goes on from the bundled models, with a new schedule.

`--seconds` is the time for both trainings together, on whatever machine this is: the speed is measured first, and the
numbers of steps follow from it; they are kept in steps.json. Without it, the recipes' own numbers of steps are used.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER, GENERATOR = "scenes-64", "maskgit-scenes-64"
TOKENIZER_SHARE = 0.65  # of the seconds
# When things begin, as shares of the tokenizer's steps.
QUANTIZED_FROM, PERCEPTUAL_FROM = 0.4, 0.7
SPEED_STEPS = int(os.environ.get("SPEED_STEPS", "120"))  # the second half of them with the perceptual loss
EVALUATIONS = 5


class Chain:
    """Runs commands in a folder, one after the other, and keeps a log of them."""

    def __init__(self, folder: Path, device: str | None) -> None:
        self.folder, self.device = folder, ["--device", device] if device else []
        self.seconds: dict[str, float] = {}

    def run(self, step: str, *words: object) -> str:
        """Run `titokctl WORDS` in the folder; return its stdout. Ends this program if the command fails."""
        command = [sys.executable, "-m", "titokctl", *map(str, words)]
        self.say(f"$ titokctl {' '.join(command[3:])}")
        path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
        began = time.monotonic()
        done = subprocess.Popen(
            command, cwd=self.folder, env=os.environ | {"PYTHONPATH": path}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if step != "json" else None,
        )  # fmt: skip
        assert done.stdout is not None
        lines = []
        for line in done.stdout:
            lines.append(line)
            if step != "json":
                self.say(line.rstrip())
        if done.wait():
            raise SystemExit(done.returncode)
        self.seconds[step] = round(time.monotonic() - began, 1)
        return "".join(lines)

    def say(self, text: str) -> None:
        """Print a line, and add it to log.txt with the time of day."""
        print(text, flush=True)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def metrics(self, run: str) -> list[dict[str, Any]]:
        """Return the records of a run's log."""
        text = (self.folder / "runs" / run / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


def main() -> None:
    """Run all steps that are not finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder for everything")
    parser.add_argument("--seconds", type=float, help="for both trainings together; by default the recipes' steps")
    parser.add_argument("--images", type=int, default=80_000, help="rendered for training")
    parser.add_argument("--held-out", type=int, default=2_000, help="rendered for validation")
    parser.add_argument("--device", help="cuda or cpu; by default the best there is")
    parser.add_argument("--init-tokenizer", help="weights to start the tokenizer from: a file, a run or a known name")
    parser.add_argument("--init-generator", help="weights to start the generator from")
    parser.add_argument("--set", action="append", default=[], help="a change of the tokenizer's recipe")
    parser.add_argument("--set-generator", action="append", default=[], help="a change of the generator's recipe")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    chain = Chain(given.output, given.device)
    chain.run("render", "scenes", "-o", "scenes", "-n", given.images, "--heldout", given.held_out, "--quiet")
    changes = tokenizer_changes(chain, given.seconds, given.set)
    train_tokenizer(chain, [*changes, *starting_from(given.init_tokenizer)])
    changes = generator_changes(chain, given.seconds, given.set_generator)
    train_generator(chain, [*changes, *starting_from(given.init_generator)])
    write_numbers(chain, given.init_tokenizer == TOKENIZER)


def train_tokenizer(chain: Chain, changes: list[str]) -> None:
    """Train the tokenizer, and write its weights in bf16."""
    words = ["train-tokenizer", "scenes/train", "--val", "scenes/heldout", "--recipe", TOKENIZER, "--name", TOKENIZER]
    chain.run("train-tokenizer", *words, *changes, "--runs-dir", "runs", *chain.device)
    if not (chain.folder / f"{TOKENIZER}.safetensors").exists():
        source = f"runs/tokenizer/{TOKENIZER}"
        chain.run("convert", "convert", source, "-o", f"{TOKENIZER}.safetensors", "--dtype", "bf16")


def train_generator(chain: Chain, changes: list[str]) -> None:
    """Train the generator on the rounded tokenizer's ids, and write its weights in bf16."""
    words = ["train-gen", "train.h5", "--val", "heldout.h5", "--recipe", TOKENIZER, "--name", GENERATOR]
    words += ["--tokenizer", f"{TOKENIZER}.safetensors"]
    chain.run("train-gen", *words, *changes, "--runs-dir", "runs", *chain.device)
    if not (chain.folder / f"{GENERATOR}.safetensors").exists():
        source = f"runs/generator/{GENERATOR}"
        chain.run("convert", "convert", source, "-o", f"{GENERATOR}.safetensors", "--dtype", "bf16")


def starting_from(weights: str | None) -> list[str]:
    """Return the options that start a training from weights."""
    return ["--init", weights] if weights else []


def tokenizer_changes(chain: Chain, seconds: float | None, wanted: list[str]) -> list[str]:
    """Return the changes of the tokenizer's recipe: those that make it last its share of the seconds, then `wanted`."""
    if seconds is None:
        return changed(wanted)
    steps = kept_steps(chain, "tokenizer")
    if steps is None:
        batch, half = batch_size("tokenizer", wanted), SPEED_STEPS // 2
        settings = {"training.steps": SPEED_STEPS, "training.evaluate_every": 10 * SPEED_STEPS,
                    "training.log_every": max(1, half // 2), "training.checkpoint_every": 10 * SPEED_STEPS,
                    "loss.perceptual_start": half, "codebook.continuous_steps": 0}  # fmt: skip
        words = ["train-tokenizer", "scenes/heldout", "--recipe", TOKENIZER, "--name", "speed", "--overwrite"]
        chain.run("measure", *words, *changed([*wanted, *as_words(settings)]), "--runs-dir", "runs", *chain.device)
        speed = {r["step"]: r["images_per_s"] for r in chain.metrics("tokenizer/speed") if "images_per_s" in r}
        cost = PERCEPTUAL_FROM / speed[half] + (1 - PERCEPTUAL_FROM) / speed[SPEED_STEPS]  # seconds an image
        steps = keep_steps(chain, "tokenizer", int(TOKENIZER_SHARE * seconds / (cost * batch)))
    settings = lengths(steps) | {
        "codebook.continuous_steps": int(QUANTIZED_FROM * steps),
        "loss.perceptual_start": int(PERCEPTUAL_FROM * steps),
    }
    return changed([*as_words(settings), *wanted])


def generator_changes(chain: Chain, seconds: float | None, wanted: list[str]) -> list[str]:
    """Tokenize; then return the changes of the generator's recipe, as `tokenizer_changes` does."""
    for split in ("train", "heldout"):
        if not (chain.folder / f"{split}.h5").exists():
            words = ["tokenize", f"scenes/{split}", "-o", f"{split}.h5", "--tokenizer", f"{TOKENIZER}.safetensors"]
            chain.run(f"tokenize-{split}", *words, *chain.device)
    if seconds is None:
        return changed(wanted)
    steps = kept_steps(chain, "generator")
    if steps is None:
        batch = batch_size("generator", wanted)
        words = [
            "train-gen",
            "train.h5",
            "--recipe",
            TOKENIZER,
            "--dry-run",
            "--measure",
            "--json",
            "--quiet",
            *changed(wanted),
        ]
        plan = json.loads(chain.run("json", *words, "--runs-dir", "runs", *chain.device))
        rate = plan["plan"]["images_per_s"]
        steps = keep_steps(chain, "generator", int((1 - TOKENIZER_SHARE) * seconds * rate / batch))
    return changed([*as_words(lengths(steps)), *wanted])


def lengths(steps: int) -> dict[str, Any]:
    """Return the settings of a run of `steps` steps."""
    every = -(-steps // EVALUATIONS)
    return {"training.steps": steps, "training.evaluate_every": every, "training.checkpoint_every": every}


def batch_size(kind: str, wanted: list[str]) -> int:
    """Return the number of images in a step of a recipe with changes."""
    text = (ROOT / "recipes" / kind / f"{TOKENIZER}.yaml").read_text(encoding="utf-8")
    changes = dict(word.split("=", 1) for word in wanted)
    return int(changes.get("training.global_batch_size") or re.findall(r"global_batch_size: (\d+)", text)[0])


def as_words(settings: dict[str, Any]) -> list[str]:
    """Return settings as the words of --set."""
    return [f"{name}={value}" for name, value in settings.items()]


def changed(words: list[str]) -> list[str]:
    """Return the options that change a recipe so."""
    return [part for word in words for part in ("--set", word)]


def kept_steps(chain: Chain, kind: str) -> int | None:
    """Return the number of steps that an earlier call decided on."""
    path = chain.folder / "steps.json"
    return json.loads(path.read_text()).get(kind) if path.exists() else None


def keep_steps(chain: Chain, kind: str, steps: int) -> int:
    """Keep the number of steps for a call that resumes, and return it."""
    path = chain.folder / "steps.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(kept | {kind: steps}))
    return steps


def write_numbers(chain: Chain, starts_from_bundled: bool) -> None:
    """Write numbers.json: the last metrics of both runs, sizes, and the seconds of each step of this call.

    `seconds_before` is how long the bundled models had been trained that this training starts from.
    """
    import torch

    on_gpu = torch.cuda.is_available() and "cpu" not in chain.device
    numbers: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if on_gpu else f"{os.cpu_count()} CPU cores",
        "torch": torch.__version__,
        "seconds": {name: value for name, value in chain.seconds.items() if name != "json"},
    }
    if starts_from_bundled:
        before = json.loads((ROOT / "titokctl" / "bundled" / "numbers.json").read_text(encoding="utf-8"))
        trained = sum(before["seconds"][step] for step in ("train-tokenizer", "train-gen"))
        numbers["seconds_before"] = trained + before.get("seconds_before", 0.0)
    for kind, name in (("tokenizer", TOKENIZER), ("generator", GENERATOR)):
        last: dict[str, Any] = {}
        for record in chain.metrics(f"{kind}/{name}"):
            last |= record
        numbers[kind] = last | {"bytes": (chain.folder / f"{name}.safetensors").stat().st_size}
    (chain.folder / "numbers.json").write_text(json.dumps(numbers, indent=2) + "\n")
    chain.say(json.dumps(numbers))


if __name__ == "__main__":
    main()
