"""A tokenizer of random weights and small pictures for it, for tests of whole commands."""

import io
import tarfile
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from titokctl.config.models import TokenizerConfig, TransformerConfig
from titokctl.models.initialization import initialize
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.store import save_tokenizer

SIZE, TOKENS, CODES = 32, 8, 64
M = TypeVar("M", bound=torch.nn.Module)


def tokenizer(path: Path, *, seed: int = 0, layers: int = 2, **changes: object) -> TiTok:
    """A random tokenizer, also written to `path`."""
    vit = TransformerConfig(patch_size=8, width=32, num_layers=layers, num_heads=2)
    fields: dict = {
        "image_size": SIZE, "num_latent_tokens": TOKENS, "encoder": vit, "decoder": vit,
        "codebook_size": CODES, "token_size": 4,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = TiTok(TokenizerConfig(**(fields | changes))).eval()
    initialize(model)
    with torch.no_grad():
        # As initialised, an encoder hardly looks at the image; ids that differ need larger weights.
        for name, parameter in model.encoder.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(10 if "patch" in name else 4)
    save_tokenizer(path, model)
    return model


def enlarged(model: M, factor: float = 10) -> M:
    """Initialize `model` with `factor` times the usual weights: as initialised, outputs hardly depend on inputs."""
    initialize(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
    return model.eval()


def jpeg(i: int) -> bytes:
    """Picture number `i`: smooth blobs, of changing size and shape."""
    rng = np.random.default_rng(i)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    out = io.BytesIO()
    coarse.resize((40 + i % 7, 36 + i % 5), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    return out.getvalue()


def class_folder(root: Path, per_class: int = 20, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A folder per class; picture numbers count on from class to class."""
    for c, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            (root / name / f"{i:04d}.jpg").write_bytes(jpeg(c * per_class + i))
    return root


def shards(root: Path, count: int, per_shard: int) -> Path:
    """Tar shards of pictures with labels 0 to 2; picture numbers count on from shard to shard."""
    root.mkdir(parents=True)
    for s in range(count):
        with tarfile.open(root / f"{s:03d}.tar", "w") as tar:
            for i in range(s * per_shard, (s + 1) * per_shard):
                for name, data in ((f"{i:06d}.jpg", jpeg(i)), (f"{i:06d}.cls", str(i % 3).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return root
