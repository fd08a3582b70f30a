"""The recipes of the published generators: their sizes, their schedule, and the settings they are sampled with."""

import pytest
import torch

from titokctl.config import recipe_files
from titokctl.models.initialization import initialize
from titokctl.models.maskgit.generator import MaskGit
from titokctl.training.cost import generator_cost
from titokctl.training.optimizer import is_decayed

IMAGENET = 1_281_167
PARAMETERS_M = {
    "maskgit-vit-l-32": 177.2,
    "maskgit-vit-b-64": 177.2,
    "maskgit-uvit-s-128": 295.0,
    "maskgit-vit-l-64-512": 177.2,
    "maskgit-vit-b-128-512": 177.3,
}


@pytest.mark.parametrize("name", PARAMETERS_M)
def test_size_and_schedule_are_the_published_ones(name):
    recipe = recipe_files.load(name, "generator")
    with torch.device("meta"):
        model = MaskGit(recipe.model)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == PARAMETERS_M[name]
    assert (recipe.training.steps, recipe.training.global_batch_size) == (500_000, 2048)
    rate = recipe.optimizer.learning_rate
    assert (rate, rate * recipe.schedule.end_fraction, recipe.schedule.warmup_steps) == (2e-4, 1e-5, 10_000)
    assert recipe.training.global_batch_size % 8 == 0


@pytest.mark.parametrize("name", PARAMETERS_M)
def test_headers_tell_the_epochs_and_the_cost(name):
    header = recipe_files.find(name, "generator").read_text()
    recipe = recipe_files.load(name, "generator")
    plan = generator_cost(recipe, name, IMAGENET, 2, 1)
    assert f"{plan.epochs:.0f} epochs of ImageNet's {IMAGENET:,}" in header
    assert f"{plan.operations:.1e} operations" in header
    assert f"{plan.operations / (0.65 * 700e12) / 3600:.0f} h on one H100" in header


@pytest.mark.parametrize("architecture", ["vit", "uvit"])
def test_first_values_and_what_decays_are_as_published(architecture):
    recipe = recipe_files.load("maskgit-vit-l-32", "generator", (f"model.architecture={architecture}",
        "model.num_layers=2", "model.width=256", "model.mlp_width=512"))  # fmt: skip
    model = MaskGit(recipe.model)
    torch.manual_seed(0)
    initialize(model)
    for name, weight in model.named_parameters():
        is_matrix, is_table = weight.ndim > 1, "embedding" in name
        assert is_decayed(name, weight) == (is_matrix and not is_table), name
        if is_matrix:
            assert weight.std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            assert (weight == (0.0 if name.endswith("bias") else 1.0)).all(), name


@pytest.mark.parametrize("name", ["maskgit-vit-l-32", "maskgit-vit-b-64", "maskgit-uvit-s-128"])
def test_sampling_settings_are_those_of_the_released_generator(name):
    released = recipe_files.load("titok-" + name.split("-", 2)[2], "sampling")
    assert recipe_files.load(name, "generator").sampling == released


def test_a_plan_counts_epochs_operations_and_memory():
    recipe, row_bytes = recipe_files.load("maskgit-vit-l-32", "generator"), 32 * 2
    alone, eight = (generator_cost(recipe, "l-32", IMAGENET, row_bytes, processes) for processes in (1, 8))
    assert alone.epochs == pytest.approx(799.27, abs=0.01)
    assert alone.operations / alone.images == pytest.approx(35e9, rel=0.01), "the floor: 35 GFLOP an image"
    assert eight.images_per_process == 256
    assert 4 * 5 * 177.2e6 / 1e9 < eight.memory_gb < alone.memory_gb < 80
    many = generator_cost(recipe, "l-32", 10**9, row_bytes, 1)
    assert many.memory_gb < alone.memory_gb, "so many ids stay where they are"
    lean = recipe.model_copy(update={"training": recipe.training.model_copy(update={"activation_checkpointing": True})})
    assert generator_cost(lean, "l-32", IMAGENET, row_bytes, 1).memory_gb < alone.memory_gb


@pytest.mark.parametrize(("name", "parameters_m"), [("rar-b-l-32", 263.5), ("rar-b-s-128", 263.6)])
def test_the_autoregressive_recipes_follow_rar_b(name, parameters_m):
    """Epochs, rates and orders as published for another tokenizer; the header says that nothing is known."""
    recipe = recipe_files.load(name, "generator")
    header = recipe_files.find(name, "generator").read_text()
    plan = generator_cost(recipe, name, IMAGENET, 2, 8)
    assert round(plan.parameters / 1e6, 1) == parameters_m
    assert f"({parameters_m}M parameters)" in header
    assert f"{plan.operations:.2g} operations" in header
    assert "nothing is published on TiTok ids" in header
    assert round(plan.epochs) == 400
    spans = [span / recipe.training.steps for span in (recipe.loss.random_until, recipe.loss.annealed_until)]
    assert spans == [0.5, 0.75]
    rate = recipe.optimizer.learning_rate
    assert (rate, rate * recipe.schedule.end_fraction) == (4e-4, pytest.approx(1e-5))
    assert recipe.sampling.guidance_scale + 1 == 16
