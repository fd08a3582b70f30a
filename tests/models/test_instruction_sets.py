"""Rows do not depend on the batch or the number of threads, with every instruction set that oneDNN can use here.

oneDNN reads ONEDNN_MAX_CPU_ISA when it is loaded, so each instruction set is tried in a process of its own.
"""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

from titokctl.config.models import GeneratorConfig, TokenizerConfig, TransformerConfig, VqganConfig
from titokctl.models.inference import can_infer, kernels, prepared
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.precision import Precision, precision
from titokctl.models.titok.tokenizer import TiTok

BOTH = ("float32", "bf16")
# "ALL" is oneDNN's own word for no limit: AMX where the CPU has it, which has no float32.
SETS = (
    ("AVX2", BOTH),
    ("AVX512_CORE_BF16", BOTH),
    ("ALL", ("bf16",)),
    pytest.param("AVX512_CORE", BOTH, marks=pytest.mark.slow),
    pytest.param("ALL", BOTH, marks=pytest.mark.slow),
)
THREADS = (1, 3, 16)


def _large(module):
    """Give `module` weights with which its outputs depend on its inputs."""
    torch.manual_seed(0)
    return tiny.enlarged(module, 4)


def _tokenizer() -> TiTok:
    vit = TransformerConfig(patch_size=16, width=512, num_layers=1, num_heads=8)
    proxy = VqganConfig(
        channels=64, channel_multipliers=(1, 1, 1, 1, 2), num_res_blocks=1, codebook_size=30, token_size=8
    )
    return _large(
        TiTok(
            TokenizerConfig(image_size=128, num_latent_tokens=32, encoder=vit, decoder=vit, codebook_size=512,
                            token_size=4, head="proxy", proxy=proxy)
        )
    )  # fmt: skip


def _generator(architecture: str) -> MaskGit:
    config = GeneratorConfig(architecture=architecture, num_latent_tokens=32, codebook_size=512, num_classes=3,
                             width=512, num_layers=2, num_heads=8, mlp_width=2048)  # fmt: skip
    return _large(MaskGit(config))


def _differing(run: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> list[str]:
    """Name the numbers of rows and threads for which `run` gives the first rows other bits than all rows together."""
    expected, found = run(rows), []
    for threads, count in itertools.product(THREADS, (1, len(rows))):
        torch.set_num_threads(threads)
        got = run(rows[:count])
        if not torch.equal(got, expected[:count]):
            off = (got - expected[:count]).abs().flatten(1)
            where = f"{(off > 0).sum(1).tolist()} numbers of each, by up to {off.max():.1e}"
            found.append(f"{count} of {len(rows)} rows, {threads} threads: {where}")
    return found


def check(name: Precision) -> dict[str, object]:
    """Run in the child process: name the kernels of a precision, and what depends on rows or threads."""
    torch.manual_seed(0)
    ids, labels, images = torch.randint(512, (4, 32)), torch.arange(4) % 3, torch.rand(4, 3, 128, 128)
    tokenizer, differing = prepared(_tokenizer(), "cpu", name), {}
    with torch.inference_mode(), precision(name, "cpu"):
        differing["latents"] = _differing(tokenizer.latents, images)
        differing["pixels"] = _differing(tokenizer.detokenize, ids)
        for architecture in ("vit", "uvit"):
            model = prepared(_generator(architecture), "cpu", name)
            logits = _differing(lambda rows, model=model: model(rows, labels[: len(rows)]), ids)
            differing[f"logits of {architecture}"] = logits
    return {"kernels": kernels("cpu", name), "differing": {what: where for what, where in differing.items() if where}}


@pytest.mark.parametrize(("limit", "precisions"), SETS)
def test_rows_depend_neither_on_the_batch_nor_on_the_number_of_threads(limit: str, precisions: tuple[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "ONEDNN_MAX_CPU_ISA": limit}
    environment["GOMP_SPINCOUNT"] = "1000"  # as `titokctl` sets it; there are more threads than cores
    done = subprocess.run(
        [sys.executable, Path(__file__), *precisions], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name: each["differing"] for name, each in found.items()} == {name: {} for name in found}
    assert "float32" in found or "float32" not in precisions
    assert "bf16" not in found or limit != "AVX2"
    kinds = {each["kernels"] for each in found.values()}
    assert not any("amx" in kind for kind in kinds) or limit == "ALL"
    assert limit != "AVX2" or not any("avx512" in kind for kind in kinds)


if __name__ == "__main__":
    print(json.dumps({name: check(name) for name in sys.argv[1:] if can_infer("cpu", name)}))
