"""Hashes of weights: a token cache fits every tokenizer with the same encoder hash.

Specification: SHA-256 over a line of JSON with the settings below, then for every tensor in the order of its name a
line "name dtype shape" and its bytes (little-endian, contiguous). Names and settings are ours, so a file in the
official layout has the same hash as its conversion.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from titokctl.errors import UserError
from titokctl.models.titok.tokenizer import TiTok

# The tensors that decide the ids.
_ENCODER_PARTS = ("encoder.", "latent_tokens", "quantizer.")
_LATER = {"overlapping_patches"}  # settings that are left out of the hash where they are off


def encoder_sha256(tokenizer: TiTok) -> str:
    """Return the hash of what decides the ids: encoder, latent tokens, codebook, and settings that no shape shows."""
    config = tokenizer.config
    settings: dict[str, Any] = {
        "num_heads": config.encoder.num_heads,
        "quantizer": config.quantizer,
        "normalize_codes": config.normalize_codes,
        "shuffled_bottleneck": config.shuffled_bottleneck,
    }
    tensors = tokenizer.state_dict()
    if config.is_discrete and "quantizer.codebook" not in tensors:  # without a table of codes, no shape shows it
        settings["codebook_size"] = config.codebook_size
    return _digest(tensors, settings, lambda name: name.startswith(_ENCODER_PARTS))


def weights_sha256(module: nn.Module) -> str:
    """Return the hash of a whole tokenizer or generator: its config and every tensor."""
    config: Any = module.config
    settings = config.model_dump(mode="json")
    for name in _LATER & settings.keys():
        if not settings[name]:  # networks without it keep the hash they had before there was such a setting
            del settings[name]
    return _digest(module.state_dict(), settings, lambda name: True)


def product_hashes(module: nn.Module) -> dict[str, str]:
    """Return the hashes that a run records of its product, by name: of the encoder too, if it is a tokenizer's."""
    encoder = {"encoder_sha256": encoder_sha256(module)} if isinstance(module, TiTok) else {}
    return encoder | {"weights_sha256": weights_sha256(module)}


def _digest(tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any], wanted: Callable[[str], bool]) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + b"\n")
    for name in sorted(filter(wanted, tensors)):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As plain bytes, since NumPy has no bfloat16.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_encoder(made: str, encoder: str, other: str, expected: str, hint: str) -> None:
    """Raise UserError unless two things agree in the encoder whose ids they use.

    Args:
        made: a name for what was made by `encoder`, or trained on its ids.
        encoder, expected: `encoder_sha256` of both.
        other: a name for what expects ids of `expected`.
        hint: for the user.
    """
    if encoder != expected:
        raise UserError(
            f"{made} was made by another tokenizer than {other}: encoder {encoder[:12]}, not {expected[:12]}, "
            "so its ids mean something else",
            hint,
        )
