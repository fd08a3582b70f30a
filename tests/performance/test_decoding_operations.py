"""Parallel decoding never waits for the device, and asks for the same operations whatever the batch."""

import pytest
import torch
from operations import operations, waits

from titokctl.config.models import GeneratorConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.models.inference import prepared
from titokctl.models.initialization import initialize
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.noise import KeyedNoise

LAYERS, TOKENS = 4, 16
# Views are counted, too. A step in which a block, the guidance or the noise grows by an operation a row or a position
# is far beyond.
A_STEP, A_LAYER = 60, 60


def generator(architecture: str) -> MaskGit:
    config = GeneratorConfig(architecture=architecture, num_latent_tokens=TOKENS, codebook_size=32, num_classes=5,
                             width=32, num_layers=LAYERS, num_heads=2, mlp_width=64)  # fmt: skip
    torch.manual_seed(0)
    module = MaskGit(config)
    initialize(module)
    return module.eval()


def decode(model: MaskGit, batch: int, steps: int) -> None:
    device = next(model.parameters()).device
    settings = SamplingConfig(num_steps=steps, guidance_scale=3.0, guidance_schedule="constant")
    indices = torch.arange(batch, device=device)
    model.sample(indices % 5, settings, KeyedNoise(settings.seed, indices))


@pytest.mark.parametrize("architecture", ["vit", "uvit"])
def test_decoding_is_the_same_few_operations_for_any_batch(architecture):
    model = prepared(generator(architecture), "cpu", "bf16")
    # At fewer than 128 rows a packed layer pads them.
    few, many = (operations(lambda batch=batch: decode(model, batch, 8)) for batch in (8, 50))
    assert few == many
    assert not waits(few)
    a_step = (few.total() - operations(lambda: decode(model, 8, 4)).total()) / 4
    assert LAYERS < a_step <= A_STEP + A_LAYER * (LAYERS + 1)


def test_decoding_looks_at_no_value():
    """On the meta device there are none: any look, or a copy to the host, is an error."""
    decode(generator("vit").to("meta"), 3, 8)


def test_a_look_would_be_seen():
    assert waits(operations(lambda: float(torch.ones(3).sum()))) == {"_local_scalar_dense": 1}
    assert waits(operations(lambda: torch.arange(4)[torch.arange(4) > 1]))
