"""What tests of training share."""

import pytest
from caches import write_cache


@pytest.fixture
def cache(tmp_path):
    return write_cache(tmp_path / "tokens.h5", 200)


SMALL = """
kind: generator
model: {architecture: vit, num_latent_tokens: 8, codebook_size: 16, num_classes: 3, width: 32, num_layers: 2,
        num_heads: 2, mlp_width: 64}
views: [plain, flip]
optimizer: {learning_rate: 1e-3, betas: [0.9, 0.96], weight_decay: 0.03}
schedule: {warmup_steps: 5}
training: {steps: 40, global_batch_size: 16, ema_decay: 0.9, log_every: 10, evaluate_every: 20, checkpoint_every: 10}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path
