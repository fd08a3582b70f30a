"""The speed and memory of writing a sample set, beside a plain sequential write of the same pixels on the same disk.

    python -m benchmarks.sample_writing [-n 50000] [--format npz] [--folder DIR] [--device cpu|cuda] [--quick]
        [--json out.json]

The images are drawn by the loop of `titokctl sample` with a generator of two layers and a stub in place of the decoder,
which returns images of real size. Needs n x 196,608 bytes of disk twice for a while; all of it is deleted at the end.
"""

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.measuring import BASELINE, Way, compare, parser, report
from titokctl.config.models import GeneratorConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.data.image_decoder import ENCODERS
from titokctl.distributed.stop import StopRequest
from titokctl.formats.image_output import PRODUCTS, OutputSpec
from titokctl.formats.sample_set import SampleSetWriter
from titokctl.formats.token_cache import CacheHeader
from titokctl.jobs.sample.tiles import LocalTiles
from titokctl.jobs.sample.work import draw
from titokctl.models.maskgit.generator import MaskGit
from titokctl.sampling.plan import Plan

TILE, EDGE, TOKENS, CODES = 64, 256, 32, 16


class StubDecoder:
    """Returns images of real size, made beforehand."""

    def __init__(self, device: str) -> None:
        images = np.random.default_rng(0).integers(0, 256, (TILE, EDGE, EDGE, 3), np.uint8)
        self._images = torch.from_numpy(images).to(device)

    def images(self, ids: torch.Tensor) -> torch.Tensor:
        return self._images[: len(ids)]


def main() -> None:
    """Measure and print."""
    made = parser(__doc__)
    made.add_argument("-n", "--number", type=int, help="images (default: 5000, or 1000 with --quick)")
    made.add_argument(
        "--folder", type=Path, help="a folder on the disk to measure; by default the one for temporary files"
    )
    made.add_argument("--format", choices=list(PRODUCTS), default="npz")
    given = made.parse_args()
    number = given.number or (1000 if given.quick else 5000)
    with tempfile.TemporaryDirectory(prefix="writing-", dir=given.folder) as root:
        folder, task = Path(root) / "made", _task(number, given.format, given.device)

        def settle() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            os.sync()

        pixels = number * EDGE * EDGE * 3
        plain = Way(lambda: _plain(folder, task), bytes=pixels, items=number, before=settle)
        ours = Way(lambda: _sample(folder / "set", task), bytes=pixels, items=number, before=settle)
        found = compare({BASELINE: plain, "ours": ours}, given.device, 1 if given.quick else 3)
        size = sum(path.stat().st_size for path in folder.rglob("*"))
    facts = {"images": number, "gb_of_the_set": f"{size / 1e9:.3g}", "load": f"{os.getloadavg()[0]:.1f}"}
    title = f"sample_writing: images of {EDGE} px as {given.format} until they are on the disk"
    report(title, given, found, **facts)


def _task(number: int, image_format: str, device: str) -> Any:
    generator = MaskGit(
        GeneratorConfig(
            num_latent_tokens=TOKENS, codebook_size=CODES, num_classes=1000, width=16, num_layers=2, num_heads=1,
            mlp_width=16,
        )
    ).eval().to(device)  # fmt: skip
    torch.nn.init.normal_(generator.head.weight)
    plan, sampling = Plan(number, tuple(range(1000)), TILE), SamplingConfig(num_steps=1, guidance_scale=0)
    spec = OutputSpec(image_format, EDGE, np.arange(number) % 1000, encode=ENCODERS.get(image_format))
    return SimpleNamespace(
        device=device,
        precision="float32",
        networks=SimpleNamespace(generator=generator, decoder=StubDecoder(device)),
        plan=plan,
        sampling=sampling,
        known=lambda images: None,
        batch_size=TILE,
        image_format=image_format,
        spec=lambda: spec,
        tokenizer=SimpleNamespace(config=SimpleNamespace(codebook_size=CODES)),
    )


def _plain(folder: Path, task: Any) -> None:
    """Write the same pixels, one image after the other, until they are on the disk."""
    pixels = task.networks.decoder.images(range(TILE)).cpu().numpy()
    with (folder / "plain").open("wb", buffering=0) as file:
        for first in range(0, task.plan.num_images, TILE):
            file.write(pixels[: task.plan.num_images - first].data)
        os.fsync(file.fileno())


def _sample(folder: Path, task: Any) -> None:
    """Write a whole set."""
    header = CacheHeader({}, "0" * 64, "0" * 64, CODES, TOKENS, EDGE, {}, {"kind": "samples"})
    writer = SampleSetWriter(folder, {}, task.spec())
    with StopRequest() as stop, writer:
        writer.begin()
        writer.open()
        draw(LocalTiles(task, task.networks), writer, iter(task.plan.tiles()), lambda images: None, stop, str)
        writer.finish(header, {})


if __name__ == "__main__":
    main()
