"""Training of a generator of any kind on cached ids.

Letters: B global batch, b this process's share of it, K latent tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from titokctl.config.recipe import GeneratorRecipe
from titokctl.data.tokens import TokenRows
from titokctl.data.workers import Prefetch
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import slice_of, summed
from titokctl.models.device import send
from titokctl.models.generator import Batch, Drawn, Generator, TrainingStep
from titokctl.models.precision import backward_precision, precision
from titokctl.training.acceleration import accelerate
from titokctl.training.learner import Learner, part
from titokctl.training.loop import Metrics
from titokctl.training.randomness import generator, key

_EVALUATION_ROWS = 1024


@dataclass(frozen=True)
class Share:
    """The random part of this process's share of a batch, on the CPU: positions and view (b,) int64, and the rest."""

    positions: torch.Tensor
    view: torch.Tensor
    drawn: Drawn


class GeneratorTask:
    """The task of train-gen.

    Args:
        model: freshly initialised, in training mode, on its device.
        recipe: the resolved recipe.
        rows: training rows.
        held_out: rows for the held-out loss, or None.
        group: the processes that share each batch.
        preview: called with the averaged generator after some steps, e.g. to draw samples; or None.
    """

    def __init__(
        self,
        model: Generator,
        recipe: GeneratorRecipe,
        rows: TokenRows,
        held_out: TokenRows | None,
        group: Group,
        preview: Callable[[Generator, int], None] | None = None,
    ) -> None:
        self.model, self.recipe, self.rows, self.held_out = model, recipe, rows, held_out
        self.group, self.preview = group, preview
        training = recipe.training
        in_fp16 = training.precision == "fp16"
        self.learner = Learner(
            model, recipe.optimizer, recipe.schedule, training.steps, training.ema_decay, group, in_fp16
        )
        self.device = next(model.parameters()).device
        accelerate([model], training, recipe.model.num_latent_tokens + 1, group.world_size)
        # While a GPU computes, a core is idle; on a CPU a thread would only take it from the step.
        self._draws = Prefetch(self.drawn).get if self.device.type == "cuda" else self.drawn

    def prepare(self, step: int) -> None:
        """Gather this process's share of the batch of `step`."""
        share = self._draws(step)
        rows = self.rows.at(share.positions, share.view)
        tensors = {name: send(t, self.device) for name, t in share.drawn.tensors.items()}
        is_null = send(share.drawn.dropped, self.device) | (rows.labels < 0)
        labels = torch.where(is_null, self.recipe.model.num_classes, rows.labels)
        self.batch, self._total_weight = Batch(rows.ids, labels, tensors), share.drawn.total_weight

    def step(self, step: int) -> Metrics:
        """Take one optimizer step; the loss is divided by the total weight of the global batch."""
        training, batch = self.recipe.training, self.batch
        first_row = slice_of(training.global_batch_size, self.group).start
        micro = training.micro_batch_size or len(batch)
        sums = {"loss": torch.zeros((), device=self.device)}
        for first in range(0, len(batch), micro):
            rows = batch.rows(slice(first, first + micro))
            torch.manual_seed(key(training.seed, "dropout", step, first_row + first))
            with precision(training.precision, self.device):
                losses = self.model.loss(rows, self.recipe.loss)
            with backward_precision(self.device, training.precision):
                self.learner.backward(losses.total / self._total_weight, first + micro >= len(batch))
            share = len(rows) / training.global_batch_size
            found = {"loss": losses.total.detach() / self._total_weight}
            found |= {name: share * value for name, value in losses.metrics.items()}
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
        return summed(sums, self.group) | self.learner.update(step)

    @torch.inference_mode()
    def evaluate(self, step: int) -> dict[str, float]:
        """Measure training rows and held-out rows with the averaged weights, and draw a preview.

        The entropy of a single id is reported beside the losses: a loss that is not below it has learnt nothing but how
        often each code occurs. The preview and the training rows are rank 0's, the held-out rows those of rank 1 if
        there is one: each is short.
        """
        model = self.averaged()
        if self.preview is not None and self.group.is_main:
            self.preview(model, step)
        mine: dict[str, float] = {}
        for number, (name, rows) in enumerate((("train", self.rows), ("held_out", self.held_out))):
            if rows is not None and self.group.rank == number % self.group.world_size:
                mine |= {f"{name}_{k}": v for k, v in self._measured(model, rows).items()}
        found = {name: value for share in self.group.from_all(mine) for name, value in share.items()}
        if self.held_out is not None:
            found["gap"] = found["held_out_loss"] - found["train_loss"]
        return found | ({"unigram_entropy": self._entropy} if self.rows.is_discrete else {})

    def averaged(self) -> Generator:
        """Return a copy of the generator with the averaged weights, in eval mode."""
        return self.learner.averaged_module()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return everything that a checkpoint needs."""
        return {f"generator.{k}": v for k, v in self.learner.tensors().items()}

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Continue from a checkpoint."""
        self.learner.load(part(tensors, "generator."), step)

    def drawn(self, step: int) -> Share:
        """Draw for the global batch, so that nothing depends on the number of processes, and keep a share of it."""
        seed, size = self.recipe.training.seed, self.recipe.training.global_batch_size
        mine = slice_of(size, self.group)
        view = torch.randint(len(self.recipe.views), (size,), generator=generator(seed, "view", step))
        now = TrainingStep(step, self.recipe.training.steps)
        drawn = self.model.draw(size, self.recipe.loss, generator(seed, "mask", step), now)
        kept = {name: t[mine] for name, t in drawn.tensors.items()}
        positions = self.rows.positions(seed, step, size)
        return Share(positions[mine], view[mine], Drawn(drawn.dropped[mine], drawn.total_weight, kept))

    @cached_property
    def _entropy(self) -> float:
        return self.rows.unigram_entropy()

    def _measured(self, model: Generator, rows: TokenRows) -> dict[str, float]:
        """Return the generator's numbers of some rows; the same rows and draws each time."""
        seed, classes = self.recipe.training.seed, self.recipe.model.num_classes
        positions = rows.positions(key(seed, "evaluation"), 0, min(_EVALUATION_ROWS, rows.count))
        batch = rows.at(positions, torch.zeros(len(positions), dtype=torch.int64))
        labels = torch.where((batch.labels < 0) | (batch.labels >= classes), classes, batch.labels)
        return model.measure(batch.ids, labels, self.recipe.loss, generator(seed, "evaluation"))
