"""Sections "encode", "sample", "features", "train" and "whole": images/s, and shares of the measured peak."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

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
from titokctl.models.transformer import LONGEST_SHORT
from titokctl.weights.store import save_generator, save_tokenizer

_FULL_SET = 50_000


def encode(record: Record) -> None:
    """L-32 in each precision, at the size of a tile."""
    device, model = record.device, tokenizer(record).to(record.device)
    tile = 2 if record.small else default_batch_size(device, "encode")
    pixels = torch.randint(0, 256, (tile, 256, 256, 3), dtype=torch.uint8, device=device)
    names: tuple[Precision, ...] = ("float32", "tf32", "bf16", "fp16") if device == "cuda" else ("float32",)
    for name in names:
        with record.part(f"encode {name}"):
            ready = prepared(model, device, name, "encoder")

            def run(ready: Any = ready, name: Precision = name) -> torch.Tensor:
                with precision(name, device):
                    found: torch.Tensor = ready.tokenize_unchecked(to_float(pixels))
                return found

            spent = record.seconds_of(run)
            share = record.share(run, spent)
            record.speed(f"encode {TOKENIZER} {name}", images_per_s=tile / spent, of_peak=share, tile=tile)
            if name == "fp16":
                with record.waiting("encode"):
                    run()
                record.profile("encode", run)
            if name == names[-1]:
                _tiles(record, ready, name, tile)


def _tiles(record: Record, encoder: Any, name: Precision, tile: int) -> None:
    """The price of tiles: four of them beside one batch of as many images."""
    pixels = torch.randint(0, 256, (4 * tile, 256, 256, 3), dtype=torch.uint8, device=record.device)

    def run(size: int) -> None:
        with precision(name, record.device):
            for part in pixels.split(size):
                encoder.tokenize_unchecked(to_float(part))

    tiled, whole = record.seconds_of(lambda: run(tile)), record.seconds_of(lambda: run(4 * tile))
    record.speed("tiles", cost=tiled / whole - 1, tile=tile, batch=4 * tile)


def attention(record: Record) -> None:
    """Attention at the lengths of these networks, forward and backward, by each of torch's kernels and by our own."""
    device, images = record.device, 4 if record.small else 1024
    names = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH") if device == "cuda" else ("MATH",)
    for what, positions, heads, width in (("L-32", 33, 16, 48), ("S-128", 129, 16, 64), ("encoder", 289, 16, 64)):
        shape = (images, positions, 3, heads, width)
        packed = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
        for name in names:
            with record.part(f"attention {what} {name}"):
                try:
                    record.speed(f"attention {what} {name}", **_attention_by(record, name, packed))
                except RuntimeError as error:  # not every kernel takes every width
                    record.speed(f"attention {what} {name}", problem=str(error).splitlines()[0][:80])
        if device == "cuda" and positions <= LONGEST_SHORT:
            with record.part(f"attention {what} TITOKCTL"):
                record.speed(f"attention {what} TITOKCTL", **_short_attention(record, packed))


def _attention_by(record: Record, name: str, packed: torch.Tensor) -> dict[str, float]:
    """Return the bytes/s of a kernel in the forward pass, and the seconds of both passes."""
    q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)

    def both() -> None:
        F.scaled_dot_product_attention(q, k, v).sum().backward(retain_graph=True)

    with sdpa_kernel(getattr(SDPBackend, name)):
        with torch.no_grad():
            forward = record.seconds_of(lambda: F.scaled_dot_product_attention(q, k, v))
        size = 4 * q.numel() * q.element_size()
        return {"bytes_per_s": size / forward, "forward_and_backward_s": record.seconds_of(both)}


def _short_attention(record: Record, packed: torch.Tensor) -> dict[str, float]:
    """Return the same numbers of the kernel that training may take for few positions."""
    from titokctl.models.triton_attention import short_attention

    flat, heads = packed.detach().flatten(2).requires_grad_(), packed.shape[3]

    def both() -> None:
        short_attention(flat, heads, 0.0).sum().backward()

    with torch.no_grad():
        forward = record.seconds_of(lambda: short_attention(flat, heads, 0.0))
    size = 4 * flat.numel() // 3 * flat.element_size()
    return {"bytes_per_s": size / forward, "forward_and_backward_s": record.seconds_of(both)}


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
    with record.part("ids as one CUDA graph"):
        _graph(record, ids, tile)
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


def _graph(record: Record, run: Callable[[], torch.Tensor], tile: int) -> None:
    """The same ids from one CUDA graph, which the host starts by one call."""
    if record.device != "cuda":
        return
    expected, stream = run(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()
    spent = record.seconds_of(graph.replay)
    record.check("ids of a CUDA graph are the same", torch.equal(found, expected))
    record.speed(f"ids, tile {tile}, as one CUDA graph", images_per_s=tile / spent)


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

    exact, fast = run("float32"), run("tf32")
    error = float((exact - fast).norm() / exact.norm())
    del exact, fast
    for name in ("float32", "tf32") if device == "cuda" else ("float32",):
        bare = record.seconds_of(lambda: run(name)) / len(x)  # noqa: B023
        one = replace(extractor, arithmetic=name)
        began = time.perf_counter()
        collector = FeatureCollector(one.widths, count, _FULL_SET, device=device)
        for found in extract(one, (pixels[first : first + 256] for first in range(0, count, 256))):
            collector.add(found)
        collector.result()
        whole = (time.perf_counter() - began) / count
        record.speed(
            f"Inception, {name}", full_set_s=_FULL_SET * whole, bare_full_set_s=_FULL_SET * bare, overlap=bare / whole,
            error=error if name == "tf32" else 0.0,
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
