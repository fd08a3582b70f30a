"""Operations of a training step, counted, against the figures known for the published sizes."""

import pytest

from titokctl.config.models import TokenizerConfig, TransformerConfig, VqganConfig
from titokctl.config.tokenizer_recipe import DecoderRecipe, ProxyRecipe
from titokctl.training.cost import tokenizer_operations

LARGE = TransformerConfig(patch_size=16, width=1024, num_layers=24, num_heads=16)
REST = {
    "kind": "tokenizer",
    "optimizer": {"learning_rate": 1e-4},
    "schedule": {},
    "training": {"steps": 1, "global_batch_size": 1},
}
ENCODE, PIXELS, PROXY = 0.18e12, 0.371e12, 0.129e12


def l_32(pixel_decoder: bool) -> TokenizerConfig:
    return TokenizerConfig(image_size=256, num_latent_tokens=32, encoder=LARGE, decoder=LARGE, codebook_size=4096,
                           token_size=12, head="proxy", proxy=VqganConfig(), pixel_decoder=pixel_decoder)  # fmt: skip


def test_stage_1_of_l_32():
    decode = PIXELS - 186e9  # without the VQGAN's decoder
    counted = tokenizer_operations(ProxyRecipe(stage="proxy", model=l_32(False), **REST))
    assert counted == pytest.approx(3 * (ENCODE + decode) + PROXY, rel=0.03)


def test_stage_2_of_l_32_does_not_go_back_into_the_encoder():
    counted = tokenizer_operations(DecoderRecipe(stage="decoder", model=l_32(True), **REST))
    assert counted == pytest.approx(ENCODE + 3 * PIXELS, rel=0.03)


def test_with_kept_codes_stage_1_of_s_128_takes_half():
    small = TransformerConfig(patch_size=16, width=512, num_layers=8, num_heads=8)
    model = l_32(False).model_copy(update={"encoder": small, "decoder": small, "num_latent_tokens": 128})
    anew, kept = (
        tokenizer_operations(ProxyRecipe(stage="proxy", model=model, cached_crops=crops, **REST)) for crops in (None, 4)
    )
    assert kept / anew == pytest.approx(0.51, abs=0.01)
