"""The recipes of tokenizers: sizes, schedules and losses as published, and the tiny ones run."""

import pytest
import tiny
import torch

from titokctl.config import recipe_files
from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.formats.metrics_log import MetricsLog
from titokctl.jobs.train.tokenizer import TrainTokenizer
from titokctl.weights.known import BY_NAME
from titokctl.weights.store import skeleton

TOKENIZERS = sorted(n.split("/")[1] for n in recipe_files.shipped() if n.startswith("tokenizer/"))
TWO_STAGE = ("titok-s-128", "titok-b-64", "titok-l-32", "titok-l-64-512", "titok-b-128-512")
SINGLE = (
    "titok-bl-64-vq",
    "titok-bl-128-vq",
    "titok-sl-256-vq",
    "titok-ll-32-vae",
    "titok-bl-64-vae",
    "titok-bl-128-vae",
)
PUBLISHED = (*(f"{name}-{stage}" for name in TWO_STAGE for stage in ("proxy", "decoder")), *SINGLE)


def load(name, *overrides):
    return recipe_files.load(name, "tokenizer", overrides)


def test_nothing_is_missing():
    ours = {"tiny", "tiny-vqgan", "tiny-proxy", "tiny-decoder", "tiny-vae", "scenes-64"}
    assert {*PUBLISHED, "maskgit-vqgan-f16", *ours} == set(TOKENIZERS)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_each_is_built_without_values(name):
    recipe = load(name)
    with torch.device("meta"):
        if recipe.stage == "vqgan":
            images = torch.empty(1, 3, recipe.image_size, recipe.image_size)
            made = skeleton("proxy", recipe.model).encode(images)
            assert made.shape == (1, recipe.model.token_size, *[recipe.image_size // recipe.model.downsampling] * 2)
            return
        latents = torch.empty(1, recipe.model.num_latent_tokens, recipe.model.token_size)
        made = skeleton("tokenizer", recipe.model).decoder(latents)
    if recipe.stage == "single":
        assert made.shape == (1, 3, recipe.image_size, recipe.image_size)
    else:
        grid = 8 if "tiny" in name else 32 if "512" in name else 16
        assert made.shape == (1, grid**2, recipe.model.proxy.codebook_size)


@pytest.mark.parametrize("name", ["titok-s-128", "titok-b-64", "titok-l-32", *SINGLE])
def test_models_are_those_that_were_released(name):
    released = BY_NAME[name]
    recipe = load(name if name in SINGLE else f"{name}-decoder")
    assert recipe.model == released.config
    count = sum(p.numel() for p in skeleton("tokenizer", recipe.model).parameters())
    assert round(count / 1e6, 1) == released.parameters
    if name not in SINGLE:
        assert load(f"{name}-proxy").model == released.config.model_copy(update={"pixel_decoder": False})
        assert load(f"{name}-proxy").proxy == "maskgit-vqgan"


@pytest.mark.parametrize("name", PUBLISHED)
def test_schedules_and_losses_are_the_published_ones(name):
    recipe = load(name)
    stage, training, optimizer = recipe.stage, recipe.training, recipe.optimizer
    assert (training.steps, training.global_batch_size) == (500_000 if stage == "decoder" else 1_000_000, 256)
    assert (training.precision, training.ema_decay, optimizer.clip_norm) == ("bf16", 0.999, 1.0)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (1e-4, 1e-4)
    assert optimizer.betas == ((0.9, 0.99) if stage == "proxy" else (0.9, 0.999))
    warmup = 5_000 if stage == "decoder" else 10_000
    assert recipe.schedule == recipe.schedule.model_copy(update={"kind": "cosine", "warmup_steps": warmup})
    assert recipe.schedule.end_fraction == 0.1
    assert (recipe.augmentation.crop, recipe.augmentation.flip) == ("random", True)
    if stage == "proxy":
        assert recipe.loss.quantizer_weight == 1.0
        assert recipe.codebook.reseed_decay is None
        return
    perceptual = {"convnext-s": 0.1} if stage == "decoder" else {"lpips": 1.0, "convnext-s": 0.1}
    assert (recipe.loss.reconstruction, recipe.loss.reconstruction_weight) == ("l2", 1.0)
    assert recipe.loss.perceptual == perceptual
    gan = recipe.adversary
    assert (gan.start, gan.weight) == ((20_000, 0.01) if stage == "decoder" else (200_000, 0.1))
    assert (gan.lecam_weight, gan.lecam_decay, gan.channels) == (0.001, 0.999, 128)
    assert (gan.optimizer.learning_rate, gan.schedule.kind) == (1e-4, "cosine")
    if stage == "single":
        assert (recipe.loss.quantizer_weight, recipe.loss.kl_weight) == (1.0, 1e-6)
        assert not recipe.model.is_discrete or recipe.codebook.reseed_decay == 0.99


def test_the_tiny_ones_run_one_after_the_other(tmp_path):
    """With every loss from the second step on, so that none of them is left out."""
    pictures = tiny.class_folder(tmp_path / "pictures", per_class=2)
    for name in ("tiny-vqgan", "tiny-proxy", "tiny-decoder", "tiny-vae"):
        stage = load(name).stage
        changes = ["training.steps=2", "training.global_batch_size=2", "training.log_every=1"]
        changes += ["codebook.continuous_steps=0"] if stage in ("vqgan", "proxy") else []
        changes += ["adversary.start=1", "loss.perceptual_start=1"] if stage != "proxy" else []
        with StopRequest() as stop:
            request = TrainTokenizer([pictures], name, changes, [pictures])
            run = request.run(Context(tmp_path / "runs", stop=stop)).run
        last = MetricsLog(run / "metrics.jsonl").newest_values()
        assert last["val_psnr"] > 3
        assert (stage == "proxy") == ("discriminator_loss" not in last)


@pytest.mark.parametrize("width", [512, 768, 1024])
@pytest.mark.parametrize("tokens", [32, 64, 128])
def test_the_scaling_study_is_one_recipe_with_other_sizes(width, tokens):
    """As docs/imagenet.md sets them; S, B and L differ in these fields alone."""
    layers, heads = {512: (8, 8), 768: (12, 12), 1024: (24, 16)}[width]
    vit = f"{{patch_size: 16, width: {width}, num_layers: {layers}, num_heads: {heads}}}"
    sizes = [f"model.encoder={vit}", f"model.decoder={vit}", f"model.num_latent_tokens={tokens}"]
    recipe = load("titok-l-32-proxy", *sizes, "model.shuffled_bottleneck=false")
    with torch.device("meta"):
        latents = skeleton("tokenizer", recipe.model).encode(torch.empty(1, 3, 256, 256))
    assert latents.shape == (1, tokens, recipe.model.token_size)
    like = {512: "titok-s-128-proxy", 768: "titok-b-64-proxy", 1024: "titok-l-32-proxy"}[width]
    assert recipe.model.encoder == load(like).model.encoder
