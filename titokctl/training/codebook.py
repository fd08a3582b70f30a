"""Keeping codes alive: re-seeding by running usage, and k-means for the first codebook.

Letters: M latents of a batch (B x K of them), V codebook size, C token size.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from titokctl.config.tokenizer_recipe import CodebookConfig, ProxyRecipe, SingleRecipe
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import gathered
from titokctl.models.titok.quantizers import nearest
from titokctl.training.randomness import generator

# The most distances of k-means. Above 8,192 codes it takes fewer latents a code, then fewer iterations.
_MOST_DISTANCES = 1 << 35
_KMEANS_ITERATIONS = 10
_LATENTS_PER_CODE = 16
_FEW_LATENTS = 2
_PIECE_DISTANCES = 1 << 28
# Called during long work with the parts that are done and their number; it may raise Stopped.
Watch = Callable[[int, int], None]
RECENT_STEPS = 100


class LiveCodebook:
    """The codes of something that is trained, found by k-means and re-seeded as the recipe says.

    Args:
        module: what has them.
        name: of the parameter (V, C) in it.
        config: from the recipe.
        normalize: whether codes are compared on the unit sphere.
        group: the processes that share each batch.
    """

    def __init__(self, module: nn.Module, name: str, config: CodebookConfig, normalize: bool, group: Group) -> None:
        self.name, self.config, self.normalize, self.group = name, config, normalize, group
        self.codes = module.get_parameter(name)
        self.is_trained = self.codes.requires_grad  # codes that the recipe freezes are neither seeded nor re-seeded
        reseeds = config.reseed_decay is not None
        self.usage = torch.zeros(len(self.codes), device=self.codes.device) if reseeds else None
        self.last_used = torch.full((len(self.codes),), -RECENT_STEPS, device=self.codes.device)

    def quantizes(self, step: int) -> bool:
        """Return True if `step` quantizes latents; False if it passes them on as they are."""
        return step >= self.config.continuous_steps

    @torch.no_grad()
    def reseed(self, latents: torch.Tensor, ids: torch.Tensor, is_finite: torch.Tensor) -> None:
        """Move codes that are hardly used, after a step in which this process's latents (M, C) took ids (M,)."""
        if self.usage is None or self.config.reseed_decay is None:
            return
        before = self.codes.detach().clone(), self.usage.clone()
        latents, ids = gathered(latents, self.group), gathered(ids, self.group)
        reseed(self.codes.data, self.usage, latents, ids, self.config.reseed_decay, self.normalize)
        # A skipped step leaves the codes alone, too: its latents may be anything.
        for tensor, old in zip((self.codes.data, self.usage), before, strict=True):
            tensor.copy_(torch.where(is_finite, tensor, old))

    def share_in_use(self, ids: torch.Tensor, step: int) -> dict[str, torch.Tensor]:
        """Which codes came up in this process's last steps, `step` with ids (M,) the newest, as a metric on the device.

        {} until there were enough steps to judge by.
        """
        self.last_used.index_fill_(0, ids, step)
        if step < self.config.continuous_steps + RECENT_STEPS:
            return {}
        return {"codebook_usage": (self.last_used > step - RECENT_STEPS).float().mean()}

    @torch.no_grad()
    def seed_by_kmeans(
        self, latents_of: Callable[[int], torch.Tensor], seed: int, step: int, watch: Watch = lambda done, total: None
    ) -> None:
        """The first codes: centres of the latents of some batches from `step` on; `latents_of(step)` gives (M, C).

        Nothing has changed when `watch` raises.
        """
        latents_per_code, iterations = kmeans_effort(len(self.codes))
        found = [gathered(latents_of(step), self.group)]
        batches = -(-len(self.codes) * latents_per_code // len(found[0]))
        for later in range(1, batches):
            watch(later, 2 * batches)
            found.append(gathered(latents_of(step + later), self.group))
        draws = generator(seed, "k-means", step)

        def second_half(done: int, total: int) -> None:
            watch(total + done, 2 * total)

        self.codes.copy_(kmeans(torch.cat(found), len(self.codes), iterations, draws, second_half))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors that a checkpoint needs besides the codes."""
        found = {"last_used": self.last_used}
        return found if self.usage is None else found | {"usage": self.usage}

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Continue from a checkpoint."""
        self.last_used.copy_(tensors["last_used"])
        if self.usage is not None:
            self.usage.copy_(tensors["usage"])


def live_codebook(tokenizer: nn.Module, recipe: SingleRecipe | ProxyRecipe, group: Group) -> LiveCodebook | None:
    """The codes of a tokenizer's quantizer; None where it has none to learn (one from elsewhere, or a Gaussian)."""
    if "quantizer.codebook" not in dict(tokenizer.named_parameters()):
        return None
    return LiveCodebook(tokenizer, "quantizer.codebook", recipe.codebook, recipe.model.normalize_codes, group)


@torch.no_grad()
def reseed(
    codebook: torch.Tensor, usage: torch.Tensor, latents: torch.Tensor, ids: torch.Tensor, decay: float, normalize: bool
) -> None:
    """Move codes that are hardly used towards the latents nearest to them, in place.

    Args:
        codebook: (V, C) float32.
        usage: (V,) float32 running share of latents on each code.
        latents: (M, C) un-normalised latents of the whole global batch.
        ids: (M,) int64 codes they took.
        decay: of the running usage, 0.99 as published.
        normalize: whether the tokenizer compares on the unit sphere.

    Source: online clustered codebook (CVQ-VAE, arXiv 2307.15139) as in bytedance/1d-tokenizer, commit 942a96f.
    """
    # Not bincount: on a GPU it waits for the largest id. Counts below 2^24 are exact in any order.
    counts = torch.zeros_like(usage).index_add_(0, ids, torch.ones_like(ids, dtype=usage.dtype))
    usage.mul_(decay).add_(counts / len(ids), alpha=1 - decay)
    pull = torch.exp(-usage * len(codebook) * 10 / (1 - decay) - 1e-3).unsqueeze(1)
    closest = latents[_nearest_latent(codebook, latents, normalize)]
    codebook.mul_(1 - pull).add_(pull * closest)


def kmeans_effort(num_codes: int) -> tuple[int, int]:
    """Return how many latents a code k-means works on, and its iterations, so that the time stays bounded."""
    pairs = num_codes**2
    latents_per_code = min(max(_MOST_DISTANCES // (pairs * _KMEANS_ITERATIONS), _FEW_LATENTS), _LATENTS_PER_CODE)
    return latents_per_code, min(_MOST_DISTANCES // (pairs * latents_per_code), _KMEANS_ITERATIONS)


@torch.no_grad()
def kmeans(
    latents: torch.Tensor,
    num_codes: int,
    iterations: int,
    generator: torch.Generator,
    watch: Watch = lambda done, total: None,
) -> torch.Tensor:
    """(num_codes, C) centres of `latents` (M, C) by Lloyd's algorithm from a random subset of them.

    A centre that loses all its points starts again at a random one. M may be smaller than `num_codes`. Without an
    iteration the centres are the subset. `watch` is called for each piece of an iteration.
    """

    def draw(n: int) -> torch.Tensor:
        return latents[torch.randint(len(latents), (n,), generator=generator)]

    enough = len(latents) >= num_codes
    first = torch.randperm(len(latents), generator=generator)[:num_codes]
    centres = latents[first].clone() if enough else draw(num_codes)
    pieces = latents.split(max(1, _PIECE_DISTANCES // num_codes))
    for iteration in range(iterations):
        found = []
        for number, piece in enumerate(pieces):
            watch(iteration * len(pieces) + number, iterations * len(pieces))
            found.append(nearest(piece, centres))
        ids = torch.cat(found)
        counts = torch.bincount(ids, minlength=num_codes)
        sums = torch.zeros_like(centres).index_add_(0, ids, latents)
        centres = torch.where(counts[:, None] > 0, sums / counts[:, None].clamp(min=1), draw(num_codes))
    return centres


def _nearest_latent(codebook: torch.Tensor, latents: torch.Tensor, normalize: bool) -> torch.Tensor:
    """Return the (V,) index of the latent nearest to each code."""
    if normalize:
        codebook, latents = F.normalize(codebook, dim=-1), F.normalize(latents, dim=-1)
    return nearest(codebook, latents)
