"""A runs folder with a tokenizer and a generator of random weights, as finished runs of training leave them."""

import json
from pathlib import Path

import tiny
import torch

from titokctl.config.models import (
    AUTOREGRESSIVE,
    AutoregressiveConfig,
    GeneratorConfig,
    TokenizerConfig,
    TransformerConfig,
)
from titokctl.config.sampling import AutoregressiveSampling, SamplingConfig
from titokctl.formats.run_folder import RunFolder
from titokctl.models import generator_kinds
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.hashes import encoder_sha256, weights_sha256
from titokctl.weights.store import save_generator, save_tokenizer

SIZE, TOKENS, CODES, CLASSES = 16, 8, 32, 3
OWN = SamplingConfig(num_steps=4, guidance_scale=2.0, choice_temperature=3.0)
OWN_AUTOREGRESSIVE = AutoregressiveSampling(guidance_scale=2.0, top_p=0.95)
_WEIGHTS = "weights.safetensors"


def vit(**changes: int) -> TransformerConfig:
    """One side of a small tokenizer."""
    return TransformerConfig(**({"patch_size": 8, "width": 16, "num_layers": 1, "num_heads": 2} | changes))


def tokenizer_run(runs: Path, name: str = "tok", seed: int = 0, **changes: object) -> dict[str, str]:
    """Write a tokenizer run; returns its hashes."""
    fields: dict = {"image_size": SIZE, "num_latent_tokens": TOKENS, "encoder": vit(), "decoder": vit(),
                    "codebook_size": CODES, "token_size": 4}  # fmt: skip
    torch.manual_seed(seed)
    model = TiTok(TokenizerConfig(**(fields | changes)))
    tiny.enlarged(model)
    run = RunFolder(path=runs / "tokenizer" / name, kind="tokenizer")
    hashes = {"encoder_sha256": encoder_sha256(model), "weights_sha256": weights_sha256(model)}
    save_tokenizer(run.path / _WEIGHTS, model)
    run.finish(_WEIGHTS, hashes)
    return hashes


def generator_run(
    runs: Path, tokenizer: dict[str, str], name: str = "gen", source: dict | None = None, **changes: object
) -> Path:
    """Write a generator run that was trained on ids of the tokenizer with these hashes; returns its folder.

    `source` describes the images that were tokenized; by default a folder that is not there. `changes` are fields of
    the configuration; with kind="autoregressive" the generator is of that kind.
    """
    fields: dict = {"num_latent_tokens": TOKENS, "codebook_size": CODES, "num_classes": CLASSES, "width": 16,
                    "num_layers": 2, "num_heads": 2, "mlp_width": 32}  # fmt: skip
    config = AutoregressiveConfig if changes.get("kind") == AUTOREGRESSIVE else GeneratorConfig
    torch.manual_seed(1)
    model = generator_kinds.build(config(**(fields | changes)))
    tiny.enlarged(model)
    inputs = {
        "cache": "/somewhere/tokens.h5", "source": source or {"kind": "folder", "paths": ["/somewhere"]},
        "preprocessing": {"size": SIZE}, "class_names": ["ant", "bee", "cat"], **tokenizer,
    }  # fmt: skip
    own = OWN if config is GeneratorConfig else OWN_AUTOREGRESSIVE
    run = RunFolder(path=runs / "generator" / name, kind="generator", inputs=inputs)
    save_generator(run.path / _WEIGHTS, model, {"inputs": json.dumps(inputs), "sampling": own.model_dump_json()})
    run.finish(_WEIGHTS, {"weights_sha256": weights_sha256(model)})
    return run.path


def both(runs: Path) -> Path:
    """A tokenizer and a generator that fit; returns `runs`."""
    generator_run(runs, tokenizer_run(runs))
    return runs


def sampling(runs: Path, output: Path, *more: object) -> list[str]:
    """Return the words of `sample` with the newest networks of `runs`, on the CPU."""
    return [str(word) for word in ("sample", "--runs-dir", runs, "--device", "cpu", "-o", output, *more)]
