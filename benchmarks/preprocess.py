"""Image files to squares: the pipeline's workers against a bare loop of Pillow calls in as many processes.

    python -m benchmarks.preprocess [--images 1024] [--workers 2] [--size 256] [--rounds 5]

Writes JPEGs of ImageNet's usual sizes as files and as a shard, and turns them into squares in turns: by Pillow (read,
open, convert, resize the shorter edge by bicubic, crop, to an array; nothing is handed back) and by the pipeline, with
processes and with threads (all in order in one array of this process). Whatever has to start has started before.

Prints one line of JSON: images/s of the best round of each, `ratio` of the pipeline to Pillow, and that of each round.
On a busy machine these tell little; then look at the processor time an image costs in all processes together, which
other work disturbs less (`processor_ratio`), and at that of one core alone, of the resize and of all.
"""

import argparse
import io
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.decoding import CHUNK, decode_files, empty_squares
from titokctl.data.images import center_crop, decode
from titokctl.data.pipeline import Decoder
from titokctl.data.sources import Source, open_source
from titokctl.data.workers import available_cores
from titokctl.formats.shard_set import ShardSample, write_shard

SIZES = ((500, 375), (500, 333), (375, 500), (500, 375), (640, 480), (400, 300), (333, 500), (500, 375))


def picture(i: int) -> bytes:
    """A JPEG with large shapes and some grain, about as large as ImageNet's files."""
    rng = np.random.default_rng(i)
    width, height = SIZES[i % len(SIZES)]
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    shapes = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    out = io.BytesIO()
    grain = rng.integers(-12, 13, shapes.shape, dtype=np.int16)
    Image.fromarray((shapes + grain).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


def by_pillow(data: bytes, size: int) -> np.ndarray:
    """What a loop over files does everywhere."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(pillow_resize(image, size))


def pillow_resize(image: Image.Image, size: int) -> Image.Image:
    """Shorter edge to `size`, middle of the longer one."""
    width, height = image.size
    w, h = (size, int(size * height / width)) if width < height else (int(size * width / height), size)
    left, top = round((w - size) / 2), round((h - size) / 2)
    return image.resize((w, h), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))


def pillow_share(task: tuple[list[Path], int]) -> int:
    """One process's share of the bare loop."""
    return sum(int(by_pillow(path.read_bytes(), task[1])[0, 0, 0] >= 0) for path in task[0])


def processor_s() -> float:
    """Processor time of this process and its children so far, of those that still run too."""
    ticks = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for pid in children.read_text().split():
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def processor_ms(work: Callable[[list[Any]], Any], items: list[Any]) -> float:
    """Milliseconds of processor time an item when they come in the pipeline's chunks, the best of five rounds."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for first in range(0, len(items), CHUNK):
            work(items[first : first + CHUNK])
        best = min(best, (time.process_time() - began) / len(items))
    return 1000 * best


def one_core(files: list[bytes], size: int) -> dict[str, float]:
    """Processor time an image; the two resizes get the same decoded images."""
    config = PreprocessingConfig(size=size)
    pixels = [decode(data) for data in files]
    pictures = [Image.fromarray(p) for p in pixels]
    into = [empty_squares(CHUNK, size)]
    found = {
        "pillow_resize_ms": processor_ms(lambda some: [np.asarray(pillow_resize(p, size)) for p in some], pictures),
        "our_resize_ms": processor_ms(lambda some: [center_crop(p, size) for p in some], pixels),
        "pillow_all_ms": processor_ms(lambda some: [by_pillow(data, size) for data in some], files),
        "our_all_ms": processor_ms(lambda some: decode_files(some, [config], into), files),
    }
    found["resize_ratio"] = found["pillow_resize_ms"] / found["our_resize_ms"]
    found["all_ratio"] = found["pillow_all_ms"] / found["our_all_ms"]
    return found


def in_turns(source: Source, paths: list[Path], size: int, workers: int, rounds: int) -> dict[str, Any]:
    """Images per second in the best round, and processor milliseconds an image in the cheapest."""
    configs = [PreprocessingConfig(size=size)]
    shares = [(paths[i::workers], size) for i in range(workers)]
    rates: dict[str, list[float]] = {"pillow": [], "processes": [], "threads": []}
    costs: dict[str, list[float]] = {name: [] for name in rates}
    with (
        multiprocessing.get_context("spawn").Pool(workers) as bare,
        Decoder(source, configs, workers, by_threads=0) as processes,
        Decoder(source, configs, workers, by_threads=sys.maxsize) as threads,
    ):
        works: dict[str, Callable[[], Any]] = {
            "pillow": lambda: bare.map(pillow_share, shares, chunksize=1),
            "processes": lambda: [processes.unit(unit) for unit in source.units],
            "threads": lambda: [threads.unit(unit) for unit in source.units],
        }
        for work in works.values():
            work()
        for _ in range(rounds):
            for name, work in works.items():
                began, used = time.perf_counter(), processor_s()
                work()
                rates[name].append(len(paths) / (time.perf_counter() - began))
                costs[name].append(1000 * (processor_s() - used) / len(paths))
    found: dict[str, Any] = {f"{name}_per_s": max(values) for name, values in rates.items()}
    found |= {f"{name}_processor_ms": min(values) for name, values in costs.items()}
    found["ratio"] = found["processes_per_s"] / found["pillow_per_s"]
    found["processor_ratio"] = found["pillow_processor_ms"] / found["processes_processor_ms"]
    found["ratios"] = [round(p / q, 2) for p, q in zip(rates["processes"], rates["pillow"], strict=True)]
    return found


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=max(available_cores(), 2))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    files = [picture(i) for i in range(given.images)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i:06d}.jpg" for i in range(given.images)]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        shard = Path(folder) / "images.tar"
        write_shard(shard, [ShardSample(path.stem, "jpg", data, 0) for path, data in zip(paths, files, strict=True)])
        result = in_turns(open_source([shard]), paths, given.size, given.workers, given.rounds)
    facts = {"images": given.images, "workers": given.workers, "bytes_per_image": sum(map(len, files)) // len(files)}
    result |= one_core(files[:64], given.size)
    print(json.dumps(facts | {k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}))


if __name__ == "__main__":
    main()
