"""What a sample set is made of and what is written down about it: its identity, its manifest, its ids' header."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.sampling import SamplingConfig
from titokctl.data.terms import IMAGENET
from titokctl.formats.image_output import ImageFormat
from titokctl.formats.run_folder import versions
from titokctl.formats.token_cache import CacheHeader
from titokctl.jobs.image_decoder import default_batch_size
from titokctl.jobs.sample_inputs import Given, Networks, Settings, lineage
from titokctl.models.precision import Precision
from titokctl.sampling.guidance import S_FORM, W_FORM
from titokctl.sampling.plan import Plan
from titokctl.weights.known import released

_LABEL_RULE = "image i has the class classes[i mod C]"
# Rows of a canonical tile: how many images a device draws at once. It is part of what makes an image.
_TILE_SIZE = {"cpu": 16, "cuda": 64}


class SampleTask:
    """One sample set to be drawn: its networks and settings, and what is recorded of them."""

    def __init__(
        self,
        generator: Given,
        tokenizer: Given,
        networks: Networks,
        settings: Settings,
        image_format: ImageFormat,
        device: str,
        precision: Precision,
        batch_size: int | None,
        features: dict[str, Any] | None = None,
    ) -> None:
        kind = torch.device(device).type
        self.generator, self.tokenizer = generator, tokenizer
        self.networks, self.settings = networks, settings
        self.image_format, self.device, self.precision = image_format, device, precision
        self.features = features
        self.plan = Plan(settings.num_images, settings.classes, _TILE_SIZE.get(kind, 64))
        self.batch_size = min(batch_size or default_batch_size(device), self.plan.tile_size)
        self.identity = self._identity(kind)

    def _identity(self, kind: str) -> dict[str, Any]:
        """All that decides about the bytes of the set; a set is gone on with only if this is equal."""
        classes, every = self.settings.classes, self.generator.config.num_classes
        return {
            "num_images": self.settings.num_images,
            "classes": "all" if classes == tuple(range(every)) else classes and list(classes),
            "sampling": self.settings.sampling.model_dump(mode="json"),
            **self.networks.hashes,
            "image_format": self.image_format,
            "tile_size": self.plan.tile_size,
            "precision": self.precision,
            "device": kind,
            "torch": versions()["torch"],
            # The kernels that decode on a GPU depend on it; on a CPU no pixel does.
            **({} if kind == "cpu" else {"batch_size": self.batch_size}),
            **({} if self.features is None else {"features": self.features}),
        }

    def name(self, output: Path | None) -> str:
        """The name of the run: readable, and different for other settings or another place."""
        key = json.dumps([self.identity, str(output.absolute()) if output else None], sort_keys=True)
        scale, n = self.settings.sampling.guidance_scale, self.settings.num_images
        return f"cfg{scale:g}-n{n}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def inputs(self) -> dict[str, Any]:
        """What the run records of where it comes from."""
        trained_on = lineage(self.generator)
        kept = {name: trained_on[name] for name in ("source", "preprocessing") if name in trained_on}
        return self.networks.hashes | kept

    def labels(self) -> np.ndarray:
        """(N,) int64 labels of the set, -1 without classes."""
        labels = self.plan.labels(torch.arange(self.plan.num_images))
        return np.full(self.plan.num_images, -1) if labels is None else labels.numpy()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the generator's classes; () when unknown."""
        names = lineage(self.generator).get("class_names", [])
        return tuple(names) if len(names) == self.generator.config.num_classes else ()

    @property
    def terms(self) -> str:
        """Those of the images that the generator learnt from; all released ones learnt from ImageNet."""
        trained_on = lineage(self.generator)
        is_released = not trained_on and released(self.generator.config) is not None
        return IMAGENET if is_released else trained_on.get("terms", "")

    def header(self) -> CacheHeader:
        """What ids.h5 says about itself."""
        config, hashes = self.tokenizer.config, self.networks.hashes
        trained_on = lineage(self.generator)
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
            made_with={"versions": versions(), **self._machine()},
            num_rejected=0,
            terms=self.terms,
        )

    def manifest(self) -> dict[str, Any]:
        """What the manifest tells beyond the settings."""
        sampling = self.settings.sampling
        networks = {
            name: {"path": str(given.path.absolute()), "config": given.config.model_dump(mode="json")}
            for name, given in (("generator", self.generator), ("tokenizer", self.tokenizer))
        }
        return {
            "guidance": guidance_record(sampling),
            "seed": sampling.seed,
            "labels": _LABEL_RULE if self.settings.classes is not None else "none",
            **networks,
            "inputs": self.inputs(),
            **({"terms": self.terms} if self.terms else {}),
            "made_with": {"versions": versions(), **self._machine(), "batch_size": self.batch_size},
        }

    def _machine(self) -> dict[str, Any]:
        on_gpu = torch.device(self.device).type == "cuda"
        name = torch.cuda.get_device_name(self.device) if on_gpu else "cpu"
        return {
            "device": name,
            "precision": self.precision,
            "tile_size": self.plan.tile_size,
        }


def guidance_record(sampling: SamplingConfig) -> dict[str, Any]:
    """Guidance as a manifest keeps it: the formula in words, and the scale in both forms."""
    return {
        "formula": S_FORM,
        "s": sampling.guidance_scale,
        "w": sampling.guidance_scale + 1,
        "w_formula": W_FORM,
        "schedule": sampling.guidance_schedule,
        "power": sampling.guidance_power if sampling.guidance_schedule == "power-cosine" else None,
    }
