"""Our tensor names and the official ones.

Every table below maps prefixes of our names to official prefixes; the longest matching prefix is used. `Official` also
gives the shape and the pieces in which a tensor is stored; values never change.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from titokctl.config.models import GeneratorConfig, TokenizerConfig, VqganConfig
from titokctl.errors import UserError

Shape = tuple[int, ...]
# Our linear layers that are officially 1x1 convolutions.
_POINTWISE = re.compile(
    r"encoder\.to_latents\.weight|decoder\.head\.(to_pixels|hidden|logits)\.weight|.*\.shortcut\.weight"
)


@dataclass(frozen=True)
class Official:
    """The official form of a tensor: `names` (parts along the first axis), each of `shape`."""

    names: tuple[str, ...]
    shape: Shape


def official_layout(kind: str, config: Any, ours: Mapping[str, Shape]) -> dict[str, Official]:
    """Return the official form of every tensor, by our name.

    Args:
        kind: "tokenizer", "generator" or "proxy".
        config: the network's configuration.
        ours: shapes of all its tensors, by our names.
    """
    tables: dict[str, Callable[[Any], dict[str, str]]]
    tables = {"tokenizer": _tokenizer, "generator": _generator, "proxy": _proxy}
    table = tables[kind](config)
    return {name: _place(kind, config, name, _renamed(name, table), shape) for name, shape in ours.items()}


def _place(kind: str, config: Any, name: str, there: str, shape: Shape) -> Official:
    if _POINTWISE.fullmatch(name) or (kind == "proxy" and name == "encoder.conv_out.weight"):
        shape = (*shape, 1, 1)
    elif name == "encoder.patch_embed.weight":
        size = config.encoder.patch_size
        shape = (shape[0], 3, size, size)
    elif there == "pos_embed":
        shape = (1, *shape)
    elif "{qkv}" in there:
        parts = tuple(there.replace("{qkv}", part) for part in ("query", "key", "value"))
        return Official(parts, (shape[0] // 3, *shape[1:]))
    return Official((there,), shape)


def _renamed(name: str, table: Mapping[str, str]) -> str:
    start = max((s for s in table if name.startswith(s)), key=len, default=None)
    if start is None:
        raise UserError(
            f"{name} can't be converted to the official form", "only the published architectures can be converted"
        )
    return table[start] + name[len(start) :]


def _below(ours: str, theirs: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return `names` with a prefix on both sides."""
    return {ours + a: theirs + b for a, b in names.items()}


def _each(ours: str, theirs: str, count: int, names: Mapping[str, str]) -> dict[str, str]:
    """Return `names` below `count` numbered parts; "#" in `ours` and `theirs` is the number."""
    numbered = [(ours.replace("#", str(i)), theirs.replace("#", str(i))) for i in range(count)]
    return {a: b for pair in numbered for a, b in _below(*pair, names).items()}


_TITOK_BLOCK = {
    "attention_norm.": "ln_1.",
    "attention.qkv.": "attn.in_proj_",
    "attention.out.": "attn.out_proj.",
    "mlp_norm.": "ln_2.",
    "mlp.up.": "mlp.c_fc.",
    "mlp.down.": "mlp.c_proj.",
}
_TITOK_SIDE = {
    "class_embedding": "class_embedding",
    "positional_embedding": "positional_embedding",
    "latent_positional_embedding": "latent_token_positional_embedding",
    "norm_in.": "ln_pre.",
    "norm_out.": "ln_post.",
}
_TITOK_HEADS = {
    "pixel": {"to_pixels.": "ffn.0.", "smooth.": "conv_out."},
    "proxy": {"hidden.": "ffn.0.", "logits.": "ffn.2."},
}


def _tokenizer(config: TokenizerConfig) -> dict[str, str]:
    table = {
        "latent_tokens": "latent_tokens",
        "encoder.patch_embed.": "encoder.patch_embed.",
        "encoder.to_latents.": "encoder.conv_out.",
        "decoder.code_embed.": "decoder.decoder_embed.",
        "decoder.mask_token": "decoder.mask_token",
        "quantizer.codebook": "quantize.embedding.weight",
        "proxy_pixels.codebook": "pixel_quantize.embedding.weight",
    }
    for side, vit in (("encoder.", config.encoder), ("decoder.", config.decoder)):
        table |= _below(side, side, _TITOK_SIDE)
        table |= _each(f"{side}blocks.#.", f"{side}transformer.#.", vit.num_layers, _TITOK_BLOCK)
    table |= _below("decoder.head.", "decoder.", _TITOK_HEADS[config.head])
    if config.proxy:
        table |= _below("proxy_pixels.decoder.", "pixel_decoder.", _vqgan_decoder(config.proxy))
    return table


_VQGAN_ENDS = {"conv_in.": "conv_in.", "norm_out.": "norm_out.", "conv_out.": "conv_out."}
_VQGAN_BLOCK = {"": "", "shortcut.": "nin_shortcut."}


def _proxy(config: VqganConfig) -> dict[str, str]:
    encoder = dict(_VQGAN_ENDS) | _each("middle.#.", "mid.#.", 2, _VQGAN_BLOCK)
    for level in range(len(config.channel_multipliers)):
        encoder |= _each(f"levels.{level}.#.", f"down.{level}.block.#.", config.num_res_blocks, _VQGAN_BLOCK)
    table = _below("encoder.", "encoder.", encoder) | {"codebook": "quantize.embedding.weight"}
    return table | _below("decoder.", "decoder.", _vqgan_decoder(config))


def _vqgan_decoder(config: VqganConfig) -> dict[str, str]:
    table = dict(_VQGAN_ENDS) | _each("middle.#.", "mid.#.", 2, _VQGAN_BLOCK)
    count = len(config.channel_multipliers)
    for level in range(count):
        there = f"up.{count - 1 - level}."  # theirs count from fine to coarse
        table |= _each(f"levels.{level}.#.", f"{there}block.#.", config.num_res_blocks, _VQGAN_BLOCK)
        table[f"upsample.{level}."] = f"{there}upsample_conv."
    return table


_VIT = {
    "body.token_embedding.": "model.embeddings.word_embeddings.",
    "body.position_embedding.": "model.embeddings.position_embeddings.",
    "body.type_embedding.": "model.embeddings.token_type_embeddings.",
    "body.norm.": "model.embeddings.LayerNorm.",
    "head.": "model.lm_head.",
}
_VIT_LAYER = {
    "attention.qkv.": "attention.self.{qkv}.",
    "attention.out.": "attention.output.dense.",
    "attention_norm.": "attention.output.LayerNorm.",
    "mlp_in.": "intermediate.dense.",
    "mlp_out.": "output.dense.",
    "mlp_norm.": "output.LayerNorm.",
}
_UVIT = {
    "body.token_embedding.": "embeddings.",
    "body.position_embedding.weight": "pos_embed",
    "body.norm.": "norm.",
    "head.": "lm_head.",
}
_UVIT_BLOCK = {
    "attention_norm.": "norm1.",
    "attention.qkv.": "attn.qkv.",
    "attention.out.": "attn.proj.",
    "mlp_norm.": "norm2.",
    "mlp_in.": "mlp.fc1.",
    "mlp_out.": "mlp.fc2.",
}


def _generator(config: GeneratorConfig) -> dict[str, str]:
    if config.architecture == "vit":
        return _VIT | _each("body.layers.#.", "model.encoder.layer.#.", config.num_layers, _VIT_LAYER)
    if config.architecture != "uvit":
        raise UserError(
            f"the architecture {config.architecture!r} can't be converted to the official form",
            "vit and uvit can be converted",
        )
    half = config.num_layers // 2
    table = _UVIT | _below("body.mid_block.", "mid_block.", _UVIT_BLOCK)
    table |= _each("body.in_blocks.#.", "in_blocks.#.", half, _UVIT_BLOCK)
    table |= _each("body.out_blocks.#.", "out_blocks.#.", half, _UVIT_BLOCK)
    return table | _each("body.joins.#.", "out_blocks.#.skip_linear.", half, {"": ""})
