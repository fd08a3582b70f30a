"""Sections "encode", "sample", "features", "train" and "whole": images/s, and shares of the measured peak."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.counting import fill
from benchmarks.gpu.inputs import GENERATOR, TOKENIZER, UVIT, generator, tokenizer
from benchmarks.gpu.record import Record
from benchmarks.gpu.runs import command
from benchmarks.preprocess import write_pictures
from benchmarks.train_step import random_cache
from titokctl.config import recipe_files
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.image_decoder import ImageDecoder
from titokctl.data.images import to_float
from titokctl.data.pipeline import decode_units
from titokctl.data.sources import open_source
from titokctl.data.tokens import TokenRows
from titokctl.distributed.group import single_group
from titokctl.distributed.place import available_cores
from titokctl.evaluation.extractors import ExtractorOptions, inception_extractor
from titokctl.evaluation.features import FeatureCollector, extract
from titokctl.jobs.train.generator import build_task
from titokctl.models.device import default_batch_size
from titokctl.models.inception import Inception
from titokctl.models.inference import prepared
from titokctl.models.noise import KeyedNoise
from titokctl.models.precision import Precision, precision
from titokctl.weights.store import save_generator, save_tokenizer

_FULL_SET = 50_000


def encode(record: Record) -> None:
    """L-32 in each precision, at the size of a tile."""
    device, model = record.device, tokenizer(record).to(record.device)
    tile = 2 if record.small else default_batch_size(device, "encode")
    pixels = torch.randint(0, 256, (tile, 256, 256, 3), dtype=torch.uint8, device=device)
    images = to_float(pixels)
    names: tuple[Precision, ...] = ("float32", "tf32", "bf16", "fp16") if device == "cuda" else ("float32",)
    for name in names:
        with record.part(f"encode {name}"):
            ready = prepared(model, device, name, "encoder")

            def run(ready: Any = ready, name: Precision = name) -> torch.Tensor:
                with precision(name, device):
                    found: torch.Tensor = ready.tokenize_unchecked(to_float(pixels))
                return found

            spent = record.seconds_of(run)
            share = record.share(lambda: model.encode(images), spent)
            record.speed(f"encode {TOKENIZER} {name}", images_per_s=tile / spent, of_peak=share, tile=tile)
            if name == "fp16":
                with record.waiting("encode"):
                    run()
                record.profile("encode", run)


def sample(record: Record) -> None:
    """Ids of L-32 by tile, and pixels."""
    device = record.device
    network, model = generator(record).to(device), tokenizer(record).to(device)
    settings = recipe_files.load(TOKENIZER, "sampling")
    ready, decoder = prepared(network, device, "bf16"), ImageDecoder(model, device, "bf16")
    each = 0.0
    for tile in (2,) if record.small else (64, default_batch_size(device, "draw")):
        index = torch.arange(tile, device=device)

        def ids(network: Any = ready, index: torch.Tensor = index) -> torch.Tensor:
            with precision("bf16", device):
                found: torch.Tensor = network.sample(index % 1000, settings, KeyedNoise(settings.seed, index))
            return found

        spent, host = record.seconds_of(ids), _host_seconds(ids, device)
        share = record.share(lambda index=index: network.sample(index % 1000, settings, KeyedNoise(0, index)), spent)  # type: ignore[misc]
        record.speed(f"ids, tile {tile}", images_per_s=tile / spent, of_peak=share, host_share=host / spent)
        each = spent / tile
    with record.waiting("sample ids"):
        ids()
    record.profile("sample ids", ids)
    batch = 2 if record.small else default_batch_size(device, "decode")
    rows = torch.randint(0, 4096, (batch, 32), device=device)
    spent = record.seconds_of(lambda: decoder.images(rows))
    share = record.share(lambda: model.detokenize_unchecked(rows), spent)
    record.speed("pixels", images_per_s=batch / spent, of_peak=share, batch=batch)
    with record.waiting("decode"):
        decoder.images(rows)
    record.profile("decode", lambda: decoder.images(rows))
    record.speed(f"{_FULL_SET:,} images by proportion", seconds=_FULL_SET * (each + spent / batch))


def _host_seconds(run: Callable[[], object], device: str) -> float:
    """Return the seconds in which the host gives the device its work."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
        if device == "cuda":
            torch.cuda.synchronize()
    return sorted(found)[1]


def features(record: Record) -> None:
    """Inception alone, and through the pass that `fid` makes."""
    device, count = record.device, 16 if record.small else 4096
    pixels = np.random.default_rng(0).integers(0, 256, (count, 256, 256, 3), dtype=np.uint8)
    extractor = inception_extractor(fill(Inception()), ExtractorOptions(device=device))
    x = torch.from_numpy(pixels[: extractor.batch_size]).to(device)

    def run(name: Precision) -> torch.Tensor:
        with torch.inference_mode(), precision(name, device):
            return extractor.network(x)["pool"]

    bare = record.seconds_of(lambda: run("float32")) / len(x)
    exact, fast = run("float32"), run("tf32")
    began = time.perf_counter()
    collector = FeatureCollector(extractor.widths, count, _FULL_SET, device=device)
    for found in extract(extractor, (pixels[first : first + 256] for first in range(0, count, 256))):
        collector.add(found)
    collector.result()
    whole = (time.perf_counter() - began) / count
    record.speed(
        "Inception, float32", full_set_s=_FULL_SET * whole, bare_full_set_s=_FULL_SET * bare, overlap=bare / whole,
        tf32_bare_full_set_s=_FULL_SET * record.seconds_of(lambda: run("tf32")) / len(x),
        tf32_error=float((exact - fast).norm() / exact.norm()),
    )  # fmt: skip
    record.profile("Inception", lambda: run("float32"))


def train(record: Record) -> None:
    """Steps of the published generators, compiled as by default."""
    small = ["model.num_layers=2", "training.global_batch_size=16", "training.micro_batch_size=8"]
    for name, overrides in ((GENERATOR, []), (UVIT, ["training.global_batch_size=1024"])):
        with record.part(f"train {name}"):
            _steps(record, name, [*overrides, *(small if record.small else [])])


def _steps(record: Record, name: str, overrides: list[str]) -> None:
    device, recipe = record.device, recipe_files.load(name, "generator", overrides)
    cache = random_cache(record.work / f"{name}.h5", 20_000, recipe.model.num_latent_tokens, recipe)
    task = build_task(recipe, (TokenRows(cache, recipe.views, None, device), None), device, single_group())
    batch, steps = recipe.training.global_batch_size, 2 if record.small else 8

    def take(numbers: range) -> tuple[float, float]:
        """Return seconds in all, and seconds in which the host waited for data."""
        began, waited = time.perf_counter(), 0.0
        for number in numbers:
            ready = time.perf_counter()
            task.prepare(number)
            waited += time.perf_counter() - ready
            task.step(number)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began, waited

    first = take(range(1))[0]
    take(range(1, 4))
    spent, waited = take(range(4, 4 + steps))
    rate = steps * batch / spent
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    record.speed(
        f"train {name}", images_per_s=rate, data_share=waited / spent, first_step_s=first, memory_gb=memory,
        of_peak=rate * task.model.operations() / record.speeds["peak"]["bf16"],
    )  # fmt: skip
    with record.waiting(f"train {name}"):
        take(range(100, 101))
    record.profile(f"train {name}", lambda: take(range(101, 102)), 40)


def whole(record: Record) -> None:
    """`sample` and `tokenize` as processes, at published size."""
    folder, count = record.work / "whole", 8 if record.small else 4096
    folder.mkdir()
    weights, drawing = folder / "tokenizer.safetensors", folder / "generator.safetensors"
    save_tokenizer(weights, tokenizer(record))
    settings = recipe_files.load(TOKENIZER, "sampling")
    save_generator(drawing, generator(record), {"sampling": settings.model_dump_json()})
    base = ["--tokenizer", weights, "--runs-dir", folder / "runs", "--device", record.device, "--quiet", "--json"]
    with record.part("sample"):
        began = time.perf_counter()
        found = command("sample", "--generator", drawing, "-n", count, "-o", folder / "samples", *base)
        rate, start = found["images_per_second"], time.perf_counter() - began - count / found["images_per_second"]
        record.speed("titokctl sample", images_per_s=rate, start_s=start, full_set_s=start + _FULL_SET / rate)
    with record.part("tokenize"):
        images = folder / "images"
        images.mkdir()
        write_pictures(images, count)
        found = command("tokenize", images, "-o", folder / "tokens.h5", *base)
        record.speed("titokctl tokenize, plain and flip", images_per_s=found["images_per_second"], images=count)
        source, began = open_source([images]), time.perf_counter()
        units = decode_units(source, source.units, PreprocessingConfig(size=256), available_cores())
        done = sum(len(unit.pixels) for unit in units)
        record.speed("decoding alone", images_per_s=done / (time.perf_counter() - began), cores=available_cores())
