"""Writing a sample set against a plain sequential write of the same bytes on the same disk, and the memory it takes.

    python -m benchmarks.sample_writing -n 50000 --folder /tmp/somewhere

What draws is `titokctl sample`'s own loop with a generator of two layers and a stub in place of the decoder, which
hands out images of real size. Needs n x 196,608 bytes of disk for a while; all of it is removed.
"""

import argparse
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from titokctl.config.models import GeneratorConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.distributed.stop import StopRequest
from titokctl.formats.image_output import PRODUCTS
from titokctl.formats.sample_set_writer import SampleSetWriter
from titokctl.formats.token_cache import CacheHeader
from titokctl.jobs.image_decoder import ENCODERS
from titokctl.jobs.sample_work import SampleWork
from titokctl.models.maskgit.generator import MaskGit
from titokctl.sampling.plan import Plan

TILE, EDGE, TOKENS, CODES = 64, 256, 32, 16


class StubDecoder:
    """Images of real size, made beforehand."""

    def __init__(self) -> None:
        self._images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (TILE, EDGE, EDGE, 3), np.uint8))

    def images(self, ids: torch.Tensor) -> torch.Tensor:
        return self._images[: len(ids)]


def main() -> None:
    options = _options()
    folder = Path(tempfile.mkdtemp(prefix="writing-", dir=options.folder))
    try:
        task = _task(options.number, options.format)
        before = _plain(folder, task)
        used = time.process_time()
        seconds, size = _sample(folder / "set", task)
        used = time.process_time() - used
        after = _plain(folder, task)
    finally:
        shutil.rmtree(folder)
    pixels = options.number * EDGE * EDGE * 3 / seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{options.number:,} images of {EDGE} px as {options.format}: {size / 1e9:.2f} GB in {seconds:.1f} s")
    print(f"{options.number / seconds:,.0f} images/s; pixels at {pixels / 1e6:,.0f} MB/s")
    plain = 2 / (1 / before + 1 / after)
    print(f"plain write of the pixels, before and after: {before / 1e6:,.0f} and {after / 1e6:,.0f} MB/s")
    print(
        f"ratio to both together {pixels / plain:.2f}; {1e3 * used / options.number:.2f} ms of processor time an image"
    )
    print(f"peak memory of the process: {peak:.2f} GiB; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--number", type=int, default=5000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--format", choices=list(PRODUCTS), default="npz")
    return parser.parse_args()


def _task(number: int, image_format: str) -> Any:
    generator = MaskGit(
        GeneratorConfig(
            num_latent_tokens=TOKENS, codebook_size=CODES, num_classes=1000, width=16, num_layers=2, num_heads=1,
            mlp_width=16,
        )
    ).eval()  # fmt: skip
    torch.nn.init.normal_(generator.head.weight)
    return SimpleNamespace(
        device="cpu",
        precision="float32",
        networks=SimpleNamespace(generator=generator, decoder=StubDecoder()),
        plan=Plan(number, tuple(range(1000)), TILE),
        settings=SimpleNamespace(sampling=SamplingConfig(num_steps=1, guidance_scale=0)),
        batch_size=TILE,
        image_format=image_format,
        tokenizer=SimpleNamespace(config=SimpleNamespace(codebook_size=CODES)),
    )


def _plain(folder: Path, task: Any) -> float:
    """Bytes/s of writing the same pixels one after the other, until they are on the disk."""
    pixels = task.networks.decoder.images(range(TILE)).numpy()
    began = time.perf_counter()
    with (folder / "plain").open("wb", buffering=0) as file:
        for first in range(0, task.plan.num_images, TILE):
            file.write(pixels[: task.plan.num_images - first].data)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    size = (folder / "plain").stat().st_size
    (folder / "plain").unlink()
    return size / seconds


def _sample(folder: Path, task: Any) -> tuple[float, int]:
    """Seconds until the set is finished, and bytes of its images."""
    labels = np.arange(task.plan.num_images) % 1000
    header = CacheHeader({}, "0" * 64, "0" * 64, CODES, TOKENS, EDGE, {}, {"kind": "samples"})
    writer = SampleSetWriter(
        folder, {}, labels, (), image_size=EDGE, image_format=task.image_format, encode=ENCODERS.get(task.image_format)
    )
    began = time.perf_counter()
    with StopRequest() as stop, writer:
        writer.begin()
        writer.open()
        SampleWork(task, writer, lambda images: None, stop, str).run(iter(task.plan.tiles()))
        done = writer.finish(header, {})
    seconds = time.perf_counter() - began
    files = [done.images] if done.images.is_file() else list(done.images.rglob("*"))
    return seconds, sum(path.stat().st_size for path in files)


if __name__ == "__main__":
    main()
