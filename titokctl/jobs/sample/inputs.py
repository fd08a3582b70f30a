"""The inputs of a sample set: generator, tokenizer and settings, checked against each other, and their records."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config import recipe_files
from titokctl.config.models import GeneratorSizes, TokenizerConfig, kind_of
from titokctl.config.sampling import REMASKING, GuidanceConfig
from titokctl.data.image_decoder import ENCODERS, ImageDecoder, check_makes_pixels
from titokctl.data.sources.imagenet import IMAGENET, say_class_order
from titokctl.errors import UsageError, UserError
from titokctl.formats.image_output import ImageFormat, OutputSpec
from titokctl.formats.run_folder import versions
from titokctl.formats.token_cache import CacheHeader
from titokctl.jobs.sample.kept_tokens import KeptTokens
from titokctl.models.device import default_batch_size
from titokctl.models.generator import Generator, Known, Sizes, check_sizes
from titokctl.models.generator_kinds import kind_class
from titokctl.models.guidance import S_FORM, W_FORM
from titokctl.models.inference import fastest_precision, kernels, prepared
from titokctl.models.precision import Precision
from titokctl.sampling.plan import Classes, Plan, classes_of, unlearnt
from titokctl.weights.chain import Say, pick_generator, tokenizer_with
from titokctl.weights.hashes import check_encoder, encoder_sha256, weights_sha256
from titokctl.weights.known import released
from titokctl.weights.read import locate, read
from titokctl.weights.store import Weights, build

DEFAULT_NUM_IMAGES = 64
_SHOWN_CLASSES = 5
# The options of sampling settings, for messages.
FLAGS = {
    "guidance_scale": "--cfg",
    "guidance_schedule": "--cfg-schedule",
    "guidance_power": "--cfg-power",
    "guidance_interval": "--cfg-interval",
    "num_steps": "--steps",
    "solver": "--solver",
    "choice_temperature": "--choice-temperature",
    "softmax_annealing": "--softmax-annealing",
    "unmasking": "--unmasking",
    "remasking_cap": "--remasking-cap",
    "temperature": "--temperature",
    "top_k": "--top-k",
    "top_p": "--top-p",
    "seed": "--seed",
}
_LABEL_RULE = "image i has the class classes[i mod C]"


@dataclass(frozen=True)
class Given:
    """Weights of one network: the name that was given, the file or folder it names, and its contents."""

    name: str
    path: Path
    weights: Weights

    @property
    def config(self) -> Any:
        """The network's configuration."""
        return self.weights.config

    @property
    def settings_class(self) -> type[GuidanceConfig]:
        """The class of the sampling settings of a generator."""
        return kind_class(self.config).settings_class()

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


@dataclass(frozen=True)
class Calculation:
    """All that may change the bits of an image, besides the networks and the settings.

    Args:
        device: the kind of device, "cpu" or "cuda", or one of several as "cuda:<n>".
        device_name: of the GPU, for the record; "cpu" for a CPU.
    """

    device: str
    precision: Precision
    kernels: str
    torch: str
    device_name: str

    @property
    def decisive(self) -> dict[str, Any]:
        """The part that must be the same on all machines that draw a set."""
        return {
            "precision": self.precision,
            "kernels": self.kernels,
            "device": torch.device(self.device).type,
            "torch": self.torch,
        }


def calculation(device: str, precision: Precision | None) -> Calculation:
    """Return how images are calculated on the machine that calls this; None for the device's fastest precision."""
    name = precision or fastest_precision(device)
    kind = torch.device(device).type
    about = torch.cuda.get_device_name(device) if kind == "cuda" else kind
    return Calculation(device, name, kernels(device, name), versions()["torch"], about)


@dataclass
class SampleTask:
    """One sample set to be drawn: its networks and settings. It holds weights, but no network that is ready to run.

    Args:
        hashes: of the weights, by name.
        batch_size: images decoded at once.
        features: the settings of the features that are computed from the images; None without them.
        kept: the ids that the images keep; None to draw all of them.
    """

    generator: Given
    tokenizer: Given
    hashes: dict[str, str]
    sampling: GuidanceConfig
    plan: Plan
    image_format: ImageFormat
    calculation: Calculation
    batch_size: int
    features: dict[str, Any] | None
    kept: KeptTokens | None = None

    @property
    def device(self) -> str:
        """The device of the networks."""
        return self.calculation.device

    @property
    def precision(self) -> Precision:
        """The precision of generator and decoder."""
        return self.calculation.precision

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides about the bytes of the set; an unfinished set is resumed only if this is equal."""
        classes, every = self.plan.classes, self.generator.config.num_classes
        is_cpu = torch.device(self.device).type == "cpu"
        return {
            "num_images": self.plan.num_images,
            "classes": "all" if classes == tuple(range(every)) else classes and list(classes),
            "sampling": self.sampling.model_dump(mode="json"),
            **self.hashes,
            "image_format": self.image_format,
            "tile_size": self.plan.tile_size,
            **self.calculation.decisive,
            # A GPU chooses the kernels that decode by the batch size; on a CPU no pixel depends on it.
            **({} if is_cpu else {"batch_size": self.batch_size}),
            **({} if self.features is None else {"features": self.features}),
            **({} if self.kept is None else {"kept": self.kept.record}),
        }

    def known(self, image_indices: torch.Tensor) -> Known | None:
        """Return the ids that images (B,) int64 keep, on their device; None if all ids are drawn."""
        return None if self.kept is None else self.kept.known(image_indices)

    def name(self, output: Path | None) -> str:
        """Return the name of the run: readable, and different for other settings or another output."""
        key = json.dumps([self.identity, str(output.absolute()) if output else None], sort_keys=True)
        scale, n = self.sampling.guidance_scale, self.plan.num_images
        return f"cfg{scale:g}-n{n}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def inputs(self) -> dict[str, Any]:
        """Return what the run records of its inputs."""
        trained_on = self.generator.lineage
        kept = {name: trained_on[name] for name in ("source", "preprocessing", "cache") if name in trained_on}
        return self.hashes | kept

    def spec(self) -> OutputSpec:
        """Return the images of the set, and the form in which they are kept."""
        labels = self.plan.labels(torch.arange(self.plan.num_images))
        return OutputSpec(
            self.image_format,
            self.tokenizer.config.image_size,
            np.full(self.plan.num_images, -1) if labels is None else labels.numpy(),
            self.class_names,
            ENCODERS.get(self.image_format),
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the generator's classes; () when unknown."""
        names = self.generator.lineage.get("class_names", [])
        return tuple(names) if len(names) == self.generator.config.num_classes else ()

    @property
    def terms(self) -> str:
        """Terms of use of the images that the generator was trained on; ImageNet for released generators."""
        trained_on = self.generator.lineage
        is_released = not trained_on and released(self.generator.config) is not None
        return IMAGENET if is_released else trained_on.get("terms", "")

    def header(self) -> CacheHeader:
        """Return the header of ids.h5."""
        config, hashes = self.tokenizer.config, self.hashes
        trained_on = self.generator.lineage
        return CacheHeader(
            tokenizer=config.model_dump(mode="json"),
            encoder_sha256=hashes["encoder_sha256"],
            weights_sha256=hashes["weights_sha256"],
            codebook_size=config.codebook_size or 0,
            token_size=0 if config.is_discrete else config.token_size,
            num_latent_tokens=config.num_latent_tokens,
            image_size=config.image_size,
            preprocessing=trained_on.get("preprocessing", {}),
            source={"kind": "samples", "generator_sha256": hashes["generator_sha256"], "settings": self.identity},
            class_names=self.class_names,
            made_with=self._made_with(),
            num_rejected=0,
            terms=self.terms,
        )

    def manifest(self) -> dict[str, Any]:
        """Return what the manifest records besides the settings."""
        sampling = self.sampling
        networks = {
            name: {"path": str(given.path.absolute()), "config": given.config.model_dump(mode="json")}
            for name, given in (("generator", self.generator), ("tokenizer", self.tokenizer))
        }
        guidance = {
            "formula": S_FORM,
            "s": sampling.guidance_scale,
            "w": sampling.guidance_scale + 1,
            "w_formula": W_FORM,
            "schedule": sampling.guidance_schedule,
            "power": sampling.guidance_power if sampling.guidance_schedule == "power-cosine" else None,
            "interval": list(sampling.guidance_interval),
        }
        return {
            "guidance": guidance,
            "seed": sampling.seed,
            "labels": _LABEL_RULE if self.plan.classes is not None else "none",
            **networks,
            "inputs": self.inputs(),
            **({"terms": self.terms} if self.terms else {}),
            "made_with": self._made_with() | {"batch_size": self.batch_size},
        }

    def _made_with(self) -> dict[str, Any]:
        return {
            "versions": versions(),
            "device": self.calculation.device_name,
            "precision": self.precision,
            "tile_size": self.plan.tile_size,
        }


def find_generator(named: str | None, runs: Path, say: Say, fetch: bool = True, encoder: str | None = None) -> Given:
    """Read the generator, and build nothing yet; `fetch` allows a download, `encoder` is as for `pick_generator`."""
    return _given(pick_generator(named, runs, say, encoder), "generator", fetch)


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
    config: TokenizerConfig = tokenizer.config
    sizes = Sizes(config.num_latent_tokens, config.codebook_size, None if config.is_discrete else config.token_size)
    hint = "leave out --tokenizer, or name the tokenizer that made the generator's token cache"
    check_sizes(f"the generator {generator.name}", generator.config, f"the tokenizer {tokenizer.name}", sizes, hint)
    return tokenizer


def build_networks(generator: Given, tokenizer: Given, device: str, precision: Precision) -> Networks:
    """Build both networks on `device`, for `precision`. Raises UserError as `networks_hashes` does."""
    drawer, detokenizer, hashes = _built(generator, tokenizer, device)
    return Networks(prepared(drawer, device, precision), ImageDecoder(detokenizer, device, precision), hashes)


def networks_hashes(generator: Given, tokenizer: Given) -> dict[str, str]:
    """Return the hashes of both networks, which are built on the CPU and deleted.

    Raises UserError when the generator was trained on another tokenizer's ids, or the tokenizer makes no pixels.
    """
    _, detokenizer, hashes = _built(generator, tokenizer, "cpu")
    check_makes_pixels(detokenizer)
    return hashes


def _built(generator: Given, tokenizer: Given, device: str) -> tuple[Any, Any, dict[str, str]]:
    detokenizer: Any = build(tokenizer.weights, str(tokenizer.path), device, None)
    encoder = encoder_sha256(detokenizer)
    trained_on = generator.lineage.get("encoder_sha256", encoder)
    hint = "leave out --tokenizer, and the right one is found; or name the one that made the generator's token cache"
    check_encoder(f"the token cache of the generator {generator.name}", trained_on, tokenizer.name, encoder, hint)
    drawer: Any = build(generator.weights, str(generator.path), device, None)
    return (
        drawer,
        detokenizer,
        {
            "generator_sha256": weights_sha256(drawer),
            "encoder_sha256": encoder,
            "weights_sha256": weights_sha256(detokenizer),
        },
    )


def plan_for(
    generator: Given,
    classes: Classes,
    num_images: int | None,
    per_class: int | None,
    device: str,
    say: Say,
    kept: KeptTokens | None = None,
) -> Plan:
    """Return the images and classes to draw: `num_images` in all, or `per_class` of each class.

    Classes that had no rows in training are left out unless they are named, and reported. By default there is an image
    for each row of `kept`, with the row's label. Raises UsageError when the classes are not the generator's.
    """
    if kept is not None:
        num_images = num_images or (len(kept.cache) if per_class is None else None)
    if kept is not None and classes is None and per_class is None:
        labels = kept.labels(generator.config.num_classes)
        return Plan(num_images or len(kept.cache), labels, default_batch_size(device, "draw"))
    names, rows = generator.lineage.get("class_names", ()), generator.lineage.get("class_rows", ())
    chosen = classes_of(classes, generator.config.num_classes, names, rows)
    _say_unlearnt(generator.config.num_classes, chosen, names, rows, say)
    if per_class is not None:
        if chosen is None:
            raise UsageError("--per-class was given, but the images are drawn without classes", "use -n instead")
        num_images = per_class * len(chosen)
    return Plan(num_images or DEFAULT_NUM_IMAGES, chosen, default_batch_size(device, "draw"))


def _say_unlearnt(
    num_classes: int, chosen: Sequence[int] | None, names: Sequence[str], rows: Sequence[int], say: Say
) -> None:
    """Report the classes without rows: those that are drawn although they were not learnt, or else those left out."""
    if chosen is None:
        return
    drawn, every = unlearnt(chosen, rows), unlearnt(range(num_classes), rows)
    listed = [names[c] if c < len(names) else str(c) for c in (drawn or every)]
    shown = ", ".join(listed[:_SHOWN_CLASSES]) + (", ..." if len(listed) > _SHOWN_CLASSES else "")
    if drawn:
        say(f"warning: training had no images of {len(drawn):,} of these classes ({shown}), so expect noise")
    elif every and len(chosen) == num_classes - len(every):
        left_out = f"leaving out {len(every):,} of {num_classes:,} classes that were not learnt ({shown})"
        say(f"{left_out}; --classes all draws them")


def settings_for(generator: Given, changes: dict[str, Any], say: Say) -> GuidanceConfig:
    """Return the generator's own sampling settings with `changes`. Raises UsageError for a value out of range."""
    preset, where = _preset(generator)
    known = generator.settings_class.model_fields
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise UsageError(
            f"a generator of kind {kind_of(generator.config)} has no setting {_flags(unknown)}",
            f"leave it out; its settings are {_flags(known)}",
        )
    say(f"settings: {where}" + (f", changed: {', '.join(changes)}" if changes else ""))
    say_class_order(generator.lineage.get("class_names", ()), generator.config, say)
    wanted = {**preset.model_dump(mode="json"), **changes}
    found = recipe_files.validate(generator.settings_class, wanted, "the sampling settings")
    if "remasking_cap" in changes and (rule := getattr(found, "unmasking", None)) != REMASKING:
        raise UsageError(f"--remasking-cap was given, but the unmasking rule is {rule}", "add --unmasking remasking")
    return found


def _flags(settings: Iterable[str]) -> str:
    return ", ".join(FLAGS.get(name, name) for name in settings)


def released_as(config: GeneratorSizes) -> str | None:
    """Return the name of the tokenizer and preset that were released with a generator; None if it is not released."""
    known = released(config)
    return known.tokenizer if known else None


def _given(name: str, kind: str, fetch: bool) -> Given:
    found = locate(name, fetch, kind)
    path, weights = found.path, read(found)
    if weights.kind != kind:
        hint = "`titokctl inspect` shows the kind of a file; without the option, the newest run that fits is taken"
        raise UserError(f"{path} contains a {weights.kind}, but a {kind} is expected", hint)
    return Given(name, path, weights)


def _preset(generator: Given) -> tuple[GuidanceConfig, str]:
    """Return the settings that belong to the generator, and where they come from."""
    recorded = generator.weights.extra.get("sampling")
    if recorded:
        return recipe_files.validate(
            generator.settings_class, json.loads(recorded), str(generator.path)
        ), "the generator's own"
    preset = released_as(generator.config)
    if preset is not None:
        return recipe_files.load(preset, "sampling"), f"sampling/{preset}, as published"
    return generator.settings_class(), "defaults (the generator records none)"
