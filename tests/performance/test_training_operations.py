"""A training step of the generator reads one number from the device, on a GPU none; its operations fit any batch."""

import pytest
import torch
from caches import write_cache
from operations import operations, waits

from titokctl.config import recipe_files
from titokctl.data.tokens import TokenRows
from titokctl.distributed.group import single_group
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.train.generator import build_task
from titokctl.training.generator_task import GeneratorTask

LAYERS = 2
RECIPE = f"""
kind: generator
model: {{architecture: vit, num_latent_tokens: 8, codebook_size: 16, num_classes: 3, width: 32, num_layers: {LAYERS},
        num_heads: 2, mlp_width: 64}}
views: [plain]
optimizer: {{learning_rate: 1e-3, betas: [0.9, 0.96], weight_decay: 0.03}}
schedule: {{warmup_steps: 5}}
training: {{steps: 20, global_batch_size: 16, precision: bf16, ema_decay: 0.9, log_every: 5, evaluate_every: 10,
           checkpoint_every: 5}}
"""
A_STEP, A_LAYER = 300, 350


@pytest.fixture(scope="module")
def make_task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    cache = TokenCache.open(write_cache(folder / "tokens.h5", 100))
    (folder / "recipe.yaml").write_text(RECIPE)

    def call(*overrides: str) -> GeneratorTask:
        recipe = recipe_files.load(str(folder / "recipe.yaml"), "generator", overrides)
        return build_task(recipe, (TokenRows(cache, recipe.views, None, "cpu"), None), "cpu", single_group())

    return call


def counted(task: GeneratorTask):
    """Operations of the third step; the first two make the optimizer's state."""
    for number in range(2):
        task.prepare(number)
        task.step(number)
    return operations(lambda: task.prepare(2)), operations(lambda: task.step(2))


def test_a_step_is_the_same_operations_for_any_batch(make_task):
    small, large = counted(make_task()), counted(make_task("training.global_batch_size=64"))
    assert small == large
    preparing, step = small
    # A CPU reads there whether the gradients are finite. tests/device looks at the steps of a GPU.
    assert waits(step) == {"_local_scalar_dense": 1}
    assert preparing.total() <= 100
    assert LAYERS < step.total() <= A_STEP + A_LAYER * LAYERS


def test_a_step_is_compiled_once(make_task):
    """With a back-end that only records: the whole network is one graph, and no later batch makes another."""
    task = make_task()
    torch._dynamo.reset()
    task.model.compile(backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(3):
            task.prepare(number)
            task.step(number)
    torch._dynamo.reset()
