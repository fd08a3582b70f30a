"""What tests of training share: a small cache, a small recipe, and train-gen as a function."""

from pathlib import Path

import pytest
import small_generator
from caches import write_cache
from remarks import Remarks

from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.jobs.train.generator import TrainGenerator


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "tokens.h5", 200)


SMALL = small_generator.recipe(codes=16, steps=20, batch=16, warmup=5)


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture
def train(cache, recipe, runs):
    """train-gen in this process: `train("field=value", name=..., cache=...)` returns its result and what was said."""

    def call(*overrides, cache=cache, recipe=recipe, **options):
        talk = Remarks()
        request = TrainGenerator(Path(cache), recipe and str(recipe), overrides, **options)
        with StopRequest() as stop:
            result = request.run(Context(runs, progress=talk, stop=stop))
        return result, talk

    return call


AUTOREGRESSIVE = """
kind: generator
model: {kind: autoregressive, num_latent_tokens: 8, codebook_size: 16, num_classes: 3, width: 32, num_layers: 2,
        num_heads: 2, mlp_width: 64}
views: [plain, flip]
loss: {random_until: 0.4, annealed_until: 0.8}
optimizer: {learning_rate: 1e-3, betas: [0.9, 0.96], weight_decay: 0.03}
schedule: {warmup_steps: 5}
training: {steps: 20, global_batch_size: 16, ema_decay: 0.9, log_every: 5, evaluate_every: 10, checkpoint_every: 5}
"""


@pytest.fixture(scope="session")
def autoregressive(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "autoregressive.yaml"
    path.write_text(AUTOREGRESSIVE)
    return path
