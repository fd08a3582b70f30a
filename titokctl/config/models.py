"""Configurations of the networks. Every size is a field; nothing about 256 px or 32 tokens is fixed in code.

Letters: N image patches, K latent tokens, D width, V codebook size, C token size.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from titokctl.config.base import Config, Fraction, NonNegativeFloat, PositiveInt


def _check_heads(width: int, num_heads: int) -> None:
    """Raise ValueError unless the width can be divided evenly among the heads of attention."""
    if width % num_heads:
        raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")


class TransformerConfig(Config):
    """One ViT of the tokenizer: `patch_size` in pixels, `width` D, and the usual rest."""

    patch_size: PositiveInt
    width: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    mlp_ratio: PositiveInt = 4

    @model_validator(mode="after")
    def _heads_divide_width(self) -> "TransformerConfig":
        _check_heads(self.width, self.num_heads)
        return self


class VqganConfig(Config):
    """MaskGIT-VQGAN (arXiv 2202.04200): convolutions down by 2 per level after the first."""

    channels: PositiveInt = 128
    channel_multipliers: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)] = (1, 1, 2, 2, 4)
    num_res_blocks: PositiveInt = 2
    codebook_size: PositiveInt = 1024
    token_size: PositiveInt = 256

    @property
    def downsampling(self) -> int:
        """Pixels per code along one edge (16 for the published one)."""
        return 2 ** (len(self.channel_multipliers) - 1)


class TokenizerConfig(Config):
    """A TiTok tokenizer (arXiv 2406.07550).

    `shuffled_bottleneck` reinterprets (B, K, D) as (B, D, K) in memory before the projection to C, as the released
    S-128, B-64 and L-32 were trained; `head` says whether the decoder predicts pixels or proxy codes of `proxy`.
    With `overlapping_patches` a pixel head gives patches of twice the decoder's patch size, which fade into each other.
    `pixel_decoder` false leaves the proxy tokenizer's decoder out (stage 1: no pixels yet).
    `quantizer` is "vq", "gaussian", or a name that an entry point adds.
    """

    image_size: PositiveInt
    num_latent_tokens: PositiveInt
    encoder: TransformerConfig
    decoder: TransformerConfig
    quantizer: str = "vq"
    codebook_size: PositiveInt | None = 4096
    token_size: PositiveInt = 12
    normalize_codes: bool = True
    commitment_cost: NonNegativeFloat = 0.25
    shuffled_bottleneck: bool = False
    head: Literal["pixel", "proxy"] = "pixel"
    overlapping_patches: bool = False
    proxy: VqganConfig | None = None
    pixel_decoder: bool = True

    @model_validator(mode="after")
    def _fits_together(self) -> "TokenizerConfig":
        for side in ("encoder", "decoder"):
            patch = getattr(self, side).patch_size
            if self.image_size % patch:
                raise ValueError(f"image_size {self.image_size} is not a multiple of {side}.patch_size {patch}")
        if self.quantizer == "gaussian":
            if self.codebook_size is not None:
                raise ValueError("a gaussian tokenizer has no codebook: set codebook_size to null")
        elif self.codebook_size is None:
            raise ValueError(f"codebook_size is missing for quantizer {self.quantizer!r}")
        if (self.head == "proxy") != (self.proxy is not None):
            raise ValueError("head: proxy needs a section proxy, and other heads take none")
        if self.overlapping_patches and (self.head == "proxy" or self.decoder.patch_size % 2):
            raise ValueError("overlapping_patches is for head: pixel with an even decoder.patch_size")
        if self.head == "pixel" and not self.pixel_decoder:
            raise ValueError("pixel_decoder: false is for head: proxy; a pixel head gives pixels by itself")
        if self.proxy is not None and self.proxy.downsampling != self.decoder.patch_size:
            ours, theirs = self.decoder.patch_size, self.proxy.downsampling
            raise ValueError(f"decoder.patch_size {ours} differs from the proxy tokenizer's {theirs} pixels per code")
        return self

    @property
    def is_discrete(self) -> bool:
        """True when images become ids, False when they become Gaussian latents."""
        return self.quantizer != "gaussian"


MASKGIT, AUTOREGRESSIVE, FLOW = "maskgit", "autoregressive", "flow"


class GeneratorSizes(Config):
    """The part of a configuration that all kinds of generators share: K ids of V codes, and the classes.

    Subclasses for other kinds than MaskGIT have a field `kind` with the kind's name. `architecture` names a variant of
    the kind. `num_classes` 0 trains without labels: every image carries the null label.
    """

    architecture: str = ""
    num_latent_tokens: PositiveInt
    codebook_size: PositiveInt
    num_classes: Annotated[int, Field(ge=0)]


class GeneratorConfig(GeneratorSizes):
    """A MaskGIT generator; "vit" is BERT (post-norm), "uvit" has long skips.

    `num_layers` of a UViT counts in and out blocks; the one in the middle comes on top (20 means 10 + 1 + 10).
    """

    architecture: str = "vit"
    width: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    mlp_width: PositiveInt
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.1

    @model_validator(mode="after")
    def _fits_together(self) -> "GeneratorConfig":
        _check_heads(self.width, self.num_heads)
        if self.architecture == "uvit" and self.num_layers % 2:
            raise ValueError(f"a uvit needs an even num_layers, not {self.num_layers}")
        return self

    @property
    def mask_id(self) -> int:
        """The id that stands for "not known yet": V."""
        return self.codebook_size

    @property
    def vocabulary_size(self) -> int:
        """V codes, the mask, the classes, the null label."""
        return self.codebook_size + 1 + self.num_classes + 1


class AutoregressiveConfig(GeneratorSizes):
    """A causal transformer after RAR (arXiv 2411.00776): pre-norm, with learned norms of queries and keys.

    The class is the first token; with `adaptive_norm` it also changes the norms of each block.
    """

    kind: Literal["autoregressive"]
    width: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    mlp_width: PositiveInt
    adaptive_norm: bool = True
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.1

    @model_validator(mode="after")
    def _fits_together(self) -> "AutoregressiveConfig":
        if self.architecture:
            raise ValueError(f"an autoregressive generator has one architecture: leave out {self.architecture!r}")
        _check_heads(self.width, self.num_heads)
        return self

    @property
    def vocabulary_size(self) -> int:
        """V codes, an unused row where MaskGIT has the mask, the classes, the null label."""
        return self.codebook_size + 1 + self.num_classes + 1


class FlowConfig(GeneratorSizes):
    """A flow-matching transformer (DiT, arXiv 2212.09748) over latents of a Gaussian tokenizer, C numbers a token."""

    kind: Literal["flow"]
    codebook_size: None = None  # type: ignore[assignment]  # latents are not codes
    token_size: PositiveInt
    width: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    mlp_ratio: PositiveInt = 4

    @model_validator(mode="after")
    def _fits_together(self) -> "FlowConfig":
        if self.architecture:
            raise ValueError(f"a flow has one architecture: leave out {self.architecture!r}")
        _check_heads(self.width, self.num_heads)
        return self


def kind_of(config: GeneratorSizes) -> str:
    """Return the name of the kind of generator that `config` describes."""
    return str(getattr(config, "kind", MASKGIT))
