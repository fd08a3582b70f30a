"""Losses, schedule, EMA, re-seeding: the official numbers, and what follows from the rules."""

import math

import numpy as np
import pytest
import torch
from golden import golden
from torch import nn

from titokctl.config.models import TokenizerConfig, TransformerConfig, VqganConfig
from titokctl.config.training import OptimizerConfig, ScheduleConfig
from titokctl.models.maskgit.masking import masked_accuracy, masked_token_loss, masked_token_weights
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.training.codebook import kmeans, reseed
from titokctl.training.learner import Ema, ema_decay, learning_rate_scale
from titokctl.training.muon import Muon, orthogonal
from titokctl.training.optimizer import build_optimizers, is_decayed

SMALL = TransformerConfig(patch_size=8, width=8, num_layers=1, num_heads=2)


def test_masked_token_loss_and_accuracy_are_the_official_ones():
    numbers = np.load(golden("losses.npz"))
    logits, ids, masked = (torch.from_numpy(numbers[f"mlm_{k}"]) for k in ("logits", "targets", "mask"))
    weights = masked_token_weights(masked, 0.1)
    loss = masked_token_loss(logits, ids, weights, 0.1) / weights.sum()
    assert loss.item() == pytest.approx(float(numbers["mlm_loss"]), rel=1e-6)
    assert masked_accuracy(logits, ids, masked).item() == pytest.approx(float(numbers["mlm_accuracy"]), rel=1e-6)


def test_masked_token_loss_equals_a_plain_numpy_version():
    rng = np.random.default_rng(0)
    logits, ids = rng.normal(size=(3, 5, 7)), rng.integers(0, 7, (3, 5))
    masked = rng.random((3, 5)) < 0.5
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    smooth = 0.2
    each = -(1 - smooth) * np.take_along_axis(log_p, ids[..., None], -1)[..., 0] - smooth * log_p.mean(-1)
    expected = (each * np.where(masked, 1, 0.3)).sum()
    weights = masked_token_weights(torch.from_numpy(masked), 0.3)
    found = masked_token_loss(torch.from_numpy(logits).float(), torch.from_numpy(ids), weights, smooth)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_learning_rate_is_the_official_sequence():
    numbers = np.load(golden("losses.npz"))["lr_cosine_warmup10_total100"]
    schedule = ScheduleConfig(kind="cosine", warmup_steps=10, end_fraction=0.1)
    ours = [1e-4 * learning_rate_scale(step, schedule, 100) for step in range(101)]
    np.testing.assert_allclose(ours, numbers[:101], rtol=1e-12)


def test_learning_rate_starts_at_zero_and_stays_at_its_end():
    schedule = ScheduleConfig(warmup_steps=4, end_fraction=1e-3)
    assert [learning_rate_scale(s, schedule, 10) for s in (0, 1, 4)] == [0.0, 0.25, 1.0]
    assert learning_rate_scale(10, schedule, 10) == learning_rate_scale(500, schedule, 10) == pytest.approx(1e-3)


def test_a_stable_rate_falls_linearly_at_the_end():
    schedule = ScheduleConfig(kind="warmup-stable-decay", warmup_steps=4, end_fraction=0.2, decay_steps=4)
    assert [learning_rate_scale(s, schedule, 10) for s in (0, 2, 4, 6)] == [0.0, 0.5, 1.0, 1.0]
    assert [learning_rate_scale(s, schedule, 10) for s in (7, 8, 9, 10, 50)] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2])
    assert all(learning_rate_scale(s, schedule, 10) == learning_rate_scale(s, schedule, 99) for s in range(7))
    with pytest.raises(ValueError, match="decay_steps is 4, and a cosine schedule needs 0"):
        ScheduleConfig(decay_steps=4)


def test_ema_is_the_official_sequence():
    module = torch.nn.Linear(1, 1, bias=False)
    average = Ema(module, 0.999)
    values = []
    for value in range(1, 13):
        torch.nn.init.constant_(module.weight, float(value))
        average.update(module)
        values.append(average.shadow["weight"].item())
    np.testing.assert_allclose(values, np.load(golden("losses.npz"))["ema_of_1_to_12"], rtol=1e-6)


def test_ema_decay_warms_up():
    assert [ema_decay(t, 0.999) for t in (0, 1, 100_000)] == [0.0, 2 / 11, 0.999]


@pytest.mark.parametrize("name", ["plain", "l2"])
def test_reseeding_is_the_official_one(name):
    numbers = np.load(golden("losses.npz"))
    z = torch.from_numpy(numbers[f"vq_{name}_z"])[:, :, 0].permute(0, 2, 1).reshape(-1, 8)
    codebook = torch.from_numpy(numbers[f"vq_{name}_codebook"]).clone()
    usage = torch.zeros(len(codebook))
    reseed(codebook, usage, z, torch.from_numpy(numbers[f"vq_{name}_ids"]).flatten(), 0.99, name == "l2")
    torch.testing.assert_close(codebook, torch.from_numpy(numbers[f"vq_{name}_codebook_after"]))
    torch.testing.assert_close(usage, torch.from_numpy(numbers[f"vq_{name}_usage_after"]))


def test_reseeding_leaves_well_used_codes_alone():
    codebook = torch.tensor([[0.0, 0.0], [9.0, 9.0]])
    before = codebook.clone()
    latents = torch.tensor([[0.1, 0.0], [0.0, 0.2]])
    usage = torch.tensor([1.0, 0.0])
    reseed(codebook, usage, latents, torch.tensor([0, 0]), 0.99, normalize=False)
    torch.testing.assert_close(codebook[0], before[0])
    assert (codebook[1] - before[1]).norm() > 10, "the dead code moved to the latents"


def test_kmeans_finds_separate_clusters():
    draws = torch.Generator().manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (middles[:, None] + 0.1 * torch.randn(3, 50, 2, generator=draws)).flatten(0, 1)
    centres = kmeans(points, 8, 10, draws)
    distance = torch.cdist(middles, centres).min(dim=1).values
    assert distance.max() < 0.2
    assert kmeans(points[:2], 5, 3, draws).shape == (5, 2), "fewer points than codes is allowed"


def test_weight_decay_spares_what_the_published_runs_spared():
    module = torch.nn.ModuleDict({"patch_embed": torch.nn.Linear(4, 4), "mlp": torch.nn.Linear(4, 4)})
    module["norm"] = torch.nn.LayerNorm(4)
    decayed = {n for n, p in module.named_parameters() if is_decayed(n, p)}
    assert decayed == {"mlp.weight"}
    groups = build_optimizers(module, OptimizerConfig(learning_rate=1e-3, weight_decay=0.5))[0].param_groups
    assert sorted((g["weight_decay"], len(g["params"])) for g in groups) == [(0.0, 5), (0.5, 1)]


def test_uniform_logits_cost_log_v():
    weights = torch.ones(2, 3)
    loss = masked_token_loss(torch.zeros(2, 3, 16), torch.zeros(2, 3, dtype=torch.int64), weights, 0.0)
    assert loss.item() / 6 == pytest.approx(math.log(16), rel=1e-6)


def test_muons_directions_are_nearly_orthogonal():
    matrices = torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonal(matrices).float())
    assert singular.min() > 0.6
    assert singular.max() < 1.3


def test_muon_takes_the_block_matrices_and_adamw_the_rest():
    config = TokenizerConfig(image_size=16, num_latent_tokens=4, encoder=SMALL, decoder=SMALL, codebook_size=8)
    tokenizer = TiTok(config)
    rates = OptimizerConfig(learning_rate=1e-3, muon_learning_rate=2e-3)
    adamw, muon = build_optimizers(tokenizer, rates)
    shapes = [tuple(p.shape) for group in muon.param_groups for p in group["params"]]
    assert sorted(shapes) == sorted([(24, 8), (8, 8), (32, 8), (8, 32)] * 2)
    assert sum(len(g["params"]) for g in adamw.param_groups) + len(shapes) == len(list(tokenizer.parameters()))


def test_muon_takes_the_kernels_of_a_vqgans_blocks():
    vqgan = MaskGitVqgan(
        VqganConfig(channels=8, channel_multipliers=[1, 2], num_res_blocks=1, codebook_size=8, token_size=4)
    )
    _, muon = build_optimizers(vqgan, OptimizerConfig(learning_rate=1e-3, muon_learning_rate=2e-3))
    held = {id(p) for group in muon.param_groups for p in group["params"]}
    left = {name for name, p in vqgan.named_parameters() if p.ndim > 1 and id(p) not in held}
    ends = {f"{side}.conv_{end}.weight" for side in ("encoder", "decoder") for end in ("in", "out")}
    assert left == {"codebook", *ends}


def test_muon_moves_a_kernel_as_the_matrix_of_its_output_channels():
    draws = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 12, 4, 3, 3, generator=draws)
    kernel, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1).clone())
    kernel.grad, matrix.grad = gradient, gradient.flatten(1)
    for p in (kernel, matrix):
        Muon([p], lr=0.1).step()
    assert torch.equal(kernel.flatten(1), matrix)
    assert not torch.equal(kernel, start)
