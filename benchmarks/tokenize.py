"""`titokctl tokenize` beside the bare encoder on ready tensors, and its memory for few and for many images.

    python -m benchmarks.tokenize [--encoder small|base|large] [--images 96] [--rounds 3] [--device cpu]
    python -m benchmarks.tokenize --memory 10000 200000

The first writes JPEGs of ImageNet's usual sizes as a shard, then in turns encodes the ready tensors of all of them in
the command's tiles, and runs the command's job on the shard (read, decode, encode, write, merge; without starting
Python and loading weights). Encoder widths and layers are those of TiTok; weights are random. Prints a line of JSON:
images/s of the best round of both, and the ratio.
The second tokenizes tiny pictures with a tiny encoder and prints the peak memory of the whole command for each count.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.preprocess import picture
from titokctl.config.models import TokenizerConfig, TransformerConfig
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.images import preprocess, to_float
from titokctl.distributed.stop import StopRequest
from titokctl.jobs.tile_encoder import default_tile
from titokctl.jobs.tokenize import tokenize
from titokctl.models.initialization import initialize
from titokctl.models.titok.tokenizer import TiTok
from titokctl.progress import SilentProgress
from titokctl.weights.store import save_tokenizer

ENCODERS = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
_PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def tokenizer(path: Path, size: int, patch: int, encoder: tuple[int, int, int], tokens: int) -> TiTok:
    """A tokenizer of random weights with a small decoder, also written to `path`."""
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
    """A shard of images with these numbers, taken in turns from `images`."""
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            data = images[i % len(images)]
            member = tarfile.TarInfo(f"{i:08d}.{ending}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def speed(name: str, count: int, rounds: int, device: str) -> dict[str, float | str]:
    """Images/s of the bare encoder and of the command, the best of several rounds in turns."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = tokenizer(root / "tok.safetensors", 256, 16, ENCODERS[name], 32).to(device)
        images = [picture(i) for i in range(count)]
        (root / "shards").mkdir()
        write_shard(root / "shards" / "0.tar", images, range(count), "jpg")
        config = PreprocessingConfig(size=256)
        ready = to_float(torch.from_numpy(np.stack([preprocess(data, config) for data in images])))
        tiles = [tile.to(device) for tile in ready.split(default_tile(device))]
        best = {"encoder": 0.0, "command": 0.0}
        for i in range(rounds):
            best["encoder"] = max(best["encoder"], count / _seconds_of(model, tiles))
            result = tokenize(
                [root / "shards"], root / f"{i}.h5", str(root / "tok.safetensors"), root, views=(), device=device,
                progress=SilentProgress(), stop=StopRequest(),
            )  # fmt: skip
            assert result is not None
            best["command"] = max(best["command"], count / result.seconds)
    return {"name": name, "images": count, **{k: round(v, 3) for k, v in best.items()},
            "ratio": round(best["command"] / best["encoder"], 3)}  # fmt: skip


def _seconds_of(model: TiTok, tiles: list[torch.Tensor]) -> float:
    began = time.perf_counter()
    for tile in tiles:
        model.tokenize(tile).cpu()
    return time.perf_counter() - began


def peak_memory(count: int) -> dict[str, float]:
    """Peak resident memory of the command for `count` tiny pictures."""
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
        words = [
            "tokenize",
            str(root / "shards"),
            "-o",
            str(root / "t.h5"),
            "--tokenizer",
            str(root / "tok.safetensors"),
        ]
        command = [
            sys.executable,
            "-m",
            "titokctl",
            *words,
            "--views",
            "none",
            "--batch-size",
            "256",
            "--quiet",
            "--json",
        ]
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", _PEAK, *command], check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        return {"images": count, "peak_mib": int(done.stdout.split()[-1]) // 1024, "seconds": round(seconds, 1)}


def main() -> None:
    """Measure and print lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", choices=ENCODERS, default="small")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=int, nargs="+", metavar="IMAGES")
    given = parser.parse_args()
    if given.memory:
        for count in given.memory:
            print(json.dumps(peak_memory(count)), flush=True)
    else:
        print(json.dumps(speed(given.encoder, given.images, given.rounds, given.device)))


if __name__ == "__main__":
    main()
