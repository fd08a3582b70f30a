"""The inputs of `titokctl sample`: generator and tokenizer, checked against each other, and the settings."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.config import recipe_files
from titokctl.config.models import GeneratorSizes, TokenizerConfig, kind_of
from titokctl.config.sampling import SamplingConfig
from titokctl.data.class_order import say_class_order
from titokctl.data.image_decoder import ImageDecoder
from titokctl.errors import UsageError, UserError
from titokctl.models.device import default_batch_size
from titokctl.models.generator import Generator
from titokctl.models.generator_kinds import kind_class
from titokctl.models.inference import prepared
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
    """Weights of one network: the name that was given, the file or folder it stands for, and its contents."""

    name: str
    path: Path
    weights: Weights

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self.weights.config

    @property
    def reads(self) -> frozenset[str]:
        """The sampling settings that a generator of this kind reads."""
        return kind_class(self.config).reads

    @property
    def lineage(self) -> dict[str, Any]:
        """The record of the token cache that a generator was trained on; {} for released generators."""
        return dict(json.loads(self.weights.extra.get("inputs") or "{}"))


@dataclass(frozen=True)
class Networks:
    """A generator and the decoder of its ids, ready to run, and the hashes of their weights by name."""

    generator: Generator
    decoder: ImageDecoder
    hashes: dict[str, str]


def find_generator(named: str | None, runs: Path, say: Say, fetch: bool = True) -> Given:
    """Read the generator, and build nothing yet; `fetch` allows a download."""
    return _given(pick_generator(named, runs, say), "generator", fetch)


def find_tokenizer(named: str | None, generator: Given, runs: Path, say: Say, fetch: bool = True) -> Given:
    """Read the tokenizer that decodes the generator's ids, and build nothing yet; `fetch` allows a download.

    Raises UserError when there is none, or when its number of tokens or codes differs from the generator's.
    """
    if named is None and (recorded := generator.lineage):
        named = tokenizer_with(recorded["encoder_sha256"], recorded["weights_sha256"], None, runs, say)
    elif named is None:
        named = released_as(generator.config)
        if named is None:
            problem = f"{generator.path} does not record which tokenizer made its ids"
            raise UserError(problem, "name it with --tokenizer")
        say(f"tokenizer: {named} (the one this generator was released with)")
    tokenizer = _given(named, "tokenizer", fetch)
    _check_sizes(generator, tokenizer)
    return tokenizer


def build_networks(generator: Given, tokenizer: Given, device: str, precision: Precision) -> Networks:
    """Build both networks on `device`, for `precision`.

    Raises UserError when the generator was trained on another tokenizer's ids.
    """
    detokenizer: Any = build(tokenizer.weights, str(tokenizer.path), device, None)
    encoder = encoder_sha256(detokenizer)
    trained_on = generator.lineage.get("encoder_sha256", encoder)
    if trained_on != encoder:
        raise UserError(
            f"the generator {generator.name} was not trained on ids of the tokenizer {tokenizer.name} "
            f"(encoder {trained_on[:12]}, not {encoder[:12]})",
            "leave out --tokenizer, and the right one is found; or name the one that made the generator's token cache",
        )
    drawer: Any = build(generator.weights, str(generator.path), device, None)
    hashes = {
        "generator_sha256": weights_sha256(drawer),
        "encoder_sha256": encoder,
        "weights_sha256": weights_sha256(detokenizer),
    }
    return Networks(prepared(drawer, device, precision), ImageDecoder(detokenizer, device, precision), hashes)


def plan_for(
    generator: Given, classes: Sequence[int] | None, num_images: int | None, per_class: int | None, device: str
) -> Plan:
    """Return the images and classes to draw: `num_images` in all, or `per_class` of each class.

    Raises UsageError when the classes are not the generator's.
    """
    chosen = classes_of(classes, generator.config.num_classes)
    if per_class is not None:
        if chosen is None:
            raise UsageError("--per-class was given, but this generator was trained without classes", "use -n instead")
        num_images = per_class * len(chosen)
    return Plan(num_images or DEFAULT_NUM_IMAGES, chosen, default_batch_size(device, "draw"))


def settings_for(generator: Given, changes: dict[str, Any], say: Say) -> SamplingConfig:
    """Return the generator's own sampling settings with `changes`. Raises UsageError for a value out of range."""
    preset, where = _preset(generator)
    unread = [name for name in changes if name != "seed" and name not in generator.reads]
    if unread:
        raise UsageError(
            f"a generator of kind {kind_of(generator.config)} has no setting {', '.join(unread)}",
            f"its settings are {', '.join(sorted(generator.reads))}",
        )
    say(f"settings: {where}" + (f", changed: {', '.join(changes)}" if changes else ""))
    say_class_order(generator.lineage.get("class_names", ()), generator.config, say)
    wanted = {**preset.model_dump(mode="json"), **changes}
    return recipe_files.validate(SamplingConfig, wanted, "the sampling settings")


def released_as(config: GeneratorSizes) -> str | None:
    """Return the name of the tokenizer and preset that were released with a generator; None if it is not released."""
    known = released(config)
    return "titok-" + known.name.split("-", 2)[2] if known else None


def _given(name: str, kind: str, fetch: bool) -> Given:
    path = locate(name, fetch)
    weights = read(path)
    if weights.kind != kind:
        hint = "`titokctl inspect` shows what a file holds; without the option, the newest run that fits is taken"
        raise UserError(f"{path} holds a {weights.kind} where a {kind} is expected", hint)
    return Given(name, path, weights)


def _preset(generator: Given) -> tuple[SamplingConfig, str]:
    """Return the settings that belong to the generator, and where they come from."""
    recorded = generator.weights.extra.get("sampling")
    if recorded:
        return recipe_files.validate(SamplingConfig, json.loads(recorded), str(generator.path)), "the generator's own"
    preset = released_as(generator.config)
    if preset is not None:
        return recipe_files.load(preset, "sampling"), f"sampling/{preset}, as published"
    return SamplingConfig(), "defaults (the generator records none)"


def _check_sizes(generator: Given, tokenizer: Given) -> None:
    ours: GeneratorSizes = generator.config
    theirs: TokenizerConfig = tokenizer.config
    if not theirs.is_discrete:
        raise UserError(f"{tokenizer.name} has no codebook, so a generator can't draw its ids")
    sizes = {
        "tokens an image": (ours.num_latent_tokens, theirs.num_latent_tokens),
        "codes": (ours.codebook_size, theirs.codebook_size),
    }
    wrong = [f"{what}: {a} and {b}" for what, (a, b) in sizes.items() if a != b]
    if wrong:
        raise UserError(
            f"the generator {generator.name} and the tokenizer {tokenizer.name} do not fit ({'; '.join(wrong)})",
            "leave out --tokenizer, or name the tokenizer that made the generator's token cache",
        )
