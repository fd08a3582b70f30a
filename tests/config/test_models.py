"""Allowed values in the configuration of a network, and values that must fit together."""

import pytest
from pydantic import ValidationError

from titokctl.config.models import GeneratorConfig, TokenizerConfig, TransformerConfig, VqganConfig

VIT = TransformerConfig(patch_size=16, width=64, num_layers=2, num_heads=4)
SMALL_VQGAN = VqganConfig(channels=8, channel_multipliers=(1, 2, 2, 2, 2), codebook_size=32, token_size=8)


def tokenizer(**changes):
    fields = {"image_size": 64, "num_latent_tokens": 8, "encoder": VIT, "decoder": VIT}
    return TokenizerConfig(**fields | changes)


def generator(**changes):
    fields = {"num_latent_tokens": 8, "codebook_size": 32, "num_classes": 3, "width": 64, "num_layers": 2}
    return GeneratorConfig(**fields | {"num_heads": 4, "mlp_width": 128} | changes)


def test_a_configuration_is_frozen():
    config = tokenizer()
    with pytest.raises(ValidationError, match="frozen"):
        config.image_size = 128


def test_a_gaussian_tokenizer_has_no_codebook():
    assert not tokenizer(quantizer="gaussian", codebook_size=None).is_discrete
    assert tokenizer().is_discrete
    with pytest.raises(ValidationError, match="no codebook"):
        tokenizer(quantizer="gaussian")
    with pytest.raises(ValidationError, match="codebook_size is missing"):
        tokenizer(codebook_size=None)


def test_a_proxy_head_and_its_section_go_together():
    assert tokenizer(head="proxy", proxy=SMALL_VQGAN).proxy.downsampling == 16
    with pytest.raises(ValidationError, match="head: proxy needs a section proxy"):
        tokenizer(head="proxy")
    with pytest.raises(ValidationError, match="head: proxy needs a section proxy"):
        tokenizer(proxy=SMALL_VQGAN)
    with pytest.raises(ValidationError, match="differs from the proxy tokenizer's 4"):
        tokenizer(head="proxy", proxy=SMALL_VQGAN.model_copy(update={"channel_multipliers": (1, 2, 2)}))


def test_the_vocabulary_has_codes_mask_classes_and_the_null_label():
    config = generator()
    assert config.mask_id == 32
    assert config.vocabulary_size == 32 + 1 + 3 + 1
    assert generator(num_classes=0).vocabulary_size == 34


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 66}, "not a multiple of num_heads"),
        ({"architecture": "uvit", "num_layers": 3}, "even num_layers"),
        ({"dropout": 1.5}, "less than or equal to 1"),
        ({"num_classes": -1}, "greater than or equal to 0"),
        ({"num_latent_tokens": "8"}, "valid integer"),
        ({"colour": 1}, "Extra inputs"),
    ],
)
def test_a_generator_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        generator(**changes)
