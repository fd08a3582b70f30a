"""What a `sample` command means: which generator and tokenizer, whether they fit, with which settings and classes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.config import recipe_files
from titokctl.config.models import GeneratorConfig, TokenizerConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.errors import UsageError, UserError
from titokctl.jobs.chain import Say, pick_generator, tokenizer_with
from titokctl.jobs.class_order import say_class_order
from titokctl.jobs.image_decoder import ImageDecoder
from titokctl.models.inference import prepared
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.precision import Precision
from titokctl.sampling.plan import classes_of
from titokctl.weights.build import build
from titokctl.weights.hashes import encoder_sha256, weights_sha256
from titokctl.weights.known import released
from titokctl.weights.read import locate, read
from titokctl.weights.store import Weights


@dataclass(frozen=True)
class Given:
    """Weights of one network: what was named, the file or folder that is, and what is in it."""

    name: str
    path: Path
    weights: Weights

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self.weights.config


@dataclass(frozen=True)
class Networks:
    """A generator and the decoder of its ids, ready, with the hashes of their weights as they are kept."""

    generator: MaskGit
    decoder: ImageDecoder
    generator_sha256: str
    encoder_sha256: str
    weights_sha256: str

    @property
    def hashes(self) -> dict[str, str]:
        """The hashes by their recorded names."""
        names = ("generator_sha256", "encoder_sha256", "weights_sha256")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Settings:
    """All that decides which ids are drawn, besides the generator."""

    sampling: SamplingConfig
    classes: tuple[int, ...] | None
    num_images: int


def find_generator(named: str | None, runs: Path, say: Say) -> Given:
    """The generator, its file read but not yet built."""
    return _given(pick_generator(named, runs, say), "generator")


def find_tokenizer(named: str | None, generator: Given, runs: Path, say: Say) -> Given:
    """The tokenizer that decodes the generator's ids, read but not yet built.

    Raises UserError when there is none, or when number of tokens or codes differ.
    """
    recorded = lineage(generator)
    partner = released_as(generator.config)
    if named is None and partner is not None and not recorded:
        named = partner
        say(f"tokenizer: {named} (the one this generator was released with)")
    if named is None and not recorded:
        raise UserError(f"{generator.path} does not say which tokenizer its ids belong to", "name it with --tokenizer")
    if named is None:
        named = tokenizer_with(recorded["encoder_sha256"], recorded["weights_sha256"], None, runs, say)
    tokenizer = _given(named, "tokenizer")
    _check_sizes(generator, tokenizer)
    return tokenizer


def ready(generator: Given, tokenizer: Given, device: str, precision: Precision) -> Networks:
    """Both networks on `device`, for `precision`.

    Raises UserError when the generator was trained on another tokenizer's ids.
    """
    detokenizer: Any = build(tokenizer.weights, str(tokenizer.path), device, None)
    encoder = encoder_sha256(detokenizer)
    trained_on = lineage(generator).get("encoder_sha256", encoder)
    if trained_on != encoder:
        raise UserError(
            f"the generator {generator.name} was trained on ids of another tokenizer than {tokenizer.name} "
            f"(encoder {trained_on[:12]}, not {encoder[:12]})",
            "leave out --tokenizer to have the right one found, or name the one that made the generator's token cache",
        )
    maskgit: Any = build(generator.weights, str(generator.path), device, None)
    return Networks(
        prepared(maskgit, device, precision),
        ImageDecoder(detokenizer, device, precision),
        weights_sha256(maskgit),
        encoder,
        weights_sha256(detokenizer),
    )


def settings_for(
    generator: Given,
    changes: dict[str, Any],
    classes: Sequence[int] | None,
    num_images: int | None,
    per_class: int | None,
    say: Say,
) -> Settings:
    """The generator's own sampling settings with `changes`, its classes, and the number of images.

    Raises UsageError when the classes are not the generator's, or a changed setting is out of range.
    """
    chosen = classes_of(classes, generator.config.num_classes)
    if per_class is not None:
        if chosen is None:
            raise UsageError("--per-class was given, but this generator was trained without classes", "use -n instead")
        num_images = per_class * len(chosen)
    preset, where = _preset(generator)
    say(f"settings: {where}" + (f", changed: {', '.join(changes)}" if changes else ""))
    say_class_order(lineage(generator).get("class_names", ()), generator.config, say)
    wanted = {**preset.model_dump(mode="json"), **changes}
    sampling = recipe_files.validate(SamplingConfig, wanted, "the sampling settings")
    assert num_images is not None
    return Settings(sampling, chosen, num_images)


def lineage(generator: Given) -> dict[str, Any]:
    """What the generator's file says about the token cache it was trained on; {} for released ones."""
    text = generator.weights.extra.get("inputs")
    return json.loads(text) if text else {}


def released_as(config: GeneratorConfig) -> str | None:
    """The name of the released tokenizer (and preset) that belongs to a released generator's configuration."""
    known = released(config)
    return "titok-" + known.name.split("-", 2)[2] if known else None


def _given(name: str, kind: str) -> Given:
    path = locate(name)
    weights = read(path)
    if weights.kind != kind:
        hint = "`titokctl inspect` says what something is; without the option the newest that fits is taken"
        raise UserError(f"{path} holds a {weights.kind} where a {kind} is expected", hint)
    return Given(name, path, weights)


def _preset(generator: Given) -> tuple[SamplingConfig, str]:
    """The settings that belong to the generator, and where they come from."""
    recorded = generator.weights.extra.get("sampling")
    if recorded:
        return recipe_files.validate(SamplingConfig, json.loads(recorded), str(generator.path)), "the generator's own"
    preset = released_as(generator.config)
    if preset is not None:
        return recipe_files.load(preset, "sampling"), f"sampling/{preset}, as published"
    return SamplingConfig(), "defaults (the generator records none)"


def _check_sizes(generator: Given, tokenizer: Given) -> None:
    ours: GeneratorConfig = generator.config
    theirs: TokenizerConfig = tokenizer.config
    if not theirs.is_discrete:
        raise UserError(f"{tokenizer.name} has no codebook, so no generator can draw its ids")
    wrong = [
        f"{what}: {a} and {b}"
        for what, a, b in (
            ("tokens an image", ours.num_latent_tokens, theirs.num_latent_tokens),
            ("codes", ours.codebook_size, theirs.codebook_size),
        )
        if a != b
    ]
    if wrong:
        raise UserError(
            f"the generator {generator.name} and the tokenizer {tokenizer.name} do not fit ({'; '.join(wrong)})",
            "name the tokenizer that made the generator's token cache with --tokenizer, or leave it out",
        )
