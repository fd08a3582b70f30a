"""A sample set that is to be drawn, and what is recorded of it: its settings, its manifest, the header of its ids."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.sampling import SamplingConfig
from titokctl.data.image_decoder import ENCODERS
from titokctl.data.terms import IMAGENET
from titokctl.formats.image_output import ImageFormat, OutputSpec
from titokctl.formats.run_folder import versions
from titokctl.formats.token_cache import CacheHeader
from titokctl.jobs.sample.inputs import Given, Networks
from titokctl.models.guidance import S_FORM, W_FORM
from titokctl.models.inference import kernels
from titokctl.models.precision import Precision
from titokctl.sampling.plan import Plan
from titokctl.weights.known import released

_LABEL_RULE = "image i has the class classes[i mod C]"


@dataclass
class SampleTask:
    """One sample set to be drawn: its networks and settings.

    Args:
        batch_size: images decoded at once.
        features: what decides about the features that are computed from the images; None without them.
    """

    generator: Given
    tokenizer: Given
    networks: Networks
    sampling: SamplingConfig
    plan: Plan
    image_format: ImageFormat
    device: str
    precision: Precision
    batch_size: int
    features: dict[str, Any] | None

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that decides about the bytes of the set; an unfinished set is resumed only if this is equal."""
        classes, every = self.plan.classes, self.generator.config.num_classes
        kind = torch.device(self.device).type
        return {
            "num_images": self.plan.num_images,
            "classes": "all" if classes == tuple(range(every)) else classes and list(classes),
            "sampling": self.sampling.model_dump(mode="json"),
            **self.networks.hashes,
            "image_format": self.image_format,
            "tile_size": self.plan.tile_size,
            "precision": self.precision,
            "kernels": kernels(kind, self.precision),
            "device": kind,
            "torch": versions()["torch"],
            # A GPU chooses the kernels that decode by the batch size; on a CPU no pixel depends on it.
            **({} if kind == "cpu" else {"batch_size": self.batch_size}),
            **({} if self.features is None else {"features": self.features}),
        }

    def name(self, output: Path | None) -> str:
        """Return the name of the run: readable, and different for other settings or another output."""
        key = json.dumps([self.identity, str(output.absolute()) if output else None], sort_keys=True)
        scale, n = self.sampling.guidance_scale, self.plan.num_images
        return f"cfg{scale:g}-n{n}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def inputs(self) -> dict[str, Any]:
        """Return what the run records of its inputs."""
        trained_on = self.generator.lineage
        kept = {name: trained_on[name] for name in ("source", "preprocessing", "cache") if name in trained_on}
        return self.networks.hashes | kept

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
        config, hashes = self.tokenizer.config, self.networks.hashes
        trained_on = self.generator.lineage
        return CacheHeader(
            tokenizer=config.model_dump(mode="json"),
            encoder_sha256=hashes["encoder_sha256"],
            weights_sha256=hashes["weights_sha256"],
            codebook_size=config.codebook_size,
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
        on_gpu = torch.device(self.device).type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else "cpu"
        return {
            "versions": versions(),
            "device": name,
            "precision": self.precision,
            "tile_size": self.plan.tile_size,
        }
