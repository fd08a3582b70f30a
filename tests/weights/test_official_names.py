"""Every released model, built without values, against the released layouts: both ways, names and shapes."""

import pytest
import torch
from golden import keys

from titokctl.config.models import GeneratorConfig, TokenizerConfig, TransformerConfig, VqganConfig
from titokctl.errors import UserError
from titokctl.models.initialization import initialize
from titokctl.weights.known import BY_NAME, released
from titokctl.weights.known import RELEASED as KNOWN
from titokctl.weights.official.config import read_config, write_config
from titokctl.weights.official.layout import from_official, official_shapes, to_official
from titokctl.weights.official.recognise import recognise
from titokctl.weights.store import Weights, build, shapes, skeleton

RELEASED = {
    "titok-s-128": "s128",
    "titok-b-64": "b64",
    "titok-l-32": "l32",
    "titok-bl-64-vq": "bl64_vq8k",
    "titok-bl-128-vq": "bl128_vq8k",
    "titok-sl-256-vq": "sl256_vq8k",
    "titok-ll-32-vae": "ll32_vae_c16",
    "titok-bl-64-vae": "bl64_vae_c16",
    "titok-bl-128-vae": "bl128_vae_c16",
    "maskgit-vit-l-32": "gen_ViT_full",
    "maskgit-uvit-s-128": "gen_UViT_fulluvit",
    "maskgit-vqgan": "maskgit_vqgan",
}
VIT = TransformerConfig(patch_size=16, width=32, num_layers=2, num_heads=2)
SMALL_PROXY = VqganConfig(channels=32)


def released_keys(name: str) -> dict[str, tuple[int, ...]]:
    """The released layout; the ViT generator of 64 tokens differs from that of 32 in its positions alone."""
    if name == "maskgit-vit-b-64":
        return {**keys("gen_ViT_full"), "model.embeddings.position_embeddings.weight": (65, 768)}
    return keys(RELEASED[name])


@pytest.mark.parametrize("name", KNOWN)
def test_names_and_shapes_both_ways(name):
    known = BY_NAME[name]
    released = released_keys(name)
    assert official_shapes(known.kind, known.config) == released
    official = {key: torch.empty(shape, device="meta") for key, shape in released.items()}
    ours = from_official(known.kind, known.config, official, name)
    assert shapes(ours) == shapes(skeleton(known.kind, known.config).state_dict())
    assert shapes(to_official(known.kind, known.config, ours)) == released


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_as_published(name):
    known = BY_NAME[name]
    count = sum(p.numel() for p in skeleton(known.kind, known.config).parameters())
    assert round(count / 1e6, 1) == known.parameters


@pytest.mark.parametrize("name", KNOWN)
def test_recognised_by_names_and_shapes(name):
    known = BY_NAME[name]
    assert recognise(released_keys(name), None, None, "file") == (known.kind, known.config)


@pytest.mark.parametrize("name", KNOWN)
def test_official_configuration_both_ways(name):
    known = BY_NAME[name]
    assert read_config(known.kind, write_config(known.kind, known.config), "config.json") == known.config


def test_a_released_generator_is_known_whatever_its_dropout():
    known = BY_NAME["maskgit-uvit-s-128"]
    assert released(known.config.model_copy(update={"dropout": 0.0})) is known
    assert released(known.config.model_copy(update={"num_classes": 10})) is None


def test_stage_one_is_recognised_without_its_pixel_decoder():
    known = BY_NAME["titok-l-32"]
    found = {n: s for n, s in released_keys("titok-l-32").items() if not n.startswith("pixel_")}
    kind, config = recognise(found, None, None, "file")
    assert (kind, config) == ("tokenizer", known.config.model_copy(update={"pixel_decoder": False}))
    assert official_shapes(kind, config) == found
    assert write_config(kind, config)["model"]["vq_model"]["finetune_decoder"] is False


def tokenizer(**settings) -> TokenizerConfig:
    return TokenizerConfig(
        image_size=32, num_latent_tokens=5, encoder=VIT, decoder=VIT, codebook_size=20, token_size=3, **settings
    )


def generator(architecture: str) -> GeneratorConfig:
    return GeneratorConfig(
        architecture=architecture, num_latent_tokens=5, codebook_size=20, num_classes=3, width=16, num_layers=4,
        num_heads=2, mlp_width=24,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("tokenizer", tokenizer()),
        ("tokenizer", tokenizer(head="proxy", proxy=SMALL_PROXY, shuffled_bottleneck=True)),
        ("generator", generator("vit")),
        ("generator", generator("uvit")),
        ("proxy", SMALL_PROXY),
    ],
    ids=["pixel", "proxy head", "vit", "uvit", "vqgan"],
)
def test_values_survive_the_round_trip(kind, config):
    module = skeleton(kind, config).to_empty(device="cpu")
    initialize(module)
    ours = dict(module.state_dict())
    there = to_official(kind, config, ours)
    back = from_official(kind, config, there, "there")
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    again = to_official(kind, config, back)
    assert all(torch.equal(again[name], there[name]) for name in there)
    build(Weights(kind, config, back), "there", "cpu", None)


def test_position_ids_of_old_versions_are_tolerated():
    config = generator("vit")
    there = {n: torch.zeros(s) for n, s in official_shapes("generator", config).items()}
    there["model.embeddings.position_ids"] = torch.arange(6)[None]
    assert "model.embeddings.position_ids" not in from_official("generator", config, there, "file")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (tokenizer(), "its encoder is 32 wide with 2 layers"),
        (tokenizer(shuffled_bottleneck=True), "officially one switch sets both"),
        (tokenizer(head="proxy", proxy=VqganConfig()), "officially one switch sets both"),
        (tokenizer(head="proxy", proxy=SMALL_PROXY, shuffled_bottleneck=True), "not the published MaskGIT-VQGAN"),
        (tokenizer(quantizer="fsq"), "'fsq' is unknown to the official code"),
    ],
)
def test_no_official_form(config, words):
    with pytest.raises(UserError, match=words):
        write_config("tokenizer", config)


def test_unrecognised_asks_for_the_name():
    with pytest.raises(UserError) as caught:
        recognise({"latent_tokens": (7, 512)}, None, None, "file")
    assert "--model" in caught.value.hint
    assert all(name in caught.value.hint for name in KNOWN)
    with pytest.raises(UserError, match="unknown model: 'titok-x'"):
        recognise({}, None, "titok-x", "file")


def test_a_configuration_with_a_wrong_field_is_named():
    official = write_config("tokenizer", BY_NAME["titok-l-32"].config)
    official["model"]["vq_model"]["vit_enc_model_size"] = "huge"
    with pytest.raises(UserError, match=r"model\.vq_model\.vit_enc_model_size"):
        recognise(released_keys("titok-l-32"), official, None, "folder")
