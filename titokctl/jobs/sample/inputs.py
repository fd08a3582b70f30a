"""What a `sample` command means: which generator and tokenizer, whether they fit, with which settings and classes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.config import recipe_files
from titokctl.config.models import GeneratorConfig, TokenizerConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.data.class_order import say_class_order
from titokctl.data.image_decoder import ImageDecoder
from titokctl.dry_run import is_dry_run
from titokctl.errors import UsageError, UserError
from titokctl.models.device import default_batch_size
from titokctl.models.inference import prepared
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.precision import Precision
from titokctl.sampling.plan import Plan, classes_of
from titokctl.weights.build import build
from titokctl.weights.chain import Say, pick_generator, tokenizer_with
from titokctl.weights.hashes import encoder_sha256, weights_sha256
from titokctl.weights.known import released
from titokctl.weights.read import locate, read
from titokctl.weights.store import Weights

DEFAULT_NUM_IMAGES = 64


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

    @property
    def lineage(self) -> dict[str, Any]:
        """What a generator's file says about the token cache it was trained on; {} for released ones."""
        return dict(json.loads(self.weights.extra.get("inputs") or "{}"))


@dataclass(frozen=True)
class Networks:
    """A generator and the decoder of its ids, ready; the hashes of their weights by their recorded names."""

    generator: MaskGit
    decoder: ImageDecoder
    hashes: dict[str, str]


def find_generator(named: str | None, runs: Path, say: Say) -> Given:
    """The generator, its file read but not yet built."""
    return _given(pick_generator(named, runs, say), "generator")


def find_tokenizer(named: str | None, generator: Given, runs: Path, say: Say) -> Given:
    """The tokenizer that decodes the generator's ids, read but not yet built.

    Raises UserError when there is none, or when number of tokens or codes differ.
    """
    if named is None and (recorded := generator.lineage):
        named = tokenizer_with(recorded["encoder_sha256"], recorded["weights_sha256"], None, runs, say)
    elif named is None:
        named = released_as(generator.config)
        if named is None:
            problem = f"{generator.path} does not say which tokenizer its ids belong to"
            raise UserError(problem, "name it with --tokenizer")
        say(f"tokenizer: {named} (the one this generator was released with)")
    tokenizer = _given(named, "tokenizer")
    _check_sizes(generator, tokenizer)
    return tokenizer


def ready(generator: Given, tokenizer: Given, device: str, precision: Precision) -> Networks:
    """Both networks on `device`, for `precision`.

    Raises UserError when the generator was trained on another tokenizer's ids.
    """
    detokenizer: Any = build(tokenizer.weights, str(tokenizer.path), device, None)
    encoder = encoder_sha256(detokenizer)
    trained_on = generator.lineage.get("encoder_sha256", encoder)
    if trained_on != encoder:
        raise UserError(
            f"the generator {generator.name} was trained on ids of another tokenizer than {tokenizer.name} "
            f"(encoder {trained_on[:12]}, not {encoder[:12]})",
            "leave out --tokenizer to have the right one found, or name the one that made the generator's token cache",
        )
    maskgit: Any = build(generator.weights, str(generator.path), device, None)
    hashes = {
        "generator_sha256": weights_sha256(maskgit),
        "encoder_sha256": encoder,
        "weights_sha256": weights_sha256(detokenizer),
    }
    return Networks(prepared(maskgit, device, precision), ImageDecoder(detokenizer, device, precision), hashes)


def plan_for(
    generator: Given, classes: Sequence[int] | None, num_images: int | None, per_class: int | None, device: str
) -> Plan:
    """Which images of which classes to draw, `num_images` in all or `per_class` of each.

    Raises UsageError when the classes are not the generator's.
    """
    chosen = classes_of(classes, generator.config.num_classes)
    if per_class is not None:
        if chosen is None:
            raise UsageError("--per-class was given, but this generator was trained without classes", "use -n instead")
        num_images = per_class * len(chosen)
    return Plan(num_images or DEFAULT_NUM_IMAGES, chosen, default_batch_size(device, "draw"))


def settings_for(generator: Given, changes: dict[str, Any], say: Say) -> SamplingConfig:
    """The generator's own sampling settings with `changes`. Raises UsageError when one of these is out of range."""
    preset, where = _preset(generator)
    say(f"settings: {where}" + (f", changed: {', '.join(changes)}" if changes else ""))
    say_class_order(generator.lineage.get("class_names", ()), generator.config, say)
    wanted = {**preset.model_dump(mode="json"), **changes}
    return recipe_files.validate(SamplingConfig, wanted, "the sampling settings")


def released_as(config: GeneratorConfig) -> str | None:
    """The name of the released tokenizer (and preset) that belongs to a released generator's configuration."""
    known = released(config)
    return "titok-" + known.name.split("-", 2)[2] if known else None


def _given(name: str, kind: str) -> Given:
    path = locate(name, not is_dry_run())
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
    sizes = {
        "tokens an image": (ours.num_latent_tokens, theirs.num_latent_tokens),
        "codes": (ours.codebook_size, theirs.codebook_size),
    }
    wrong = [f"{what}: {a} and {b}" for what, (a, b) in sizes.items() if a != b]
    if wrong:
        raise UserError(
            f"the generator {generator.name} and the tokenizer {tokenizer.name} do not fit ({'; '.join(wrong)})",
            "name the tokenizer that made the generator's token cache with --tokenizer, or leave it out",
        )
