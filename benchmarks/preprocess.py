"""Image files to squares: the pipeline's workers against a bare loop of Pillow calls in as many processes.

    python -m benchmarks.preprocess [--images 1024] [--workers 2] [--size 256] [--rounds 3]

Writes JPEGs of ImageNet's usual sizes as a shard and turns them into squares in turns: by Pillow (open, convert, resize
the shorter edge by bicubic, crop, to an array) and by the pipeline's threads. Prints one line of JSON: images/s of the
best round of each and their ratio; then the processor time an image takes on one core, of the resize alone and of all,
which other work on the machine disturbs less.
"""

import argparse
import io
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import center_crop, decode, preprocess
from titokctl.data.pipeline import decode_units
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


def pillow_share(task: tuple[list[bytes], int]) -> int:
    """One process's share of the bare loop."""
    return sum(int(by_pillow(data, task[1])[0, 0, 0] >= 0) for data in task[0])


def rate(images: int, work: Callable[[], Any]) -> float:
    """Images per second of one round."""
    began = time.perf_counter()
    work()
    return images / (time.perf_counter() - began)


def processor_ms(work: Callable[[Any], Any], items: list[Any]) -> float:
    """Milliseconds of processor time an item, the best of five rounds."""
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for item in items:
            work(item)
        best = min(best, (time.process_time() - began) / len(items))
    return 1000 * best


def one_core(files: list[bytes], size: int) -> dict[str, float]:
    """Processor time an image; the two resizes get the same decoded images."""
    config = PreprocessingConfig(size=size)
    pixels = [decode(data) for data in files]
    pictures = [Image.fromarray(p) for p in pixels]
    found = {
        "pillow_resize_ms": processor_ms(lambda image: np.asarray(pillow_resize(image, size)), pictures),
        "our_resize_ms": processor_ms(lambda p: center_crop(p, size), pixels),
        "pillow_all_ms": processor_ms(lambda data: by_pillow(data, size), files),
        "our_all_ms": processor_ms(lambda data: preprocess(data, config), files),
    }
    found["resize_ratio"] = found["pillow_resize_ms"] / found["our_resize_ms"]
    found["all_ratio"] = found["pillow_all_ms"] / found["our_all_ms"]
    return found


def in_turns(source: Source, files: list[bytes], size: int, workers: int, rounds: int) -> dict[str, float]:
    """Images per second of both, each in its best round."""
    config = PreprocessingConfig(size=size)
    shares = [(files[i::workers], size) for i in range(workers)]
    best = {"pillow": 0.0, "ours": 0.0}
    with multiprocessing.get_context("spawn").Pool(workers) as bare:
        works: dict[str, Callable[[], Any]] = {
            "pillow": lambda: bare.map(pillow_share, shares, chunksize=1),
            "ours": lambda: list(decode_units(source, source.units, config, workers)),
        }
        for work in works.values():
            work()  # starts what has to start
        for _ in range(rounds):
            for name, work in works.items():
                best[name] = max(best[name], rate(len(files), work))
    return {f"{name}_per_s": value for name, value in best.items()} | {"ratio": best["ours"] / best["pillow"]}


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=available_cores())
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    files = [picture(i) for i in range(given.images)]
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "images.tar"
        write_shard(shard, [ShardSample(f"{i:06d}", "jpg", data, 0) for i, data in enumerate(files)])
        result = in_turns(open_source([shard]), files, given.size, given.workers, given.rounds)
    facts = {"images": given.images, "workers": given.workers, "bytes_per_image": sum(map(len, files)) / len(files)}
    result = {name: round(value, 3) for name, value in (result | one_core(files[:64], given.size)).items()}
    print(json.dumps(facts | result))


if __name__ == "__main__":
    main()
