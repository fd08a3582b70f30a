"""The models with names: released ones with their published numbers, and those that are part of the package."""

from collections.abc import Iterator
from dataclasses import dataclass

from titokctl.config.base import Config
from titokctl.config.models import GeneratorConfig, TokenizerConfig, TransformerConfig, VqganConfig

_SMALL = TransformerConfig(patch_size=16, width=512, num_layers=8, num_heads=8)
_BASE = TransformerConfig(patch_size=16, width=768, num_layers=12, num_heads=12)
_LARGE = TransformerConfig(patch_size=16, width=1024, num_layers=24, num_heads=16)


@dataclass(frozen=True)
class Known:
    """A model with a name.

    Args:
        repository, files: on the Hugging Face Hub; a model without a repository is part of the package.
        tokenizer: of a generator, the name of the tokenizer that it was trained for.
        parameters: in millions, counted.
        rfid, gfid: published numbers, quoted and not measured here.
        sampling_steps: number of steps for the gfid.
    """

    name: str
    kind: str
    config: Config
    repository: str
    parameters: float
    rfid: float | None = None
    gfid: float | None = None
    sampling_steps: int | None = None
    files: tuple[str, ...] = ("config.json", "model.safetensors")
    tokenizer: str = ""

    @property
    def is_bundled(self) -> bool:
        """True for a model whose weights are a file of the package, `titokctl/bundled/<name>.safetensors`."""
        return not self.repository

    @property
    def num_latent_tokens(self) -> int | None:
        """K; None for the proxy tokenizer."""
        return getattr(self.config, "num_latent_tokens", None)


def _two_stage(k: int, vit: TransformerConfig) -> TokenizerConfig:
    return TokenizerConfig(
        image_size=256, num_latent_tokens=k, encoder=vit, decoder=vit, codebook_size=4096, token_size=12,
        normalize_codes=True, shuffled_bottleneck=True, head="proxy", proxy=VqganConfig(),
    )  # fmt: skip


def _vq(k: int, encoder: TransformerConfig) -> TokenizerConfig:
    return TokenizerConfig(
        image_size=256, num_latent_tokens=k, encoder=encoder, decoder=_LARGE, codebook_size=8192, token_size=64,
        normalize_codes=False,
    )  # fmt: skip


def _vae(k: int, encoder: TransformerConfig) -> TokenizerConfig:
    return TokenizerConfig(
        image_size=256, num_latent_tokens=k, encoder=encoder, decoder=_LARGE, quantizer="gaussian",
        codebook_size=None, token_size=16, normalize_codes=False,
    )  # fmt: skip


def _vit(k: int) -> GeneratorConfig:
    return GeneratorConfig(
        architecture="vit", num_latent_tokens=k, codebook_size=4096, num_classes=1000, width=768, num_layers=24,
        num_heads=16, mlp_width=3072,
    )  # fmt: skip


_UVIT = GeneratorConfig(
    architecture="uvit", num_latent_tokens=128, codebook_size=4096, num_classes=1000, width=1024, num_layers=20,
    num_heads=16, mlp_width=4096,
)  # fmt: skip


def _titok(name: str, config: TokenizerConfig, there: str, parameters: float, rfid: float) -> Known:
    return Known(name, "tokenizer", config, f"yucornetto/tokenizer_titok_{there}_imagenet", parameters, rfid)


def _maskgit(name: str, config: GeneratorConfig, there: str, parameters: float, gfid: float, steps: int) -> Known:
    tokenizer, there = "titok-" + name.split("-", 2)[2], f"yucornetto/generator_titok_{there}_imagenet"
    return Known(name, "generator", config, there, parameters, gfid=gfid, sampling_steps=steps, tokenizer=tokenizer)


_RELEASED = (
    _titok("titok-s-128", _two_stage(128, _SMALL), "s128", 83.7, 1.71),
    _titok("titok-b-64", _two_stage(64, _BASE), "b64", 204.8, 1.70),
    _titok("titok-l-32", _two_stage(32, _LARGE), "l32", 641.1, 2.21),
    _titok("titok-bl-64-vq", _vq(64, _BASE), "bl64_vq8k", 390.0, 2.06),
    _titok("titok-bl-128-vq", _vq(128, _BASE), "bl128_vq8k", 390.2, 1.49),
    _titok("titok-sl-256-vq", _vq(256, _SMALL), "sl256_vq8k", 330.3, 1.03),
    _titok("titok-ll-32-vae", _vae(32, _LARGE), "ll32_vae_c16", 606.9, 1.61),
    _titok("titok-bl-64-vae", _vae(64, _BASE), "bl64_vae_c16", 389.4, 1.25),
    _titok("titok-bl-128-vae", _vae(128, _BASE), "bl128_vae_c16", 389.6, 0.84),
    _maskgit("maskgit-vit-l-32", _vit(32), "l32", 177.2, 2.77, 8),
    _maskgit("maskgit-vit-b-64", _vit(64), "b64", 177.2, 2.48, 8),
    _maskgit("maskgit-uvit-s-128", _UVIT, "s128", 295.0, 1.97, 64),
    Known("maskgit-vqgan", "proxy", VqganConfig(), "fun-research/TiTok", 54.5,
          files=("maskgit-vqgan-imagenet-f16-256.bin",)),
)  # fmt: skip
# Trained by recipes/bundled/, whose recipes have the same configurations.
_SCENES = TokenizerConfig(
    image_size=64, num_latent_tokens=32, codebook_size=1024, token_size=12, overlapping_patches=True,
    encoder=TransformerConfig(patch_size=16, width=192, num_layers=5, num_heads=6),
    decoder=TransformerConfig(patch_size=8, width=192, num_layers=6, num_heads=6),
)  # fmt: skip
_SCENES_GENERATOR = GeneratorConfig(
    architecture="uvit", num_latent_tokens=32, codebook_size=1024, num_classes=30, width=160, num_layers=6,
    num_heads=5, mlp_width=640, dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
BUNDLED = (
    Known("scenes-64", "tokenizer", _SCENES, "", 5.2, files=("scenes-64.safetensors",)),
    Known("maskgit-scenes-64", "generator", _SCENES_GENERATOR, "", 2.7, files=("maskgit-scenes-64.safetensors",),
          tokenizer="scenes-64"),
)  # fmt: skip
RELEASED = {known.name: known for known in _RELEASED}
BY_NAME = RELEASED | {known.name: known for known in BUNDLED}


def named(name: str, kind: str | None = None) -> Known | None:
    """Return the model `name`, or None. Where a generator is wanted, a tokenizer's name stands for its generator."""
    found = BY_NAME.get(name)
    if found is not None and kind == "generator" != found.kind:
        return next((known for known in of_kind(kind) if known.tokenizer == name), found)
    return found


def of_kind(kind: str) -> Iterator[Known]:
    """Return the models of a kind, in the order of the table."""
    return (known for known in BY_NAME.values() if known.kind == kind)


def released(config: Config) -> Known | None:
    """Return the released model with this configuration, or None. Dropout may differ: weights don't depend on it."""
    return next((known for known in _RELEASED if _lasting(known.config) == _lasting(config)), None)


def _lasting(config: Config) -> Config:
    if not isinstance(config, GeneratorConfig):
        return config
    return config.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
