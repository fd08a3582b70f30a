"""What a generator's training would take, before it is started: counted on the meta device, or measured in 20 steps."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from titokctl.config.recipe import GeneratorRecipe
from titokctl.data.tokens import DEVICE_BUDGET_BYTES
from titokctl.models import generator_kinds
from titokctl.models.generator import Generator
from titokctl.training.generator_task import GeneratorTask

_WARM_STEPS, _MEASURED_STEPS = 3, 20
# Per parameter in float32: weight, gradient, two moments, average.
_STATE_BYTES = 4 * (1 + 1 + 2 + 1)
_ACTIVATION_TYPE = {"bf16": torch.bfloat16}


@dataclass(frozen=True)
class GeneratorPlan:
    """A run in numbers.

    `memory_gb` is of one process and an estimate: weights, gradients, optimizer, average, ids (unless they are too
    many to stay on the device), and what the backward pass keeps of one micro batch. The last two are None unless they
    were measured.
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


def plan_run(recipe: GeneratorRecipe, name: str, rows: int, id_bytes: int, processes: int) -> GeneratorPlan:
    """The plan of `recipe` for a cache of `rows` images with ids of `id_bytes` bytes."""
    with torch.device("meta"):
        model = generator_kinds.build(recipe.model)
    training, parameters = recipe.training, sum(p.numel() for p in model.parameters())
    images = training.steps * training.global_batch_size
    share = training.global_batch_size // processes
    ids = len(recipe.views) * rows * recipe.model.num_latent_tokens * id_bytes
    kept = _kept_bytes(model, recipe, min(share, training.micro_batch_size or share))
    return GeneratorPlan(
        recipe=Path(name).stem,
        parameters=parameters,
        images=images,
        epochs=images / rows,
        tokens=images * recipe.model.num_latent_tokens,
        operations=operations_per_image(model) * images,
        processes=processes,
        images_per_process=share,
        memory_gb=(_STATE_BYTES * parameters + (ids if ids <= DEVICE_BUDGET_BYTES else 0) + kept) / 1e9,
    )


def measure(task: GeneratorTask) -> float:
    """Images a second of the whole group, over 20 steps after a few to warm up. The task has been trained then."""
    for step in range(_WARM_STEPS + _MEASURED_STEPS):
        if step == _WARM_STEPS:
            _finish(task)
            began = time.perf_counter()
        task.prepare(step)
        task.step(step)
    _finish(task)
    return _MEASURED_STEPS * task.recipe.training.global_batch_size / (time.perf_counter() - began)


def operations_per_image(model: Generator) -> float:
    """To train on one: 6 a parameter (forward 2, backward 4) and position of the sequence, the label and the ids."""
    return 6.0 * sum(p.numel() for p in model.parameters()) * (model.config.num_latent_tokens + 1)


def _finish(task: GeneratorTask) -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    task.group.barrier()


def _kept_bytes(model: Generator, recipe: GeneratorRecipe, images: int) -> int:
    """What autograd keeps of a forward pass over `images`, parameters left out, and the logits with their gradient."""
    model = model.to(_ACTIVATION_TYPE.get(recipe.training.precision, torch.float32)).train()
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

    ids = torch.zeros(images, recipe.model.num_latent_tokens, dtype=torch.int64, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(ids, ids[:, 0])
    return sum(t.nbytes for t in kept.values()) + 2 * logits.nbytes
