"""Where a training step's time goes: data, forward and backward, optimizer with clipping and EMA; beside a plain model.

    python -m benchmarks.train_step --what generator --quick            # the tiny recipe, a few steps
    python -m benchmarks.train_step --what generator --recipe maskgit-vit-l-32 --json     # on a GPU
    python -m benchmarks.train_step --what generator --recipe maskgit-vit-l-32 --set model.num_layers=4 \\
        --set training.global_batch_size=32         # clipping, optimizer and EMA at L-32's width, on a CPU
    python -m benchmarks.train_step --what tokenizer                    # the whole loop: data wait and overhead
    python -m benchmarks.train_step --what loading                      # 1,281,167 rows x 2 views, open to first batch
    python -m benchmarks.train_step --what memory                       # two processes that read all of such a cache

The baseline of a generator is torch's own nn.TransformerEncoder of the same sizes, eager float32, with its default
AdamW, on ids that are ready on the device. All figures of a run are measured alternately in that run: the medians and
their ratios mean something on a busy machine, too, where absolute times don't. On a GPU the peak of a matrix product is
measured as well and the share of it (MFU) printed.

A tokenizer runs through the loop as train-tokenizer runs it, on JPEGs of which each is seen for the first time.
`data_wait` and `loop_overhead` (everything but forward, backward and optimizer, the wait included) are shares of the
time from the first measured step to the last; held-out numbers and pictures are left out, and `checkpoint_share` is how
long a checkpoint holds the loop up, over the steps between two of them.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from titokctl.config import recipe_files
from titokctl.config.recipe import GeneratorRecipe
from titokctl.config.tokenizer_recipe import TokenizerRecipe
from titokctl.data.sources import open_source
from titokctl.data.tokens import TokenRows
from titokctl.distributed.group import single_group
from titokctl.distributed.stop import StopRequest
from titokctl.formats.checkpoint import Checkpoint, CheckpointWriter, Policy
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.jobs.generator_plan import num_parameters, positions
from titokctl.jobs.stage_start import Start
from titokctl.jobs.step_images import StepImages
from titokctl.jobs.tokenizer_stages import Surroundings, build_stage
from titokctl.jobs.train_generator import build_task
from titokctl.models.device import best_device
from titokctl.progress import SilentProgress
from titokctl.training.image_stage import ImageStage
from titokctl.training.loop import Loop, Metrics
from titokctl.training.masked_tokens import MaskedTokens
from titokctl.training.speed import training_cost, transformer_operations

IMAGENET, WARM = 1_281_167, 3


def main() -> None:
    """Measure what the command line asks for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=("generator", "tokenizer", "loading", "memory"), default="generator")
    parser.add_argument("--recipe", default="tiny")
    parser.add_argument("--set", action="append", default=[], help="as titokctl train takes it")
    parser.add_argument("--device", default=best_device())
    parser.add_argument("--quick", action="store_true", help="6 steps instead of 40")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    steps = 6 if words.quick else 40
    if words.what == "loading":
        found = loading(words.device)
    elif words.what == "memory":
        found = memory()
    elif words.what == "tokenizer":
        found = whole_loop(recipe_files.load(words.recipe, "tokenizer", words.set), words.device, steps)
    else:
        recipe: GeneratorRecipe = recipe_files.load(words.recipe, "generator", words.set)
        found = step(recipe, words.device, steps)
    found |= {"device": device_name(words.device), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps(found) if words.json else "\n".join(f"{k:32} {shown(v)}" for k, v in found.items()))


def step(recipe: GeneratorRecipe, device: str, steps: int) -> dict[str, object]:
    """Medians of the parts of a step, in seconds and as shares."""
    with tempfile.TemporaryDirectory() as folder:
        cache = random_cache(Path(folder) / "tokens.h5", 20_000, recipe.model.num_latent_tokens, recipe)
        task = build_task(recipe, (TokenRows(cache, recipe.views, None, device), None), device, single_group())
        baseline = Plain(recipe, device)
        times: dict[str, list[float]] = {"data": [], "step": [], "update": [], "baseline": []}
        for number in range(WARM + steps):
            one = timed_step(task, number, device) | {"baseline": timed(baseline.step, device)}
            if number >= WARM:
                for name, seconds in one.items():
                    times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    whole = median["data"] + median["step"]
    batch = recipe.training.global_batch_size
    found: dict[str, object] = {
        "parameters": num_parameters(task.model),
        "batch": batch,
        "step_s": whole,
        "images_per_s": batch / whole,
        "data_share": median["data"] / whole,
        "clip_optimizer_ema_share": median["update"] / whole,
        "baseline_step_s": median["baseline"],
        "times_as_fast_as_baseline": median["baseline"] / whole,
    }
    operations = transformer_operations(num_parameters(task.model), positions(recipe))
    cost = training_cost(lambda: operations, device, recipe.training.precision)
    if cost is not None:
        found |= {"peak_tflops": cost.peak / 1e12, "mfu": batch / whole * cost.operations_per_image / cost.peak}
    return found


def timed_step(task: MaskedTokens, number: int, device: str) -> dict[str, float]:
    """Seconds for the data, for the rest of the step, and of these for clipping, optimizer and EMA."""
    update, inside = task.learner.update, list[float]()

    def timed_update(step: int) -> dict[str, torch.Tensor | float]:
        result: list[dict[str, torch.Tensor | float]] = []
        inside.append(timed(lambda: result.append(update(step)), device))
        return result[0]

    task.learner.update = timed_update  # type: ignore[method-assign]
    try:
        data = timed(lambda: task.prepare(number), device)
        rest = timed(lambda: task.step(number), device)
    finally:
        task.learner.update = update  # type: ignore[method-assign]
    return {"data": data, "step": rest, "update": inside[0]}


class Plain:
    """What one would write in ten lines: the baseline."""

    def __init__(self, recipe: GeneratorRecipe, device: str) -> None:
        model, batch = recipe.model, recipe.training.global_batch_size
        layer = nn.TransformerEncoderLayer(
            model.width, model.num_heads, model.mlp_width, model.dropout, "gelu", batch_first=True
        )
        body = nn.TransformerEncoder(layer, model.num_layers, enable_nested_tensor=False)
        embedding = nn.Embedding(model.vocabulary_size, model.width)
        self.model = nn.Sequential(embedding, body, nn.Linear(model.width, model.codebook_size)).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.micro = recipe.training.micro_batch_size or batch
        self.ids = torch.randint(model.codebook_size, (batch, positions(recipe)), device=device)

    def step(self) -> None:
        """One update."""
        for ids in self.ids.split(self.micro):
            logits = self.model(ids)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
            (loss * len(ids) / len(self.ids)).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def loading(device: str) -> dict[str, object]:
    """Seconds from a closed file to the first batch: all of ImageNet in two views, the file in the page cache."""
    with tempfile.TemporaryDirectory() as folder:
        recipe: GeneratorRecipe = recipe_files.load("maskgit-vit-l-32", "generator")
        path = Path(folder) / "tokens.h5"
        random_cache(path, IMAGENET, recipe.model.num_latent_tokens, recipe)
        found: dict[str, object] = {"rows": IMAGENET, "views": 2}
        began = time.perf_counter()
        cache = TokenCache.open(path)
        found["open_and_check_s"] = time.perf_counter() - began
        rows = TokenRows(cache, recipe.views, None, device)
        found["open_to_ready_s"] = time.perf_counter() - began
        positions = rows.positions(0, 0, recipe.training.global_batch_size)
        rows.at(positions, torch.zeros_like(positions))
        found["open_to_first_batch_s"] = time.perf_counter() - began
        return found


def memory() -> dict[str, object]:
    """What two processes hold of a cache that both have read completely, as Linux tells it, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        recipe: GeneratorRecipe = recipe_files.load("maskgit-vit-l-32", "generator")
        path = Path(folder) / "tokens.h5"
        cache = random_cache(path, IMAGENET, recipe.model.num_latent_tokens, recipe)
        size = sum(cache.view(name).nbytes for name in recipe.views)
        del cache
        readers = [
            subprocess.Popen([sys.executable, "-c", _READER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(2)
        ]
        for reader in readers:
            assert reader.stdout is not None
            reader.stdout.readline()  # it has read everything
        found: dict[str, object] = {"ids_mb": size / 1e6}
        for number, reader in enumerate(readers):
            mapped = mapped_kib(reader.pid, path)
            found |= {f"process_{number}_{name.lower()}_mb": kib * 1024 / 1e6 for name, kib in mapped.items()}
        pss = sum(mapped_kib(reader.pid, path)["Pss"] for reader in readers) * 1024
        for reader in readers:
            reader.communicate(b"")
        return found | {"both_over_ids": pss / size}


_READER = """
import sys
from pathlib import Path
import torch
from titokctl.data.tokens import TokenRows
from titokctl.formats.token_cache import TokenCache
rows = TokenRows(TokenCache.open(Path(sys.argv[1])), ("plain", "flip"), None)
for view in (0, 1):
    for positions in torch.arange(rows.count).split(4096):
        rows.at(positions, torch.full_like(positions, view))
print(flush=True)
sys.stdin.read()
"""


def mapped_kib(process: int, path: Path) -> dict[str, int]:
    """Resident, proportional and private KiB of what a process maps of a file."""
    found = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    inside = False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, _, value = line.partition(":")
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(path))
        elif inside and name in found:
            found[name] += int(value.split()[0])
    return found


def whole_loop(recipe: TokenizerRecipe, device: str, steps: int) -> dict[str, object]:
    """Shares of the loop's time, with every image decoded anew and, for comparison, with images kept in memory."""
    with tempfile.TemporaryDirectory() as folder:
        fresh, kept = Path(folder) / "fresh", Path(folder) / "kept"
        batch = recipe.training.global_batch_size
        write_jpegs(fresh, (WARM + steps + 2) * batch, recipe.image_size)
        write_jpegs(kept, batch, recipe.image_size)
        new, old = (run_loop(recipe, device, steps, data, Path(folder)) for data in (fresh, kept))
    found = {name: new[name] for name in ("step_s", "data_wait", "loop_overhead", "checkpoint_share")}
    return {"batch": batch} | found | {"step_over_step_on_kept_images": new["step_s"] / old["step_s"]}


def run_loop(recipe: TokenizerRecipe, device: str, steps: int, data: Path, folder: Path) -> dict[str, float]:
    """One run of the training loop on the images in `data`."""
    group, run = single_group(), folder / f"run-{data.name}"
    run.mkdir()
    images = StepImages(open_source([data]), recipe, group, print)
    task = Watched(build_stage(recipe, Start(None, None, {}), Surroundings(images, None, device, group)), device)
    short = recipe.training.model_copy(update={"steps": WARM + steps})
    with StopRequest() as stop:
        Loop(task, short, run, "", SilentProgress(), stop, group).run()
    with CheckpointWriter(folder / "checkpoint", Policy(1)) as writer:
        began = time.perf_counter()
        writer.save(Checkpoint(1, task.tensors(), {}))
        held_up = time.perf_counter() - began
    whole = task.ends[-1] - task.begins[WARM]
    return {
        "step_s": statistics.median(task.worked[WARM:]),
        "data_wait": sum(task.waited[WARM:]) / whole,
        "loop_overhead": 1 - sum(task.worked[WARM:]) / whole,
        "checkpoint_share": held_up / (recipe.training.checkpoint_every * whole / steps),
    }


class Watched:
    """A task that notes when the loop calls it."""

    def __init__(self, task: ImageStage, device: str) -> None:
        self.task, self.device = task, device
        self.tensors, self.load = task.tensors, task.load
        self.begins, self.ends, self.waited, self.worked = (list[float]() for _ in range(4))

    def prepare(self, step: int) -> None:
        self.begins.append(time.perf_counter())
        self.waited.append(timed(lambda: self.task.prepare(step), self.device))

    def step(self, step: int) -> Metrics:
        found: list[Metrics] = []
        self.worked.append(timed(lambda: found.append(self.task.step(step)), self.device))
        self.ends.append(time.perf_counter())
        return found[0]

    def evaluate(self, step: int) -> dict[str, float]:
        return {}


def write_jpegs(folder: Path, count: int, size: int) -> None:
    """Pictures with a shorter edge a quarter longer than `size`, as smooth as photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (size // 6, size // 5, 3), dtype=np.uint8))
        coarse.resize((size * 3 // 2, size * 5 // 4), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.jpg")


def random_cache(path: Path, rows: int, tokens: int, recipe: GeneratorRecipe) -> TokenCache:
    """A cache of random ids in two views."""
    from benchmarks.cache import header

    rng = np.random.default_rng(0)
    codes = recipe.model.codebook_size
    made = {"num_latent_tokens": tokens, "codebook_size": codes, "class_names": ()}
    with TokenCacheWriter(path, replace(header(), **made), num_rows=rows, key_bytes=12) as writer:
        for first in range(0, rows, 65_536):
            n = min(65_536, rows - first)
            ids = rng.integers(0, codes, (n, tokens)).astype(np.uint16)
            labels = np.arange(first, first + n) % max(1, recipe.model.num_classes)
            writer.append(ids, labels, [f"{i:012d}" for i in range(first, first + n)], {"flip": ids[:, ::-1]})
    return TokenCache.open(path)


def timed(call: Callable[[], object], device: str) -> float:
    """Seconds that `call` takes, the device's part included."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def device_name(device: str) -> str:
    """What it ran on."""
    return torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()


def shown(value: object) -> str:
    """A figure for people."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
