"""Attention as one kernel, which triton interprets where there is no GPU: values, gradients, dropped weights."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="triton comes with torch's CUDA builds")

# Values that are the identity show the attention weights themselves, and with them which ones were dropped.
SCRIPT = """
import torch
from titokctl.models.triton_attention import short_attention

device, share = DEVICE, 0.3
for length, heads, channels in SHAPES:
    draws = torch.Generator().manual_seed(length)
    packed = torch.randn(2, length, 3, heads, channels, generator=draws)
    packed[:, :, 2] = torch.eye(length, channels)[:, None]
    packed = packed.flatten(2).to(device).requires_grad_()
    back = torch.randn(2, length, heads * channels, generator=draws).to(device)
    q, k, v = packed.unflatten(-1, (3, heads, channels)).permute(2, 0, 3, 1, 4).unbind(0)
    weights = (q @ k.mT * channels**-0.5).softmax(-1)
    for dropout in (0.0, share):
        torch.manual_seed(1)
        found = short_attention(packed, heads, dropout)
        torch.manual_seed(1)
        assert torch.equal(found, short_attention(packed, heads, dropout))
        shown = found.detach().unflatten(-1, (heads, channels)).transpose(1, 2)[..., :length]
        kept = (shown != 0).float() / (1 - dropout)
        wanted = ((weights * kept) @ v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        found, wanted = (torch.autograd.grad(out, packed, back, retain_graph=True)[0] for out in (found, wanted))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        print(length, dropout, float((kept == 0).float().mean()))
"""


def test_values_and_gradients_are_those_of_the_formula_and_the_share_of_dropped_weights_is_as_asked() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    if device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    shapes = [(5, 1, 16), (33, 2, 48), (50, 1, 80), (64, 1, 128)]
    code = SCRIPT.replace("DEVICE", repr(device)).replace("SHAPES", repr(shapes))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        length, dropout, share = map(float, line.split())
        assert share == 0 if dropout == 0 else share == pytest.approx(dropout, abs=0.15 if length < 30 else 0.03)
    assert len(done.stdout.splitlines()) == 2 * len(shapes)
