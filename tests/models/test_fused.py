"""Blocks for inference on a GPU: the same functions as the blocks that are trained, and their kernels."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from titokctl.config.models import AutoregressiveConfig, FlowConfig, GeneratorConfig
from titokctl.models.autoregressive.transformer import AutoregressiveBlock, KeyValues, Window
from titokctl.models.flow.transformer import FlowBlock
from titokctl.models.fused import CausalBlock, ConditionedBlock, PostNormBlocks, PreNormBlocks, triton_problem
from titokctl.models.maskgit.uvit import UvitBlock
from titokctl.models.maskgit.vit import VitLayer
from titokctl.models.transformer import Block

WIDTH, HEADS, LENGTH = 32, 2, 9


def blocks(kind: str) -> nn.ModuleList:
    config = GeneratorConfig(
        architecture="vit", num_latent_tokens=LENGTH - 1, codebook_size=16, num_classes=2, width=WIDTH, num_layers=3,
        num_heads=HEADS, mlp_width=2 * WIDTH,
    )  # fmt: skip
    makers = {
        "titok": lambda: Block(WIDTH, HEADS, 2), "uvit": lambda: UvitBlock(config), "vit": lambda: VitLayer(config)
    }  # fmt: skip
    torch.manual_seed(0)
    made = nn.ModuleList(makers[kind]() for _ in range(3)).eval().requires_grad_(False)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def one_after_the_other(made: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    for block in made:
        x = block(x)
    return x


@pytest.mark.parametrize("kind", ["titok", "uvit", "vit"])
def test_fused_blocks_compute_the_same(kind: str) -> None:
    made, x = blocks(kind), torch.randn(4, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    fused = (PostNormBlocks if kind == "vit" else PreNormBlocks)(made, torch.float32)
    torch.testing.assert_close(fused(x), one_after_the_other(made, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("last", [1, 4, LENGTH])
def test_the_last_positions_are_those_of_all(last: int) -> None:
    made, x = blocks("titok"), torch.randn(4, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    found = PreNormBlocks(made, torch.float32, last)(x)
    torch.testing.assert_close(found, one_after_the_other(made, x)[:, -last:], rtol=0, atol=1e-5)


def test_in_bfloat16_they_are_near_and_keep_the_type_of_the_residual_stream() -> None:
    made, x = blocks("titok"), torch.randn(4, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    found, exact = PreNormBlocks(made, torch.bfloat16)(x), one_after_the_other(made, x)
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() / exact.norm() < 0.02


def filled(block: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in block.eval().requires_grad_(False).parameters():
        nn.init.normal_(parameter, std=0.3)
    return block


def causal() -> AutoregressiveBlock:
    config = AutoregressiveConfig(
        kind="autoregressive", num_latent_tokens=LENGTH, codebook_size=16, num_classes=2, width=WIDTH, num_layers=1,
        num_heads=HEADS, mlp_width=2 * WIDTH,
    )  # fmt: skip
    return filled(AutoregressiveBlock(config))


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_causal_block_computes_the_same_for_whole_sequences_and_from_its_cache(adaptive: bool) -> None:
    block, draws = causal(), torch.Generator().manual_seed(1)
    fused, x = CausalBlock(block, torch.float32), torch.randn(4, LENGTH, WIDTH, generator=draws)
    changes = torch.randn(4, 6, 1, WIDTH, generator=draws) if adaptive else None
    whole = block(x, changes)
    torch.testing.assert_close(fused(x, changes), whole, rtol=0, atol=1e-4)
    visible = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    cache, first = KeyValues(4, LENGTH), 5
    found = [
        fused(x[:, part], changes, Window(slice(0, 4), part.start, visible[part]), cache)
        for part in (slice(0, first), *(slice(i, i + 1) for i in range(first, LENGTH)))
    ]
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=0, atol=1e-4)


def test_a_block_of_a_flow_computes_the_same() -> None:
    config = FlowConfig(
        kind="flow", num_latent_tokens=LENGTH, token_size=4, num_classes=2, width=WIDTH, num_layers=1, num_heads=HEADS,
        mlp_ratio=2,
    )  # fmt: skip
    block, draws = filled(FlowBlock(config)), torch.Generator().manual_seed(1)
    x, condition = torch.randn(4, LENGTH, WIDTH, generator=draws), torch.randn(4, WIDTH, generator=draws)
    found = ConditionedBlock(block, torch.float32)(x, condition)
    torch.testing.assert_close(found, block(x, condition), rtol=0, atol=1e-4)
    low = ConditionedBlock(block, torch.bfloat16)(x, condition)
    assert low.dtype == torch.float32
    assert 0 < (low - found).norm() / found.norm() < 0.03


@pytest.mark.skipif(find_spec("triton") is None, reason="triton comes with torch's CUDA builds")
def test_kernels_agree_with_torch() -> None:
    """Without a GPU triton interprets its kernels."""
    code = "from titokctl.models.triton_kernels import largest_error as e; print(e(DEVICE))"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-c", code.replace("DEVICE", repr(device))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_machine_without_a_gpu_has_no_kernels() -> None:
    assert triton_problem() == "no CUDA device"
