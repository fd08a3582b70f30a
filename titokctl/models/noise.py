"""The randomness of sampling: one number for each (seed, image, step, position, draw), by arithmetic.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a counter and a key into
four 32-bit words. The counter is (image index low, image index high, step, position), the key the seed, and the word
says which draw it is for. So an image's noise does not depend on its batch, on the device, or on earlier samples.

Letters: B batch, K latent tokens, S steps, V codebook size, n positions that are drawn at once.
"""

import math
from typing import Protocol

import torch

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_TINY = 1e-20


class Noise(Protocol):
    """The source of randomness of sampling; positions are (B, n) int64 indices into the K tokens.

    `image_indices` (B,) int64, on the device of the generator, are the numbers of the images in their set.
    """

    image_indices: torch.Tensor

    def prepare(self, num_steps: int, num_tokens: int) -> None:
        """Announce the steps and positions that will be asked for; called once, before the first step."""

    def choose(self, scores: torch.Tensor, temperature: float, step: int, positions: torch.Tensor) -> torch.Tensor:
        """Draw ids (B, n) from softmax(scores / temperature), scores (B, n, V) float32; the best at temperature 0."""

    def gumbel(self, step: int, positions: torch.Tensor) -> torch.Tensor:
        """Return Gumbel noise (B, n) float32."""

    def normal(self, num_tokens: int, num_channels: int) -> torch.Tensor:
        """Return normal noise (B, K, C) float32; it needs no `prepare`."""


class KeyedNoise:
    """Noise keyed by seed and image index: two uniform numbers for each step and position, made in `prepare`.

    Args:
        seed: any integer; its low 64 bits count.
        image_indices: as in `Noise`.
    """

    def __init__(self, seed: int, image_indices: torch.Tensor) -> None:
        self.image_indices, self._seed = image_indices, seed

    def prepare(self, num_steps: int, num_tokens: int) -> None:
        """Compute all numbers at once, so that no step launches kernels for them."""
        self._uniforms = keyed_uniforms(self._seed, self.image_indices, num_steps, num_tokens)

    def choose(self, scores: torch.Tensor, temperature: float, step: int, positions: torch.Tensor) -> torch.Tensor:
        """Invert the cumulative sum, which takes one uniform number per position instead of V."""
        if temperature == 0:
            return scores.argmax(dim=-1)
        shifted = scores - scores.amax(dim=-1, keepdim=True)  # first, so that a tiny temperature gives -inf, not nan
        sums = (shifted / temperature).softmax(dim=-1).cumsum(dim=-1)  # (B, n, V)
        wanted = self._at(0, step, positions)[..., None] * sums[..., -1:]
        # The first code whose sum reaches a number above 0: never one of probability 0.
        return torch.searchsorted(sums, wanted).squeeze(-1).clamp(max=scores.shape[-1] - 1)

    def gumbel(self, step: int, positions: torch.Tensor) -> torch.Tensor:
        """Return the Gumbel numbers of the second uniform number."""
        return gumbel_of(self._at(1, step, positions))

    def normal(self, num_tokens: int, num_channels: int) -> torch.Tensor:
        """Return the normal numbers of two uniform ones each, where the channel takes the place of the step."""
        return normal_of(keyed_uniforms(self._seed, self.image_indices, num_channels, num_tokens)).permute(1, 2, 0)

    def _at(self, draw: int, step: int, positions: torch.Tensor) -> torch.Tensor:
        return self._uniforms[draw, step].gather(1, positions)


def keyed_uniforms(seed: int, image_indices: torch.Tensor, num_steps: int, num_tokens: int) -> torch.Tensor:
    """Return (2, S, B, K) float32 strictly between 0 and 1; [0] chooses ids, [1] makes Gumbel noise."""
    device = image_indices.device
    index = image_indices.long().view(1, -1, 1)
    steps = torch.arange(num_steps, device=device).view(-1, 1, 1)
    positions = torch.arange(num_tokens, device=device).view(1, 1, -1)
    counter = torch.broadcast_tensors(index & _WORD, (index >> 32) & _WORD, steps, positions)
    words = philox(counter, (seed & _WORD, (seed >> 32) & _WORD))
    # 23 bits and a half: exact in float32, and never 0 or 1.
    return ((torch.stack(words[:2]) >> 9).float() + 0.5) * 2.0**-23


def philox(counter: tuple[torch.Tensor, ...], key: tuple[int, int]) -> tuple[torch.Tensor, ...]:
    """Return four random words of four counter words and two key words, by Philox 4x32-10.

    Args:
        counter: four int64 tensors of one shape, values in [0, 2^32).
        key: two numbers in [0, 2^32).

    Returns: four int64 tensors with values in [0, 2^32).
    """
    a, b, c, d = counter
    for round_ in range(_ROUNDS):
        key_a, key_b = ((key[i] + round_ * _KEY_STEPS[i]) & _WORD for i in (0, 1))
        high_a, low_a = _product(a, _MULTIPLIERS[0])
        high_c, low_c = _product(c, _MULTIPLIERS[1])
        a, b, c, d = high_c ^ b ^ key_a, low_c, high_a ^ d ^ key_b, low_a
    return a, b, c, d


def gumbel_of(uniforms: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel numbers of uniform ones, any shape; both logarithms are kept away from 0."""
    return -(-uniforms.clamp(min=_TINY).log()).clamp(min=_TINY).log()


def normal_of(uniforms: torch.Tensor) -> torch.Tensor:
    """Return standard normal numbers (...) of pairs of uniform ones (2, ...), by Box and Muller's transform."""
    return (-2 * uniforms[0].log()).sqrt() * (2 * math.pi * uniforms[1]).cos()


def _product(words: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of words x factor; in halves, since int64 would overflow."""
    low = words * (factor & 0xFFFF)  # below 2^48
    high = words * (factor >> 16) + (low >> 16)  # below 2^49
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)
