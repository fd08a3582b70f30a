"""Sections "stages", "nccl" and "commands": everything runs, stops and resumes on the device."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from benchmarks.gpu.inputs import ROOT
from benchmarks.gpu.record import Record
from titokctl.config.models import VqganConfig
from titokctl.context import Context
from titokctl.distributed import group as groups
from titokctl.distributed.place import place
from titokctl.distributed.reduce import GradientSums, StopAgreement, gathered, sum_arrays, summed
from titokctl.distributed.stop import StopRequest
from titokctl.jobs.train.generator import TrainGenerator
from titokctl.jobs.train.tokenizer import TrainTokenizer

_STAGES = ("vqgan", "proxy", "decoder", "single", "gaussian")
_GENERATOR = """kind: generator
model: {architecture: uvit, num_latent_tokens: 8, codebook_size: 64, num_classes: 2, width: 64, num_layers: 2,
        num_heads: 2, mlp_width: 128}
views: [plain, flip]
optimizer: {learning_rate: 1e-3}
schedule: {warmup_steps: 5}
training: {steps: 20, global_batch_size: 32, precision: bf16, ema_decay: 0.9, log_every: 5, evaluate_every: 10,
           checkpoint_every: 10}
"""


def stages(record: Record) -> None:
    """Each stage of training in 6 + 6 steps beside 12, plain and deterministic; both generators beside the CPU."""
    import tiny

    folder = record.work / "stages"
    folder.mkdir()
    data, held_out = tiny.class_folder(folder / "pictures", 12), tiny.class_folder(folder / "held-out", 4)
    for stage in _STAGES:
        for way in ("plain", "deterministic"):
            with record.part(f"stage {stage}, {way}"):
                _resume(record, folder / way, stage, (data, held_out), way == "deterministic")
    with record.part("stage single, compiled"):
        _train(record, folder / "compiled", "single", (data, held_out), 8)
        record.check("stage single, compiled", True)
    _generators(record, folder)


def _resume(record: Record, folder: Path, stage: str, data: tuple[Path, Path], deterministic: bool) -> None:
    words = [f"training.deterministic={str(deterministic).lower()}", "training.compile=false"]
    with record.waiting(f"{stage}, 6 steps"):
        _train(record, folder / "parts", stage, data, 6, *words)
    parts, whole = (_train(record, folder / name, stage, data, 12, *words) for name in ("parts", "whole"))
    x, y = load_file(parts), load_file(whole)
    most = max(float((x[name].float() - y[name].float()).abs().max()) for name in x)
    same = all(torch.equal(x[name], y[name]) for name in x)
    # A code whose usage is near the bound may be re-seeded one step later: a few codes are far away, the rest is near.
    far = max(float(((x[name].float() - y[name].float()).abs() > 0.05).float().mean()) for name in x)
    holds = same if deterministic else far < 0.1
    how = "to the bit" if deterministic else "within rounding"
    record.check(f"stage {stage} resumes {how}", holds, to_the_bit=same, max_difference=most, share_far=far)


def _train(record: Record, folder: Path, stage: str, data: tuple[Path, Path], steps: int, *overrides: str) -> Path:
    from stages import Leave, write_recipe

    folder.mkdir(parents=True, exist_ok=True)
    words = [
        f"training.steps={steps}", "training.precision=bf16", "training.micro_batch_size=4",
        "training.checkpoint_every=6", *(["cached_crops=2"] if stage == "proxy" else []), *overrides,
    ]  # fmt: skip
    recipe, (images, held_out) = write_recipe(folder, stage), data
    request = TrainTokenizer([images], str(recipe), tuple(words), name=stage, validation=[held_out])
    with StopRequest() as stop:
        context = Context(folder / "runs", record.device, Leave(), stop)
        return request.run(context).weights


def _generators(record: Record, folder: Path) -> None:
    from caches import write_cache
    from conftest import SMALL

    cache = write_cache(folder / "tokens.h5", 200)
    for body in ("vit", "uvit"):
        with record.part(f"train-gen {body}"):
            path = folder / f"{body}.yaml"
            path.write_text(SMALL.replace("architecture: vit", f"architecture: {body}"))
            words = ("training.steps=10", "model.dropout=0.0", "model.attention_dropout=0.0")
            losses = {}
            for device in ("cpu", record.device):
                request = TrainGenerator(cache, str(path), words, name=f"{body}-{device}", overwrite=True)
                losses[device] = request.run(Context(folder / "runs", device)).metrics["loss"]
            near = abs(losses["cpu"] - losses[record.device]) / losses["cpu"]
            record.check(f"train-gen {body} as on the CPU", near < 2e-3, losses=losses)


def nccl(record: Record) -> None:
    """All collectives, in one process that sends every message, through NCCL."""
    words = ["--standalone", "--nproc-per-node=1", "-m", "benchmarks.gpu.runs", record.device]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words], capture_output=True, text=True, timeout=90, cwd=ROOT
    )
    record.check("collectives", done.returncode == 0, said=(done.stdout + done.stderr)[-300:].strip())


def collectives(device: str) -> None:
    """Use every collective of the package; AssertionError where a result is wrong."""
    where = place()
    store, rank, size = next(iter(dist.rendezvous("env://")))
    if device == "cuda":
        torch.cuda.set_device(where.local_rank)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("collectives", store), rank=rank, world_size=size)

    class Lone(groups.Group):
        is_single = False  # one process, but every message is sent

    group = Lone(where, dist.PrefixStore("titokctl", store))
    parameters = [torch.nn.Parameter(torch.randn(1000, 1000, device=device)) for _ in range(3)]
    factor = torch.randn_like(parameters[0])
    sums = GradientSums(parameters, group)
    sums.backward(torch.stack([(p * factor).sum() for p in parameters]).sum(), is_last=True)
    sums.finish()
    assert all(p.grad is not None and torch.equal(p.grad, factor) for p in parameters)
    assert float(summed({"a": torch.tensor(3.0, device=device)}, group)["a"]) == 3
    rows = torch.arange(6, device=device).view(3, 2)
    assert torch.equal(gathered(rows, group), rows)
    sums = [np.ones((3, 3))]
    sum_arrays(sums, group)
    assert sums[0].sum() == 9
    with StopRequest() as stop:
        agreement = StopAgreement(stop, group)
        assert not agreement.reached()
        assert not agreement.reached()
        agreement.close()
    dist.destroy_process_group()
    print("all collectives are fine")


def commands(record: Record) -> None:
    """The commands as a user types them, on small networks; those that don't need each other at the same time."""
    import tiny

    folder = record.work / "commands"
    folder.mkdir()
    data = tiny.class_folder(folder / "pictures", 40)
    proxy = VqganConfig(channels=8, channel_multipliers=(1, 1, 2, 2), num_res_blocks=1, codebook_size=32, token_size=8)
    tokenizer, recipe = folder / "tokenizer.safetensors", folder / "generator.yaml"
    tiny.tokenizer(tokenizer, head="proxy", proxy=proxy)
    recipe.write_text(_GENERATOR)
    base = ["--runs-dir", folder / "runs", "--quiet", "--json", "--device", record.device]
    ours, lite0 = ["--tokenizer", tokenizer, *base], ["--features", "lite0", *base]
    drawing, cache = ["sample", "--generator", folder / "runs" / "generator" / "g", *ours], folder / "tokens.h5"

    def step(name: str, holds: Callable[[Any], bool], *words: object) -> None:
        with record.part(name):
            record.check(name, holds(command(*words)))

    words, scored = ["--fid", data, "--features", "lite0", "-o", folder / "scored"], "sample --fid"
    again = ["reconstruct", data, "-o", folder / "r", "--features", "none", *ours]
    step("tokenize", lambda f: f["rows"] == 80, "tokenize", data, "-o", cache, *ours)
    step("train-gen", bool, "train-gen", cache, "--recipe", recipe, "--name", "g", *ours)
    with ThreadPoolExecutor(6) as pool:  # starting is most of what they do
        pool.submit(step, "doctor", bool, "doctor")
        for count in (100, 70):
            holds = partial(lambda count, f: f["num_images"] == count, count)
            pool.submit(step, f"sample {count}", holds, *drawing, "-n", count, "-o", folder / str(count))
        pool.submit(step, scored, lambda f: "fd-lite0" in json.dumps(f), *drawing, "-n", 100, *words)
        pool.submit(step, "decode", lambda f: f["images"] == 80, "decode", cache, "-o", folder / "d.npz", *ours)
        pool.submit(step, "reconstruct", lambda f: f["images"] == 80, *again)
    with record.part("samples do not depend on how many there are"):
        more, fewer = (_images(folder / str(count)) for count in (100, 70))
        record.check("samples do not depend on how many there are", np.array_equal(more[:70], fewer))
    step("fid", bool, "fid", folder / "100", "--ref", data, *lite0)


def command(*words: object, timeout: float = 200) -> Any:
    """Run titokctl in a process of its own. Returns its JSON, or what it prints without --json.

    Raises RuntimeError when the command fails.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "titokctl", *map(str, words)], env=environment, capture_output=True, text=True,
        timeout=timeout, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"titokctl {words[0]} ended with {done.returncode}: {done.stderr[-1500:]}")
    return json.loads(done.stdout) if "--json" in words else done.stdout


def _images(folder: Path) -> np.ndarray:
    with np.load(next(folder.glob("*.npz")), allow_pickle=False) as arrays:
        return np.asarray(arrays[arrays.files[0]])


if __name__ == "__main__":
    collectives(sys.argv[1])
