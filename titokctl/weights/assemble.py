"""Putting networks together that were trained apart."""

from typing import cast

from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan
from titokctl.weights.build import skeleton

_PIXEL_PARTS = ("codebook", "decoder.")


def with_pixel_decoder(tokenizer: TiTok, vqgan: MaskGitVqgan) -> TiTok:
    """A tokenizer that makes pixels, of one that predicts proxy codes and the VQGAN whose codes they are.

    The weights are shared with the two, not copied; it is in eval mode. Raises ValueError when they don't fit.
    """
    config = tokenizer.config
    if config.proxy != vqgan.config:
        raise ValueError(f"expected a proxy tokenizer with {config.proxy}, got {vqgan.config}")
    pixels = {f"proxy_pixels.{k}": v for k, v in vqgan.state_dict().items() if k.startswith(_PIXEL_PARTS)}
    whole = cast(TiTok, skeleton("tokenizer", config.model_copy(update={"pixel_decoder": True})))
    whole.load_state_dict(dict(tokenizer.state_dict()) | pixels, assign=True)
    return whole.eval()
