"""Generators and parallel decoding against the official implementation's numbers, with weights given by formula."""

import re
import zlib

import numpy as np
import pytest
import torch
from golden import fill, golden

from titokctl.config.models import GeneratorConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.noise import gumbel_of
from titokctl.sampling.decoding import sample_ids
from titokctl.weights.official.layout import from_official, official_shapes
from titokctl.weights.store import Weights, build

CODES = 256
RECORDED = ["ViT_K32_linear_s4.5_T9.5_S8", "ViT_K32_constant_s3.0_T4.5_S8",
            "UViT_K128_power-cosine_s6.9_T2.8_S64", "UViT_K128_linear_s3.0_T11.0_S8"]  # fmt: skip


def network(architecture: str, num_tokens: int = 32) -> MaskGit:
    config = GeneratorConfig(
        architecture=architecture.lower(), num_latent_tokens=num_tokens, codebook_size=CODES, num_classes=1000,
        width=64, num_layers=4, num_heads=4, mlp_width=128,
    )  # fmt: skip
    official = {
        name: torch.from_numpy(fill(name, shape)) for name, shape in official_shapes("generator", config).items()
    }
    tensors = from_official("generator", config, official, architecture)
    return build(Weights("generator", config, tensors), architecture, "cpu", None)


def our_scale(schedule: str, published: float) -> float:
    """The official code has two meanings of its scale: power-cosine's is the w-form."""
    return published - 1 if schedule == "power-cosine" else published


class RecordedNoise:
    """The numbers that the official code was given: full tables, as Gumbel noise."""

    def __init__(self, batch: int, num_tokens: int) -> None:
        self.batch, self.num_tokens, self.image_indices = batch, num_tokens, torch.arange(batch)

    def prepare(self, num_steps, num_tokens):
        pass

    def choose(self, scores, temperature, step, positions):
        noise = self._gumbel(2 * step, (self.batch, self.num_tokens, CODES))
        return (scores + temperature * noise.gather(1, positions[..., None].expand_as(scores))).argmax(-1)

    def gumbel(self, step, positions):
        return self._gumbel(2 * step + 1, (self.batch, self.num_tokens)).gather(1, positions)

    def _gumbel(self, call, shape):
        random = np.random.Generator(np.random.PCG64(zlib.crc32(f"noise.{call}".encode())))
        return gumbel_of(torch.from_numpy(random.random(shape, dtype=np.float32)))


@pytest.mark.parametrize("architecture", ["ViT", "UViT"])
def test_logits(architecture):
    expected = np.load(golden(f"gen_{architecture}_tiny.npz"))
    generator = network(architecture)
    ids, labels = torch.from_numpy(expected["ids"]), torch.from_numpy(expected["labels"])
    with torch.inference_mode():
        for name, logits in (("logits_cond", generator(ids, labels)), ("logits_uncond", generator(ids))):
            error = np.linalg.norm(logits.numpy() - expected[name]) / np.linalg.norm(expected[name])
            assert error < 1e-4, name


@pytest.mark.parametrize("architecture", ["ViT", "UViT"])
@pytest.mark.parametrize("schedule", ["constant", "linear", "power-cosine"])
@pytest.mark.parametrize("annealing", [0, 1])
def test_decoding_without_noise(architecture, schedule, annealing):
    expected = np.load(golden(f"gen_{architecture}_tiny.npz"))
    config = SamplingConfig(
        num_steps=8, guidance_scale=our_scale(schedule, 4.5), guidance_schedule=schedule, guidance_power=3.0,
        choice_temperature=0.0, softmax_annealing=bool(annealing),
    )  # fmt: skip
    ids = sample_ids(network(architecture), torch.from_numpy(expected["labels"]), config)
    assert np.array_equal(ids, expected[f"sample_{schedule}_{annealing}"])


@pytest.mark.parametrize("name", RECORDED)
def test_decoding_with_recorded_noise(name):
    expected = np.load(golden("sample_noise.npz"))[name]
    found = re.fullmatch(r"(\w+?)_K(\d+)_([\w-]+)_s([\d.]+)_T([\d.]+)_S(\d+)", name)
    assert found is not None
    architecture, tokens, schedule, scale, temperature, steps = found.groups()
    config = SamplingConfig(
        num_steps=int(steps), guidance_scale=our_scale(schedule, float(scale)), guidance_schedule=schedule,
        choice_temperature=float(temperature), softmax_annealing=True,
    )  # fmt: skip
    labels = torch.tensor([3, 977])
    ids = sample_ids(network(architecture, int(tokens)), labels, config, noise=RecordedNoise(2, int(tokens)))
    assert np.array_equal(ids, expected)
