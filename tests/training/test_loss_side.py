"""The networks that judge pictures in training: first values and arithmetic; and the ids of a fixed encoder."""

import copy
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from command_line import ROOT
from golden import fill, image
from stages import write_recipe
from torch import nn
from torch.nn import functional as F

from titokctl.config import recipe_files
from titokctl.config.models import VqganConfig
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.config.tokenizer_recipe import PixelLossConfig
from titokctl.context import Context
from titokctl.data.images import to_float
from titokctl.data.pipeline import Decoder
from titokctl.data.sources import open_source
from titokctl.distributed.group import single_group
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.tokenize.request import Tokenize
from titokctl.jobs.train.stage_start import Start
from titokctl.jobs.train.stages import Parts, build_stage
from titokctl.models.convnext import ConvNextSmall
from titokctl.models.efficientnet_lite import LITE0
from titokctl.models.precision import precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.training.decoder_stage import DecoderStage
from titokctl.training.image_stage import ImageStage, Micro
from titokctl.training.pixel_loss import PixelLoss
from titokctl.training.single_stage import SingleStage
from titokctl.weights.network_files import CONVNEXT_SMALL, LPIPS_LINEAR, VGG16

SIZE, STEP = 32, 6  # of stages.py's recipes: the edge of their pictures, and the adversary's first step
VGG = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256),
    17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512),
}  # fmt: skip
LPIPS_WIDTHS = (64, 128, 256, 512, 512)


class Pictures:
    """Plane waves as training images."""

    def batch(self, step: int) -> torch.Tensor:
        return torch.from_numpy(image(2, SIZE))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The weights files of the perceptual networks, with values by formula; by environment variable."""
    folder = tmp_path_factory.mktemp("networks")
    shapes = {f"features.{i}.weight": (after, before, 3, 3) for i, (before, after) in VGG.items()}
    shapes |= {f"features.{i}.bias": (after,) for i, (_, after) in VGG.items()}
    with torch.device("meta"):
        convnext = {name: tuple(tensor.shape) for name, tensor in ConvNextSmall().state_dict().items()}
    linear = {f"lin{i}.model.1.weight": (1, width, 1, 1) for i, width in enumerate(LPIPS_WIDTHS)}
    found = {}
    for file, named in ((VGG16, shapes), (LPIPS_LINEAR, linear), (CONVNEXT_SMALL, convnext)):
        tensors = {name: torch.from_numpy(fill(name, shape)) for name, shape in named.items()}
        if file is LPIPS_LINEAR:
            tensors = {name: tensor.abs() for name, tensor in tensors.items()}
        torch.save(tensors, folder / file.variable)
        found[file.variable] = folder / file.variable
    return found


def stage(folder: Path, *overrides: str, name: str = "vqgan") -> ImageStage:
    """The task of a stage in bf16, with an adversary of published width."""
    changes = ("training.precision=bf16", "adversary.channels=128", *overrides)
    recipe = recipe_files.load(str(write_recipe(folder, name)), "tokenizer", changes)
    tokenizer = TiTok(recipe.model) if name == "decoder" else None
    return build_stage(recipe, Start(None, tokenizer, {}), Parts(Pictures(), None, "cpu", single_group()))


@pytest.mark.parametrize("name", ["vqgan", "decoder", "single", "gaussian"])
def test_the_discriminator_starts_with_torchs_default_values(tmp_path, name):
    """As in the official training: uniform within 1/sqrt(fan-in), not the truncated normal values of the tokenizer."""
    layers = dict(stage(tmp_path, name=name).adversary.discriminator.named_modules())
    convolutions = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    assert len(convolutions) == 6
    for path, layer in convolutions.items():
        bound = layer.weight[0].numel() ** -0.5
        for values in (layer.weight, layer.bias):
            assert values.abs().max() <= bound, path
            deviations = 4 * bound / values.numel() ** 0.5
            assert abs(values.mean()) < deviations, path
            assert values.numel() == 1 or abs(values.std() - bound / 3**0.5) < deviations, path
    for path, layer in layers.items():
        if isinstance(layer, nn.GroupNorm):
            assert (layer.weight == 1).all(), path
            assert not layer.bias.any(), path


def gradient(task: ImageStage, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The gradient of the whole loss side on the reconstructions."""
    made = made.clone().requires_grad_()
    (task.pixel_loss(made, target, STEP)[0] + task.adversary.loss(made, STEP)).backward()
    return made.grad


def exact_gradient(task: ImageStage, name: str, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The same in float64, written out."""
    made, target = made.double().requires_grad_(), target.double()
    perceptual = DISTANCES[name](task.pixel_loss.networks[name].network.double(), made, target)
    judged = task.adversary.discriminator.double()(made).mean()
    (F.mse_loss(made, target) + 0.1 * perceptual - task.adversary.config.weight * judged).backward()
    return made.grad.float()


def lite0_distance(network: nn.Module, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    depths = np.cumsum([0, *(stage.repeats for stage in LITE0.stages)])
    pairs = list(zip(network.maps(made), network.maps(target), strict=True))
    ratios = [(pairs[i][0] - pairs[i][1]).square().mean() / pairs[i][1].square().mean() for i in depths]
    return torch.stack(ratios).mean()


def convnext_distance(network: nn.Module, made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    a, b = (network(F.interpolate(x, (224, 224), mode="bilinear", antialias=True)) for x in (made, target))
    return F.mse_loss(a, b)


DISTANCES = {
    "lite0": lite0_distance,
    "convnext-s": convnext_distance,
    "lpips": lambda network, made, target: network(made, target).mean(),
}


@pytest.mark.parametrize("name", ["lite0", "lpips", pytest.param("convnext-s", marks=pytest.mark.slow)])
def test_the_gradient_on_the_picture_is_that_of_float64(tmp_path, files, name, monkeypatch):
    """Although the tokenizer trains in bf16; a loss side in bf16 would be wrong by percents."""
    for variable, path in files.items():
        monkeypatch.setenv(variable, str(path))
    target = torch.from_numpy(image(1, SIZE))
    made = target + 0.1 * torch.from_numpy(np.random.default_rng(0).normal(size=target.shape)).float()
    tasks = [stage(tmp_path, f"loss.perceptual={{{name}: 0.1}}", f"loss.precision={p}") for p in ("tf32", "bf16")]
    default, low = (gradient(task, made, target) for task in tasks)
    exact = exact_gradient(tasks[0], name, made, target)
    assert (default - exact).norm() < 1e-4 * exact.norm()
    assert (low - exact).norm() > 1e-2 * exact.norm()


def fill_all(module: nn.Module) -> None:
    """Give every tensor of a network the values of the formula."""
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(torch.from_numpy(fill(name, tuple(tensor.shape))))


def pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two real pictures, and two made ones that are near them."""
    real = torch.from_numpy(image(2, SIZE))
    return real, real + 0.1 * torch.from_numpy(np.random.default_rng(0).normal(size=real.shape)).float()


def moments(task: ImageStage) -> torch.Tensor:
    """The first moments of the discriminator's optimizer, all in one."""
    named = task.adversary.tensors()
    return torch.cat([named[name].flatten() for name in sorted(named) if name.endswith("exp_avg")])


def test_the_discriminators_steps_are_those_of_float64(tmp_path):
    """Two steps with weights by formula: hinge loss, LeCam against the averages of the first, and clipping."""
    changes = ("loss.perceptual={}", "adversary.lecam_weight=2.0", "training.global_batch_size=2")
    tasks = [stage(tmp_path, *changes, f"loss.precision={p}") for p in ("tf32", "bf16")]
    for task in tasks:
        fill_all(task.adversary.discriminator)
        for step in (STEP, STEP + 1):  # the first has the rate 0, so both have the same weights
            metrics = task.adversary.update([pair()], step)
    config, exact = tasks[0].adversary.config, copy.deepcopy(tasks[0].adversary.discriminator).double()
    fill_all(exact)
    real, made = (exact(pictures.double()) for pictures in pair())
    means = torch.stack([real.mean(), made.mean()])
    averages = (1 - config.lecam_decay) * means.detach()
    hinge = 0.5 * ((1 - real).relu().mean() + (1 + made).relu().mean())
    pulled = (means[0] - averages[1]).relu() ** 2 + (averages[0] - means[1]).relu() ** 2
    first = means[0].relu() ** 2 + (-means[1]).relu() ** 2
    expected, decay = 0.0, config.optimizer.betas[0]
    order = sorted(name for name, _ in exact.named_parameters())
    for lecam in (first, pulled):
        named = dict(exact.named_parameters())
        found = torch.autograd.grad(hinge + 2.0 * lecam, [named[name] for name in order], retain_graph=True)
        gradients = torch.cat([gradient.flatten() for gradient in found])
        clipped = gradients * min(1.0, config.optimizer.clip_norm / float(gradients.norm()))
        expected = decay * expected + (1 - decay) * clipped
    assert float(metrics["discriminator_gradient_norm"]) > 0
    assert (moments(tasks[0]) - expected).norm() < 1e-4 * expected.norm()
    assert (moments(tasks[1]) - expected).norm() > 1e-2 * expected.norm()


def test_the_discriminators_gradient_on_the_picture_is_that_of_float64(tmp_path):
    """With weights by formula, and alone, so that no larger term covers an error."""
    _, made = pair()
    found = {}
    for name in ("tf32", "bf16"):
        task = stage(tmp_path, "loss.perceptual={}", f"loss.precision={name}")
        fill_all(task.adversary.discriminator)
        pictures = made.clone().requires_grad_()
        task.adversary.loss(pictures, STEP).backward()
        found[name] = pictures.grad
    pictures = made.double().requires_grad_()
    (-task.adversary.config.weight * task.adversary.discriminator.double()(pictures).mean()).backward()
    assert (found["tf32"] - pictures.grad).norm() < 1e-4 * pictures.grad.norm()
    assert (found["bf16"] - pictures.grad).norm() > 1e-2 * pictures.grad.norm()


def test_a_step_of_the_second_stage_is_that_of_float64(tmp_path, files, monkeypatch):
    """All weights by formula: from pictures through the fixed encoder to the gradients of everything trained."""
    for variable, path in files.items():
        monkeypatch.setenv(variable, str(path))
    changes = ("training.precision=float32", "loss.perceptual={lpips: 0.1}", "adversary.channels=128")
    recipe = recipe_files.load(str(write_recipe(tmp_path, "decoder")), "tokenizer", changes)
    torch.manual_seed(0)
    tokenizer = TiTok(recipe.model)
    fill_all(tokenizer)
    task = build_stage(recipe, Start(None, tokenizer, {}), Parts(Pictures(), None, "cpu", single_group()))
    fill_all(task.adversary.discriminator)
    images = pair()[0]
    task.make(Micro(images, slice(0, len(images)), STEP)).loss.backward()
    ours = {name: p.grad.clone() for name, p in task.tokenizer.named_parameters() if p.grad is not None}
    task.tokenizer.zero_grad()  # below, the same tokenizer in float64

    exact, target = tokenizer.double().eval(), images.double()
    vectors = exact.quantizer.vectors_of(exact.tokenize(target)).double()
    made = exact.decode(vectors)
    perceptual = task.pixel_loss.networks["lpips"].network.double()(made, target).mean()
    judged = task.adversary.discriminator.double()(made).mean()
    (F.mse_loss(made, target) + 0.1 * perceptual - task.adversary.config.weight * judged).backward()
    trained = {name: exact.get_parameter(name).grad for name in ours}
    assert any(name.startswith("decoder.") for name in ours)
    assert not any(name.startswith("encoder.") for name in ours)
    for name, gradient in trained.items():
        assert (ours[name] - gradient).norm() < 1e-3 * gradient.norm() + 1e-9, name


def test_shipped_recipes_judge_pictures_in_float32():
    names = [path.stem for path in (ROOT / "recipes/tokenizer").glob("*.yaml")]
    recipes = [recipe_files.load(name, "tokenizer", ()) for name in names]
    judging = [recipe for recipe in recipes if isinstance(recipe.loss, PixelLossConfig)]
    assert len(judging) >= 12
    assert {recipe.loss.precision for recipe in judging} == {"tf32"}


def fixed_stage(folder: Path, name: str, tokenizer: TiTok) -> ImageStage:
    """A task in bf16 whose encoder is fixed: stage decoder, or a single stage after `encoder_steps`."""
    changes = ["training.precision=bf16", "adversary=null"]
    if name == "decoder":
        recipe = recipe_files.load(str(write_recipe(folder, "decoder")), "tokenizer", changes)
        return DecoderStage(tokenizer, recipe, Pictures(), PixelLoss(recipe.loss, {}), None, single_group())
    changes += ["encoder_steps=1", *(["codebook.continuous_steps=0"] if name == "single" else [])]
    recipe = recipe_files.load(str(write_recipe(folder, name)), "tokenizer", changes)
    recipe = recipe.model_copy(update={"model": tokenizer.config})
    task = SingleStage(tokenizer, recipe, Pictures(), PixelLoss(recipe.loss, {}), None, single_group())
    task.begin(1)
    return task


@pytest.mark.parametrize("name", ["decoder", "single", "gaussian"])
def test_a_fixed_encoder_gives_the_decoder_what_tokenize_writes(tmp_path, name):
    """To the bit for ids, although training runs in bf16."""
    vqgan = VqganConfig(channels=8, channel_multipliers=(1, 1, 2, 2), num_res_blocks=1, codebook_size=32, token_size=8)
    changes = {
        "decoder": {"head": "proxy", "proxy": vqgan, "pixel_decoder": True},
        "single": {},
        "gaussian": {"quantizer": "gaussian", "codebook_size": None},
    }
    tokenizer = tiny.tokenizer(tmp_path / "t.safetensors", **changes[name])
    pictures = tiny.class_folder(tmp_path / "pictures")
    Tokenize([pictures], tmp_path / "t.h5", str(tmp_path / "t.safetensors")).run(Context(tmp_path / "runs"))
    rows, source = torch.from_numpy(np.array(TokenCache.open(tmp_path / "t.h5").rows)), open_source([pictures])
    with Decoder(source, [PreprocessingConfig(size=tiny.SIZE)], 1) as decoder:
        images = torch.cat([to_float(torch.from_numpy(decoder.unit(unit).pixels)) for unit in source.units])
    vectors = rows.float() if name == "gaussian" else tokenizer.quantizer.vectors_of(rows.long())
    found = fixed_stage(tmp_path, name, tokenizer).make(Micro(images, slice(0, len(images)), 1))
    with precision("bf16", "cpu"):
        made = tokenizer.decode(vectors).float()
    if name == "gaussian":  # its cache holds float16
        torch.testing.assert_close(found.images, made, rtol=0, atol=0.02)
    else:
        assert torch.equal(found.images, made)
    found.loss.backward()
    assert tokenizer.decoder.blocks[0].mlp.up.weight.grad is not None
    assert all(p.grad is None for p in tokenizer.encoder.parameters())
