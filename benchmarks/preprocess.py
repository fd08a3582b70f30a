"""Image files to squares: the pipeline's workers compared with a plain loop of Pillow calls in as many processes.

    python -m benchmarks.preprocess [--images 1024] [--workers 2] [--size 256] [--quick] [--json out.json]

JPEGs of ImageNet's usual sizes, as files and as a shard, are made into squares by Pillow (open, convert, resize the
shorter edge by bicubic, crop, to an array; nothing is returned), by a torch DataLoader that does the same, and by the
pipeline with processes and with threads (in order, in one array of this process). All processes are started before.
Then the same on one core, by processor time: the resize alone, and everything.
"""

import io
import multiprocessing
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.baselines import PillowImages, pillow_square
from benchmarks.measuring import BASELINE, Way, compare, parser, report
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.decoding import CHUNK, decode_files, empty_squares
from titokctl.data.images import crop_at, decode
from titokctl.data.pipeline import Decoder
from titokctl.data.sources import open_source
from titokctl.distributed.place import available_cores
from titokctl.formats.shard_set import ShardSample, write_shard

SIZES = ((500, 375), (500, 333), (375, 500), (500, 375), (640, 480), (400, 300), (333, 500), (500, 375))
_ONE_CORE = 64


def main() -> None:
    """Measure and print."""
    made = parser(__doc__)
    made.add_argument("--images", type=int, help="default: 1024, or 64 with --quick")
    made.add_argument("--workers", type=int, default=max(available_cores(), 2))
    made.add_argument("--size", type=int, default=256)
    given = made.parse_args()
    count = given.images or (64 if given.quick else 1024)
    with tempfile.TemporaryDirectory() as root:
        paths = write_pictures(Path(root), count)
        shard = Path(root) / "images.tar"
        write_shard(shard, [ShardSample(path.stem, "jpg", path.read_bytes(), 0) for path in paths])
        configs = [PreprocessingConfig(size=given.size)]
        shares = [(paths[i :: given.workers], given.size) for i in range(given.workers)]
        source = open_source([shard])
        loader = DataLoader(PillowImages(paths, given.size), CHUNK, num_workers=given.workers, persistent_workers=True)
        with (
            multiprocessing.get_context("spawn").Pool(given.workers) as bare,
            Decoder(source, configs, given.workers, by_threads=0) as processes,
            Decoder(source, configs, given.workers, by_threads=sys.maxsize) as threads,
        ):
            ways = {
                BASELINE: Way(lambda: bare.map(pillow_share, shares, chunksize=1), items=count),
                "DataLoader": Way(lambda: list(loader), items=count),
                "ours": Way(lambda: [processes.unit(unit) for unit in source.units], items=count),
                "ours, by threads": Way(lambda: [threads.unit(unit) for unit in source.units], items=count),
            }
            found = compare(ways | one_core(paths[:_ONE_CORE], given.size), given.device, 1 if given.quick else 5)
        size = sum(path.stat().st_size for path in paths) // count
    report("preprocess: files to squares", given, found, workers=given.workers, images=count, bytes_an_image=size)


def one_core(paths: list[Path], size: int) -> dict[str, Way]:
    """Return the ways that run in this thread; both resizes get the same decoded images."""
    config, count = PreprocessingConfig(size=size), len(paths)
    files = [path.read_bytes() for path in paths]
    pixels = [decode(data) for data in files]
    pictures, into = [Image.fromarray(p) for p in pixels], [empty_squares(CHUNK, size)]

    def ours() -> None:
        for first in range(0, count, CHUNK):
            decode_files(files[first : first + CHUNK], [config], into)

    all_of_it, resize = "one core, Pillow", "resize, Pillow"
    return {
        all_of_it: Way(lambda: pillow_share((paths, size)), items=count, beside=all_of_it),
        "one core, ours": Way(ours, items=count, beside=all_of_it),
        resize: Way(lambda: [np.asarray(pillow_square(p, size)) for p in pictures], items=count, beside=resize),
        "resize, ours": Way(lambda: [crop_at(p, size) for p in pixels], items=count, beside=resize),
    }


def pillow_share(task: tuple[list[Path], int]) -> int:
    """Run one process's share of the plain loop."""
    squares = (np.asarray(pillow_square(Image.open(path).convert("RGB"), task[1])) for path in task[0])
    return sum(square.shape[0] for square in squares)


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Write `count` JPEG files of `picture`."""
    paths = [folder / f"{i:06d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.write_bytes(picture(i))
    return paths


def picture(i: int) -> bytes:
    """Return a JPEG with large shapes and some grain, of about the size of ImageNet's files."""
    rng = np.random.default_rng(i)
    width, height = SIZES[i % len(SIZES)]
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
    shapes = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    out = io.BytesIO()
    grain = rng.integers(-12, 13, shapes.shape, dtype=np.int16)
    Image.fromarray((shapes + grain).clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


if __name__ == "__main__":
    main()
