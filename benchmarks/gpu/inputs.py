"""Networks of published sizes and pictures for the acceptance run; the weights are arbitrary."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.counting import fill
from benchmarks.gpu.record import Record
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.known import BY_NAME

TOKENIZER, GENERATOR, UVIT = "titok-l-32", "maskgit-vit-l-32", "maskgit-uvit-s-128"
ROOT = Path(__file__).resolve().parents[2]
# Small recipes, pictures and formula weights are those of the tests.
sys.path[:0] = [str(ROOT / "tests" / "training"), str(ROOT / "tests")]


def tokenizer(record: Record) -> TiTok:
    """Return L-32 with the weights that the golden numbers are made with: different pictures get different ids."""
    import golden

    config = BY_NAME[TOKENIZER].config
    if record.small:
        halves = {half: getattr(config, half).model_copy(update={"num_layers": 2}) for half in ("encoder", "decoder")}
        config = config.model_copy(update=halves)
    module = fill(TiTok(config))  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith(("encoder", "quantizer", "latent")):
                parameter.copy_(torch.from_numpy(golden.fill(name, tuple(parameter.shape))))
    return module


def generator(record: Record, name: str = GENERATOR) -> MaskGit:
    """Return a generator of published size."""
    config: Any = BY_NAME[name].config
    return fill(MaskGit(config.model_copy(update={"num_layers": 2}) if record.small else config))


def pictures(count: int, size: int = 256) -> torch.Tensor:
    """Return (count, 3, size, size) float32 in [0, 1]: plane waves of random directions."""
    from golden import image

    few = image(min(count, 32), size)
    return torch.from_numpy(np.concatenate([np.roll(few, i, axis=3) for i in range(-(-count // len(few)))])[:count])
