"""A recipe of a generator that trains in seconds on caches of 8 tokens."""


def recipe(codes: int, steps: int, batch: int, every: int = 5, warmup: int = 1, layers: int = 2) -> str:
    """Return the text of a recipe: a MaskGIT of 3 classes over `codes` codes, with its two views.

    Args:
        steps, batch: of the training.
        every: steps between lines of the log, and between checkpoints; twice as many lie between evaluations.
        warmup: steps in which the rate rises.
        layers: blocks of the network.
    """
    return f"""
kind: generator
model: {{architecture: vit, num_latent_tokens: 8, codebook_size: {codes}, num_classes: 3, width: 32,
        num_layers: {layers}, num_heads: 2, mlp_width: 64}}
views: [plain, flip]
optimizer: {{learning_rate: 1e-3, betas: [0.9, 0.96], weight_decay: 0.03}}
schedule: {{warmup_steps: {warmup}}}
training: {{steps: {steps}, global_batch_size: {batch}, ema_decay: 0.9, log_every: {every},
           evaluate_every: {min(2 * every, steps)}, checkpoint_every: {every}}}
"""
