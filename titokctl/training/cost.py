"""The cost of a training run before it starts: counted on the meta device, or measured in 20 steps."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch.utils.flop_counter import FlopCounterMode

from titokctl.config.models import TokenizerConfig, VqganConfig
from titokctl.config.recipe import GeneratorRecipe
from titokctl.config.tokenizer_recipe import DecoderRecipe, ProxyRecipe, TokenizerRecipe, VqganRecipe
from titokctl.data.tokens import DEVICE_BUDGET_BYTES
from titokctl.distributed.group import Group
from titokctl.models import generator_kinds
from titokctl.models.generator import Generator
from titokctl.models.precision import low_dtype
from titokctl.models.titok.tokenizer import TiTok
from titokctl.models.vqgan.vqgan import MaskGitVqgan

_WARM_STEPS, _MEASURED_STEPS = 3, 20
# Per parameter in float32: weight, gradient, two moments, average.
_STATE_BYTES = 4 * (1 + 1 + 2 + 1)
_SENT_BYTES = 4  # per parameter: copies of gradients while processes exchange them


@dataclass(frozen=True)
class GeneratorCost:
    """The cost of training a generator.

    `memory_gb` estimates the memory of one process: weights, gradients (twice where several processes exchange them),
    optimizer, average, ids (unless there are too many to stay on the device), and what the backward pass keeps of one
    micro batch. The last two fields are None unless they were measured.
    """

    recipe: str
    parameters: int
    images: int
    epochs: float
    tokens: int
    operations: float
    processes: int
    images_per_process: int
    memory_gb: float
    images_per_s: float | None = None
    seconds: float | None = None


def generator_cost(recipe: GeneratorRecipe, name: str, rows: int, row_bytes: int, processes: int) -> GeneratorCost:
    """Return the cost of `recipe` for a cache of `rows` images with rows of `row_bytes` bytes."""
    with torch.device("meta"):
        model = generator_kinds.build(recipe.model)
    training, parameters = recipe.training, sum(p.numel() for p in model.parameters())
    images = training.steps * training.global_batch_size
    share = training.global_batch_size // processes
    ids = len(recipe.views) * rows * row_bytes
    kept = _kept_bytes(model, recipe, min(share, training.micro_batch_size or share))
    state = parameters * (_STATE_BYTES + (_SENT_BYTES if processes > 1 else 0))
    return GeneratorCost(
        recipe=Path(name).stem,
        parameters=parameters,
        images=images,
        epochs=images / rows,
        tokens=images * recipe.model.num_latent_tokens,
        operations=model.operations() * images,
        processes=processes,
        images_per_process=share,
        memory_gb=(state + (ids if ids <= DEVICE_BUDGET_BYTES else 0) + kept) / 1e9,
    )


class _Steps(Protocol):
    """A task of the training loop."""

    group: Group
    device: torch.device

    def prepare(self, step: int) -> None: ...

    def step(self, step: int) -> object: ...


def measured_rate(task: _Steps, global_batch_size: int) -> float:
    """Train 20 steps after a few to warm up, and return the images per second of the whole group."""
    for step in range(_WARM_STEPS + _MEASURED_STEPS):
        if step == _WARM_STEPS:
            _finish(task)
            began = time.perf_counter()
        task.prepare(step)
        task.step(step)
    _finish(task)
    return _MEASURED_STEPS * global_batch_size / (time.perf_counter() - began)


def _finish(task: _Steps) -> None:
    if task.device.type == "cuda":
        torch.cuda.synchronize(task.device)
    task.group.barrier()


def _kept_bytes(model: Generator, recipe: GeneratorRecipe, images: int) -> int:
    """Return the size of what autograd keeps of a forward pass over `images`, and of the logits and their gradient."""
    model = model.to(low_dtype(recipe.training.precision) or torch.float32).train()
    for part in model.modules():
        if hasattr(part, "recompute"):
            part.recompute = recipe.training.activation_checkpointing  # type: ignore[assignment]
    own = {id(p) for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            kept[id(base)] = base
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(*model.example_inputs(images))
    return sum(t.nbytes for t in kept.values()) + 2 * logits.nbytes


def tokenizer_operations(recipe: TokenizerRecipe) -> float:
    """Count the operations that a stage of training a tokenizer takes per image: those of products and convolutions.

    Included are the trained network, forward and backward, and the frozen parts in front of it; not included are
    perceptual networks, the discriminator, recomputed activations, and a VQGAN whose codes are stored.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images = torch.empty(1, 3, recipe.image_size, recipe.image_size)
        if isinstance(recipe, VqganRecipe):
            _train_vqgan(recipe.model, images)
            return float(counter.get_total_flops())
        if isinstance(recipe, ProxyRecipe) and recipe.model.proxy is not None and not recipe.cached_crops:
            with torch.no_grad():
                MaskGitVqgan(recipe.model.proxy).encode(images)
        _train_titok(recipe.model, images, has_encoder=not isinstance(recipe, DecoderRecipe))
    return float(counter.get_total_flops())


def _train_vqgan(config: VqganConfig, images: torch.Tensor) -> None:
    vqgan = MaskGitVqgan(config)
    vqgan.decoder(vqgan.encode(images)).sum().backward()


def _train_titok(config: TokenizerConfig, images: torch.Tensor, has_encoder: bool) -> None:
    tokenizer = TiTok(config)
    with torch.set_grad_enabled(has_encoder):
        latents = tokenizer.encode(images)[..., : config.token_size]  # of a Gaussian bottleneck the means
    made = tokenizer.decode(latents) if config.pixel_decoder or config.head == "pixel" else tokenizer.decoder(latents)
    made.sum().backward()
