"""Where a training step's time goes: data, forward and backward, optimizer with clipping and EMA; beside a plain model.

    python -m benchmarks.train_step --what generator --quick [--device cpu|cuda] [--json out.json]   # the tiny recipe
    python -m benchmarks.train_step --what generator --recipe maskgit-vit-l-32            # on a GPU
    python -m benchmarks.train_step --what generator --recipe maskgit-vit-l-32 --set model.num_layers=4 \\
        --set training.global_batch_size=32         # clipping, optimizer and EMA at L-32's width, on a CPU
    python -m benchmarks.train_step --what tokenizer                    # the whole loop: data wait and overhead
    python -m benchmarks.train_step --what loading                      # 1,281,167 rows x 2 views, open to first batch
    python -m benchmarks.train_step --what memory                       # two processes that read all of such a cache

The baseline of a generator is torch's own nn.TransformerEncoder of the same sizes, eager float32, with its default
AdamW, on ids that are ready on the device. `of peak` is MFU: operations by the number of parameters and positions.

A tokenizer runs through the loop as train-tokenizer runs it, on JPEGs of which each is seen for the first time.
`data_wait` and `loop_overhead` (everything but forward, backward and optimizer, the wait included) are shares of the
time from the first measured step to the last; held-out numbers and pictures are left out, and `checkpoint_share` is how
long a checkpoint holds the loop up, over the steps between two of them.
"""

import itertools
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.cache import IMAGENET, header
from benchmarks.measuring import BASELINE, Figures, Parts, Way, compare, parser, report, report_numbers
from titokctl.config import recipe_files
from titokctl.config.recipe import MaskGitRecipe
from titokctl.config.tokenizer_recipe import TokenizerRecipe
from titokctl.context import Context
from titokctl.data.sources import open_source
from titokctl.data.tokens import TokenRows
from titokctl.distributed.group import single_group
from titokctl.distributed.stop import StopRequest
from titokctl.formats.checkpoint import Checkpoint, CheckpointWriter, Policy
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.jobs.train.generator import build_task
from titokctl.jobs.train.stage_start import Start
from titokctl.jobs.train.stages import Parts as StageParts
from titokctl.jobs.train.stages import build_stage
from titokctl.training.generator_task import GeneratorTask
from titokctl.training.image_stage import ImageStage
from titokctl.training.loop import Loop, Metrics
from titokctl.training.step_images import StepImages

WARM = 3


def main() -> None:
    """Measure what the command line asks for and print it."""
    made = parser(__doc__)
    made.add_argument("--what", choices=("generator", "tokenizer", "loading", "memory"), default="generator")
    made.add_argument("--recipe", default="tiny")
    made.add_argument("--set", action="append", default=[], help="as titokctl train-gen takes it")
    given = made.parse_args()
    steps = 6 if given.quick else 40
    if given.what == "loading":
        report_numbers("train_step: from a closed cache to the first batch", given, loading(given.device))
    elif given.what == "memory":
        report_numbers("train_step: a cache in two processes", given, memory())
    elif given.what == "tokenizer":
        tokenizer: TokenizerRecipe = recipe_files.load(given.recipe, "tokenizer", given.set)
        found = whole_loop(tokenizer, given.device, steps)
        report_numbers(f"train_step: the loop of {given.recipe}", given, found)
    else:
        recipe: MaskGitRecipe = recipe_files.load(given.recipe, "generator", given.set)
        figures, facts = generator(recipe, given.device, steps)
        report(f"train_step: {given.recipe}", given, figures, **facts)


def generator(recipe: MaskGitRecipe, device: str, steps: int) -> tuple[Mapping[str, Figures], dict[str, object]]:
    """A step and its parts beside a plain model's."""
    batch = recipe.training.global_batch_size
    with tempfile.TemporaryDirectory() as folder:
        cache = random_cache(Path(folder) / "tokens.h5", 20_000, recipe.model.num_latent_tokens, recipe)
        task = build_task(recipe, (TokenRows(cache, recipe.views, None, device), None), device, single_group())
        plain, numbers = Plain(recipe, device), itertools.count()
        operations = batch * task.model.operations()
        ways = {
            BASELINE: Way(plain.step, operations=operations, items=batch),
            "ours": Way(
                lambda: timed_step(task, next(numbers), device), recipe.training.precision, operations, items=batch
            ),
        }
        for _ in range(WARM):
            timed_step(task, next(numbers), device)
        found = compare(ways, device, steps, training=True)
    whole, data, update = (found[name].seconds for name in ("ours", "  data", "  clip, optimizer, EMA"))
    facts: dict[str, object] = {
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "batch": batch,
        "precision": recipe.training.precision,
        "data_share": f"{data / whole:.2%}",
        "clip_optimizer_ema_share": f"{update / whole:.1%}",
    }
    return found, facts


def timed_step(task: GeneratorTask, number: int, device: str) -> Parts:
    """A step, with the times of its data and of clipping, optimizer and EMA."""
    parts, update = Parts(), task.learner.update
    task.learner.update = lambda step: parts.time("clip, optimizer, EMA", device, lambda: update(step))  # type: ignore[method-assign]
    try:
        parts.time("data", device, lambda: task.prepare(number))
        task.step(number)
    finally:
        task.learner.update = update  # type: ignore[method-assign]
    return parts


class Plain:
    """What one would write in ten lines: the baseline."""

    def __init__(self, recipe: MaskGitRecipe, device: str) -> None:
        model, batch = recipe.model, recipe.training.global_batch_size
        layer = nn.TransformerEncoderLayer(
            model.width, model.num_heads, model.mlp_width, model.dropout, "gelu", batch_first=True
        )
        body = nn.TransformerEncoder(layer, model.num_layers, enable_nested_tensor=False)
        embedding = nn.Embedding(model.vocabulary_size, model.width)
        self.model = nn.Sequential(embedding, body, nn.Linear(model.width, model.codebook_size)).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.micro = recipe.training.micro_batch_size or batch
        self.ids = torch.randint(model.codebook_size, (batch, model.num_latent_tokens + 1), device=device)

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
        recipe: MaskGitRecipe = recipe_files.load("maskgit-vit-l-32", "generator")
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
        recipe: MaskGitRecipe = recipe_files.load("maskgit-vit-l-32", "generator")
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
    images = StepImages(open_source([data]), recipe, Context(device=device))
    task = Watched(build_stage(recipe, Start(None, None, {}), StageParts(images, None, device, group)), device)
    short = recipe.training.model_copy(update={"steps": WARM + steps})
    with StopRequest() as stop:
        Loop(task, short, run, "", Context(stop=stop, group=group)).run()
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
        parts = Parts()
        parts.time("data", self.device, lambda: self.task.prepare(step))
        self.waited.append(parts["  data"][0])

    def step(self, step: int) -> Metrics:
        parts = Parts()
        found = parts.time("step", self.device, lambda: self.task.step(step))
        self.worked.append(parts["  step"][0])
        self.ends.append(time.perf_counter())
        return found

    def evaluate(self, step: int) -> dict[str, float]:
        return {}


def write_jpegs(folder: Path, count: int, size: int) -> None:
    """Pictures with a shorter edge a quarter longer than `size`, as smooth as photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (size // 6, size // 5, 3), dtype=np.uint8))
        coarse.resize((size * 3 // 2, size * 5 // 4), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.jpg")


def random_cache(path: Path, rows: int, tokens: int, recipe: MaskGitRecipe) -> TokenCache:
    """A cache of random ids in two views."""
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


if __name__ == "__main__":
    main()
