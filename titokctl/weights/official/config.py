"""Conversion of the official config.json to our configurations and back."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from titokctl.config.base import Config
from titokctl.config.models import GeneratorConfig, TokenizerConfig, TransformerConfig, VqganConfig
from titokctl.errors import UserError

# width, layers, heads
_SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}
_ARCHITECTURES: dict[str, Literal["ViT", "UViT"]] = {"vit": "ViT", "uvit": "UViT"}
_GENERATOR_FIELDS = {
    "width": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
    "mlp_width": "intermediate_size", "dropout": "dropout", "attention_dropout": "attn_drop",
    "num_latent_tokens": "image_seq_len", "num_classes": "condition_num_classes",
}  # fmt: skip
_Size = Literal["small", "base", "large"]
# Official folders contain unresolved OmegaConf references: "${model.vq_model.num_latent_tokens}".
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_MAX_HOPS = 10  # from reference to reference; more means a loop
_MAX_DEPTH = 20  # of sections; deeper ones are not read


class FieldsMissing(UserError):
    """A config.json without required fields, as in the oldest releases, but with nothing wrong in it."""


class _Section(BaseModel):
    """A section of config.json; fields that we don't use are ignored."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class _VqModel(_Section):
    codebook_size: int | None = None
    token_size: int
    use_l2_norm: bool = False
    commitment_cost: float = 0.25
    vit_enc_model_size: _Size
    vit_dec_model_size: _Size
    vit_enc_patch_size: int = 16
    vit_dec_patch_size: int = 16
    num_latent_tokens: int
    finetune_decoder: bool = True
    is_legacy: bool = True
    quantize_mode: Literal["vq", "vae"] = "vq"


class _Generator(_Section):
    model_type: Literal["ViT", "UViT"] = "ViT"
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    dropout: float = 0.1
    attn_drop: float = 0.1
    image_seq_len: int
    condition_num_classes: int = 1000


class _Codes(_Section):
    codebook_size: int


class _Preprocessing(_Section):
    crop_size: int = 256


class _Dataset(_Section):
    preprocessing: _Preprocessing = _Preprocessing()


class _TokenizerModel(_Section):
    vq_model: _VqModel


class _GeneratorModel(_Section):
    vq_model: _Codes
    generator: _Generator


class _TokenizerFile(_Section):
    model: _TokenizerModel
    dataset: _Dataset = Field(default_factory=_Dataset)


class _GeneratorFile(_Section):
    model: _GeneratorModel


def read_config(kind: str, official: Mapping[str, Any], where: str) -> Config:
    """Convert the official configuration of a network of `kind` to ours.

    Raises:
        FieldsMissing: fields are missing, but none is wrong; names the first.
        UserError: a field is wrong; names it.
    """
    readers: dict[str, Callable[[Mapping[str, Any]], Config]]
    readers = {"tokenizer": _read_tokenizer, "generator": _read_generator, "proxy": _read_proxy}
    try:
        return readers[kind](_resolved(official, official))
    except ValidationError as error:
        raise _not_known(error, kind, where) from error


def _not_known(error: ValidationError, kind: str, where: str) -> UserError:
    errors = error.errors(include_url=False)
    wrong = [e for e in errors if e["type"] != "missing"]
    first = (wrong or errors)[0]
    field = ".".join(map(str, first["loc"])) or "config"
    value = f", not {first['input']!r}" if isinstance(first["input"], str) else ""
    hint = "if it is a released model, name it: `titokctl convert ... --model NAME`"
    message = f"{where} does not describe a supported {kind} ({field}: {first['msg']}{value})"
    return (UserError if wrong else FieldsMissing)(message, hint)


def _resolved(section: Mapping[str, Any], root: Mapping[str, Any], depth: int = 0) -> dict[str, Any]:
    """Return `section` with its references resolved; those without a target stay as they are."""
    values = {key: _value(value, root) for key, value in section.items()}
    if depth == _MAX_DEPTH:
        return values
    inner = {key: _resolved(value, root, depth + 1) for key, value in section.items() if isinstance(value, Mapping)}
    return {**values, **inner}


def _value(value: Any, root: Mapping[str, Any]) -> Any:
    found = value
    for _ in range(_MAX_HOPS):
        reference = _REFERENCE.fullmatch(found) if isinstance(found, str) else None
        if reference is None:
            return found
        found = root
        for key in reference[1].split("."):
            if not isinstance(found, Mapping) or key not in found:
                return value
            found = found[key]
    return value


def write_config(kind: str, config: Any) -> dict[str, Any]:
    """Convert our configuration to the official one. Raises UserError for one without an official form."""
    writers: dict[str, Callable[[Any], dict[str, Any]]]
    writers = {"tokenizer": _write_tokenizer, "generator": _write_generator, "proxy": _write_proxy}
    return writers[kind](config)


def _read_tokenizer(official: Mapping[str, Any]) -> TokenizerConfig:
    file = _TokenizerFile.model_validate(official)
    vq = file.model.vq_model
    gaussian = vq.quantize_mode == "vae"
    return TokenizerConfig(
        image_size=file.dataset.preprocessing.crop_size,
        num_latent_tokens=vq.num_latent_tokens,
        encoder=_transformer(vq.vit_enc_model_size, vq.vit_enc_patch_size),
        decoder=_transformer(vq.vit_dec_model_size, vq.vit_dec_patch_size),
        quantizer="gaussian" if gaussian else "vq",
        codebook_size=None if gaussian else vq.codebook_size,
        token_size=vq.token_size,
        normalize_codes=vq.use_l2_norm,
        commitment_cost=vq.commitment_cost,
        # One official switch for our two.
        shuffled_bottleneck=vq.is_legacy,
        head="proxy" if vq.is_legacy else "pixel",
        proxy=VqganConfig() if vq.is_legacy else None,
        pixel_decoder=vq.finetune_decoder if vq.is_legacy else True,
    )


def _transformer(size: str, patch_size: int) -> TransformerConfig:
    width, layers, heads = _SIZES[size]
    return TransformerConfig(patch_size=patch_size, width=width, num_layers=layers, num_heads=heads)


def _read_generator(official: Mapping[str, Any]) -> GeneratorConfig:
    model = _GeneratorFile.model_validate(official).model
    generator = model.generator
    return GeneratorConfig(
        architecture=generator.model_type.lower(),
        codebook_size=model.vq_model.codebook_size,
        **{ours: getattr(generator, theirs) for ours, theirs in _GENERATOR_FIELDS.items()},
    )


def _read_proxy(official: Mapping[str, Any]) -> VqganConfig:
    return VqganConfig()  # only one was published


def _write_tokenizer(config: TokenizerConfig) -> dict[str, Any]:
    if config.shuffled_bottleneck != (config.head == "proxy"):
        raise _no_form("officially one switch sets both the shuffled bottleneck and the head; here they differ")
    if config.proxy not in (None, VqganConfig()):
        raise _no_form("its proxy tokenizer is not the published MaskGIT-VQGAN")
    if config.quantizer not in ("vq", "gaussian"):
        raise _no_form(f"its quantizer {config.quantizer!r} is unknown to the official code")
    vq_model = {
        "codebook_size": config.codebook_size or 0,
        "token_size": config.token_size,
        "use_l2_norm": config.normalize_codes,
        "commitment_cost": config.commitment_cost,
        "vit_enc_model_size": _size_name("encoder", config.encoder),
        "vit_dec_model_size": _size_name("decoder", config.decoder),
        "vit_enc_patch_size": config.encoder.patch_size,
        "vit_dec_patch_size": config.decoder.patch_size,
        "num_latent_tokens": config.num_latent_tokens,
        "finetune_decoder": config.head == "proxy" and config.pixel_decoder,
        "is_legacy": config.shuffled_bottleneck,
        "quantize_mode": "vq" if config.is_discrete else "vae",
    }
    return {"model": {"vq_model": vq_model}, "dataset": {"preprocessing": {"crop_size": config.image_size}}}


def _size_name(side: str, vit: TransformerConfig) -> str:
    for name, size in _SIZES.items():
        if (vit.width, vit.num_layers, vit.num_heads, vit.mlp_ratio) == (*size, 4):
            return name
    sizes = ", ".join(f"{n} ({w} wide, {d} layers, {h} heads)" for n, (w, d, h) in _SIZES.items())
    raise _no_form(f"its {side} is {vit.width} wide with {vit.num_layers} layers; there are only {sizes}")


def _write_generator(config: GeneratorConfig) -> dict[str, Any]:
    if config.architecture not in _ARCHITECTURES:
        raise _no_form(f"its architecture {config.architecture!r} is unknown to the official code")
    fields = {theirs: getattr(config, ours) for ours, theirs in _GENERATOR_FIELDS.items()}
    generator = {"model_type": _ARCHITECTURES[config.architecture], **fields}
    vq_model = {"codebook_size": config.codebook_size, "num_latent_tokens": config.num_latent_tokens}
    return {"model": {"vq_model": vq_model, "generator": generator}}


def _write_proxy(config: VqganConfig) -> dict[str, Any]:
    if config != VqganConfig():
        raise _no_form("only one MaskGIT-VQGAN was published, and its sizes differ")
    return {}


def _no_form(reason: str) -> UserError:
    return UserError(f"this network can't be converted to the official form: {reason}", "use a titokctl weights file")
