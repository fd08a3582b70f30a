"""TiTok: an image as K one-dimensional tokens.

Letters: B batch, S image size, N image patches (h x w), K latent tokens, D width, V codebook size, C token size.
Source: "An Image is Worth 32 Tokens for Reconstruction and Generation" (arXiv 2406.07550).
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from titokctl.config.models import TokenizerConfig
from titokctl.models.titok import quantizers
from titokctl.models.titok.vit import Decoder, Encoder
from titokctl.models.vqgan.vqgan import ProxyPixels


class TiTok(nn.Module):
    """Encoder, quantizer, decoder; sizes and options are the config's.

    `encode`, `quantizer` and `decode` are differentiable and check nothing (training uses them); `latents`,
    `tokenize` and `detokenize` are for everybody else. Weights are zero or arbitrary until they are loaded or
    `models.initialization.initialize` was called.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer: Any
        self.quantizer = quantizers.build(config)
        self.latent_tokens = nn.Parameter(torch.zeros(config.num_latent_tokens, config.encoder.width))
        self.encoder = Encoder(config, self.quantizer.channels)
        self.decoder = Decoder(config)
        self.proxy_pixels = ProxyPixels(config.proxy) if config.proxy and config.pixel_decoder else None

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) in [0, 1] to latents before quantizing, (B, K, C); (B, K, 2C) for a Gaussian bottleneck."""
        return self.encoder(images, self.latent_tokens)

    def decode_proxy_logits(self, vectors: torch.Tensor) -> torch.Tensor:
        """(B, K, C) to logits (B, N, proxy codes); only with a proxy head."""
        return self.decoder(vectors)

    def decode(self, vectors: torch.Tensor) -> torch.Tensor:
        """(B, K, C) to pixels (B, 3, S, S), not clamped. Raises ValueError without a pixel decoder."""
        if self.config.head == "pixel":
            return self.decoder(vectors)
        if self.proxy_pixels is None:
            raise ValueError(
                "this tokenizer was trained in stage 1 only: it has no pixel decoder, so expected use is "
                "decode_proxy_logits (codes of MaskGIT-VQGAN), not pixels"
            )
        return self.proxy_pixels(self.decode_proxy_logits(vectors))

    @torch.inference_mode()
    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Latents before quantizing.

        Args:
            images: (B, 3, S, S) float, values in [0, 1].

        Returns:
            (B, K, C) float32; (B, K, 2C), mean then log-variance, for a Gaussian bottleneck.

        Raises:
            ValueError: another shape, dtype or range.
        """
        self._check_images(images)
        return self.encode(self._like_weights(images)).float()

    @torch.inference_mode()
    def tokenize(self, images: torch.Tensor) -> torch.Tensor:
        """Ids (B, K) int64 of images (B, 3, S, S) in [0, 1]; the posterior mean (B, K, C) for a Gaussian bottleneck.

        Raises ValueError for another shape, dtype or range.
        """
        self._check_images(images)
        return self.tokenize_unchecked(images)

    @torch.inference_mode()
    def tokenize_unchecked(self, images: torch.Tensor) -> torch.Tensor:
        """As `tokenize`, without checking the images, which would wait for the device."""
        latents = self.encode(self._like_weights(images)).float()
        if self.config.is_discrete:
            return self.quantizer.nearest(latents)
        return latents[..., : self.config.token_size]

    @torch.inference_mode()
    def detokenize(self, ids_or_latents: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Images (B, 3, S, S) float32 in [0, 1] from what `tokenize` gives.

        Args:
            ids_or_latents: (B, K) of any integer type in [0, V); (B, K, C) float for a Gaussian bottleneck. A tensor on
                any device, or a NumPy array, such as rows of a `TokenCache`.

        Raises:
            ValueError: another shape, dtype or range; a stage-1 tokenizer, which has no pixels.
        """
        if isinstance(ids_or_latents, np.ndarray):
            ids_or_latents = _as_tensor(ids_or_latents)
        (self._check_ids if self.config.is_discrete else self._check_latents)(ids_or_latents)
        return self.detokenize_unchecked(ids_or_latents)

    @torch.inference_mode()
    def detokenize_unchecked(self, ids_or_latents: torch.Tensor) -> torch.Tensor:
        """As `detokenize`, without checking the ids, which would wait for the device."""
        vectors = ids_or_latents
        if self.config.is_discrete:
            vectors = self.quantizer.vectors_of(ids_or_latents.to(self.latent_tokens.device, torch.int64))
        return self.decode(self._like_weights(vectors)).float().clamp(0, 1)

    def _like_weights(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.latent_tokens.device, self.latent_tokens.dtype)

    def _check_images(self, images: torch.Tensor) -> None:
        size = self.config.image_size
        _check_shape(images, (3, size, size), "images")
        _check_float(images, "images")
        # min and max of nothing are errors of their own; `not (...)` catches NaN too.
        if images.numel() and not (images.min() >= 0 and images.max() <= 1):
            found = f"[{images.min().item():.4g}, {images.max().item():.4g}]"
            raise ValueError(f"images: expected values in [0, 1], got {found}")

    def _check_ids(self, ids: torch.Tensor) -> None:
        _check_shape(ids, (self.config.num_latent_tokens,), "ids")
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"ids: expected integers, got {ids.dtype}")
        last = (self.config.codebook_size or 0) - 1
        wide = ids.long()
        if ids.numel() and not (wide.min() >= 0 and wide.max() <= last):
            raise ValueError(f"ids: expected 0 to {last}, got {wide.min().item()} to {wide.max().item()}")

    def _check_latents(self, latents: torch.Tensor) -> None:
        _check_shape(latents, (self.config.num_latent_tokens, self.config.token_size), "latents")
        _check_float(latents, "latents")


def _as_tensor(rows: np.ndarray) -> torch.Tensor:
    """Return a tensor of the same numbers; torch refuses big-endian and read-only arrays."""
    kinds = {"i": np.int64, "u": np.int64, "f": np.float32}
    return torch.from_numpy(rows.astype(kinds.get(rows.dtype.kind, rows.dtype)))


def _check_shape(x: torch.Tensor, shape: tuple[int, ...], what: str) -> None:
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"{what}: expected a tensor, got {type(x).__name__}")
    if tuple(x.shape[1:]) != shape or x.ndim != len(shape) + 1:
        raise ValueError(f"{what}: expected shape (B, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def _check_float(x: torch.Tensor, what: str) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{what}: expected floating point numbers, got {x.dtype}")
