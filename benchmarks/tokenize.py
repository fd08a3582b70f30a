"""`titokctl tokenize` from files to a cache, beside the plain way and the bare encoder; its memory for many images.

    python -m benchmarks.tokenize [--encoder small|base|large] [--images 96] [--precision float32] [--device cpu|cuda]
        [--quick] [--json out.json]
    python -m benchmarks.tokenize --memory 10000 200000

The first form runs the command's job on a shard of JPEGs of ImageNet's usual sizes (load weights, read, decode, encode,
write, merge; without starting Python). The baseline is a DataLoader with Pillow, a float32 encoder around
nn.MultiheadAttention, and a .npy file for each image. The bare encoder gets decoded tensors in the command's tiles: the
difference is the time of everything but encoding. Encoder widths and layers are those of TiTok; weights are random.
The second form tokenizes tiny pictures with a tiny encoder and prints the peak memory of the command for each count.
"""

import io
import itertools
import tarfile
import tempfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.baselines import PillowImages, PlainTokenizer, save_each
from benchmarks.measuring import BASELINE, Figures, Way, compare, parser, peak_memory_of, report, report_numbers
from benchmarks.preprocess import write_pictures
from titokctl.config.models import TokenizerConfig, TransformerConfig
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.images import preprocess, to_float
from titokctl.distributed.place import available_cores
from titokctl.jobs.tokenize.request import Tokenize
from titokctl.models.device import default_batch_size
from titokctl.models.inference import prepared
from titokctl.models.initialization import initialize
from titokctl.models.precision import PRECISIONS, precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.store import save_tokenizer

ENCODERS = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
SIZE = 256
_COMMAND = "import sys; from titokctl.cli.app import run; assert run(sys.argv[1:]) == 0"


def main() -> None:
    """Measure and print."""
    made = parser(__doc__)
    made.add_argument("--encoder", choices=ENCODERS, default="small")
    made.add_argument("--images", type=int, help="default: 96, or 16 with --quick")
    made.add_argument("--precision", choices=PRECISIONS, default="float32", help="ours")
    made.add_argument("--memory", type=int, nargs="+", metavar="IMAGES", help="only the peak memory for these counts")
    given = made.parse_args()
    if given.memory:
        found = {f"peak_mib_of_{count}_images": peak_memory(count) >> 20 for count in given.memory}
        report_numbers("tokenize: peak memory of the command", given, found)
        return
    count = given.images or (16 if given.quick else 96)
    figures = speed(given, count)
    title = f"tokenize: {given.encoder} encoder, files to a cache"
    report(
        title, given, figures, images=count, batch=default_batch_size(given.device, "encode"), precision=given.precision
    )


def speed(given: Namespace, count: int) -> dict[str, Figures]:
    """Measure all ways, in turns."""
    device, tile = given.device, default_batch_size(given.device, "encode")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "shards").mkdir()
        (root / "rows").mkdir()
        paths = write_pictures(root, count)
        images = [path.read_bytes() for path in paths]
        write_shard(root / "shards" / "0.tar", images, range(count), "jpg")
        model = tokenizer(root / "tok.safetensors", SIZE, 16, ENCODERS[given.encoder], 32).to(device)
        plain, ready = PlainTokenizer(model), prepared(model, device, given.precision, "encoder")
        loader = DataLoader(PillowImages(paths, SIZE), tile, num_workers=available_cores())
        config, outputs = PreprocessingConfig(size=SIZE), itertools.count()
        squares = to_float(torch.from_numpy(np.stack([preprocess(data, config) for data in images])))
        tiles = [part.to(device) for part in squares.split(tile)]

        def baseline() -> None:
            for number, batch in enumerate(loader):
                ids = model.quantizer.nearest(plain.encode(batch.to(device)))
                save_each(root / "rows", ids.cpu().numpy(), number * tile)

        def bare() -> None:
            with precision(given.precision, device):
                torch.cat([ready.tokenize_unchecked(part) for part in tiles]).cpu()

        def command() -> None:
            output, weights = root / f"{next(outputs)}.h5", str(root / "tok.safetensors")
            job = Tokenize([root / "shards"], output, weights, views=(), precision=given.precision)
            job.run(Context(root, device))

        ways = {
            BASELINE: Way(baseline, items=count),
            "ours": Way(command, given.precision, items=count),
            "bare encoder": Way(bare, given.precision, items=count),
        }
        return compare(ways, device, 1 if given.quick else 3)


def tokenizer(path: Path, size: int, patch: int, encoder: tuple[int, int, int], tokens: int) -> TiTok:
    """Return a tokenizer of random weights with a small decoder, also written to `path`."""
    width, layers, heads = encoder
    vit = TransformerConfig(patch_size=patch, width=width, num_layers=layers, num_heads=heads)
    decoder = TransformerConfig(patch_size=patch, width=32, num_layers=1, num_heads=2)
    config = TokenizerConfig(
        image_size=size, num_latent_tokens=tokens, encoder=vit, decoder=decoder, codebook_size=4096, token_size=12
    )
    model = TiTok(config).eval()
    initialize(model)
    save_tokenizer(path, model)
    return model


def write_shard(path: Path, images: list[bytes], numbers: range, ending: str) -> None:
    """Write a shard of images with these numbers, taken in turns from `images`."""
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            data = images[i % len(images)]
            member = tarfile.TarInfo(f"{i:08d}.{ending}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def peak_memory(count: int) -> int:
    """Return the peak memory in bytes of the command's process for `count` tiny pictures."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tokenizer(root / "tok.safetensors", 16, 8, (32, 1, 2), 8)
        pictures = []
        for i in range(64):
            out = io.BytesIO()
            noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(noise).save(out, "PNG")
            pictures.append(out.getvalue())
        (root / "shards").mkdir()
        for shard, first in enumerate(range(0, count, 10_000)):
            write_shard(root / "shards" / f"{shard:03d}.tar", pictures, range(first, min(first + 10_000, count)), "png")
        words = ["tokenize", root / "shards", "-o", root / "t.h5", "--tokenizer", root / "tok.safetensors"]
        return peak_memory_of(_COMMAND, *words, "--views", "none", "--batch-size", 256, "--quiet", "--json")


if __name__ == "__main__":
    main()
