"""Training of a generator: masked ids, and the cross-entropy of what they were (MaskGIT, arXiv 2202.04200).

Letters: B global batch, b this process's share of it, K latent tokens, V codebook size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch

from titokctl.config.recipe import GeneratorRecipe
from titokctl.data.prefetch import Prefetch
from titokctl.data.tokens import TokenRows
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import slice_of, summed
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.maskgit.mask_schedule import mask_ratio
from titokctl.models.precision import precision, training_attention
from titokctl.training.acceleration import accelerate
from titokctl.training.learner import Learner, part
from titokctl.training.loop import Metrics
from titokctl.training.losses import masked_accuracy, masked_token_loss, masked_token_weights
from titokctl.training.randomness import generator, key

_EVALUATION_RATIOS = (0.25, 0.5, 0.75, 1.0)
_EVALUATION_ROWS = 1024
_EVALUATION_PIECE = 128  # rows at once: logits of S-128 are 2 MB a row


@dataclass(frozen=True)
class Draws:
    """All that is random about this process's share of a batch, on the CPU.

    positions, view (b,) int64; masked (b, K) bool; dropped (b,) bool: labels that are left out; total_weight: the sum
    of the loss's weights over the global batch.
    """

    positions: torch.Tensor
    view: torch.Tensor
    masked: torch.Tensor
    dropped: torch.Tensor
    total_weight: float


@dataclass(frozen=True)
class MaskedBatch:
    """A share of a batch as the generator sees it: ids, inputs (b, K) int64, masked (b, K) bool, labels (b,) int64."""

    ids: torch.Tensor
    inputs: torch.Tensor
    masked: torch.Tensor
    labels: torch.Tensor
    total_weight: float


class MaskedTokens:
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
        model: MaskGit,
        recipe: GeneratorRecipe,
        rows: TokenRows,
        held_out: TokenRows | None,
        group: Group,
        preview: Callable[[MaskGit, int], None] | None = None,
    ) -> None:
        self.model, self.recipe, self.rows, self.held_out = model, recipe, rows, held_out
        self.group, self.preview = group, preview
        training = recipe.training
        self.learner = Learner(model, recipe.optimizer, recipe.schedule, training.steps, training.ema_decay, group)
        self._device = next(model.parameters()).device
        accelerate([model], training)
        # While a GPU computes, a core is idle; on a CPU a thread would only take it from the step.
        self._draws = Prefetch(self._draw).get if self._device.type == "cuda" else self._draw

    def prepare(self, step: int) -> None:
        """Gather and mask this process's share of the batch of `step`."""
        draws = self._draws(step)
        batch = self.rows.at(draws.positions, draws.view)
        masked = draws.masked.to(self._device, non_blocking=True)
        is_null = draws.dropped.to(self._device, non_blocking=True) | (batch.labels < 0)
        labels = torch.where(is_null, self.recipe.model.num_classes, batch.labels)
        inputs = torch.where(masked, self.recipe.model.mask_id, batch.ids)
        self._batch = MaskedBatch(batch.ids, inputs, masked, labels, draws.total_weight)

    def step(self, step: int) -> Metrics:
        """One optimizer step; the loss is divided by the weights of the whole global batch."""
        training, batch = self.recipe.training, self._batch
        first_row = slice_of(training.global_batch_size, self.group).start
        micro = training.micro_batch_size or len(batch.ids)
        loss = accuracy = torch.zeros((), device=self._device)
        for first in range(0, len(batch.ids), micro):
            rows = slice(first, first + micro)
            torch.manual_seed(key(training.seed, "dropout", step, first_row + first))
            weights = masked_token_weights(batch.masked[rows], self.recipe.loss.unmasked_weight)
            with training_attention(self._device):  # the backward pass, too: it may compute blocks again
                with precision(training.precision, self._device):
                    logits = self.model(batch.inputs[rows], batch.labels[rows])
                part_loss = masked_token_loss(logits, batch.ids[rows], weights, self.recipe.loss.label_smoothing)
                (part_loss / batch.total_weight).backward()
            loss = loss + part_loss.detach() / batch.total_weight
            share = len(logits) / training.global_batch_size
            accuracy = accuracy + share * masked_accuracy(logits, batch.ids[rows], batch.masked[rows])
        return summed({"loss": loss, "accuracy": accuracy}, self.group) | self.learner.update(step)

    @torch.inference_mode()
    def evaluate(self, step: int) -> dict[str, float]:
        """Masked-token loss (nats, no smoothing) and accuracy at fixed mask ratios, training rows beside held-out.

        The entropy of a single id stands beside them: a loss that is not below it has learnt nothing but how often each
        code occurs. Rank 0 alone does it: it is short.
        """
        if not self.group.is_main:
            return {}
        model = self.averaged()
        if self.preview is not None:
            self.preview(model, step)
        found: dict[str, float] = {}
        for name, rows in (("train", self.rows), ("held_out", self.held_out)):
            if rows is not None:
                found |= {f"{name}_{k}": v for k, v in self._masked_numbers(model, rows).items()}
        if self.held_out is not None:
            found["gap"] = found["held_out_loss"] - found["train_loss"]
        return found | {"unigram_entropy": self._entropy}

    def averaged(self) -> MaskGit:
        """A copy of the generator with the averaged weights, in evaluation mode."""
        return self.learner.averaged_module()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything a checkpoint needs."""
        return {f"generator.{k}": v for k, v in self.learner.tensors().items()}

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Go on from a checkpoint."""
        self.learner.load(part(tensors, "generator."), step)

    @cached_property
    def _entropy(self) -> float:
        return self.rows.unigram_entropy()

    def _draw(self, step: int) -> Draws:
        """Every process draws for the whole batch, so that nothing depends on their number, and keeps its share."""
        config, seed, size = self.recipe.loss, self.recipe.training.seed, self.recipe.training.global_batch_size
        tokens, mine = self.recipe.model.num_latent_tokens, slice_of(size, self.group)
        view = torch.randint(len(self.recipe.views), (size,), generator=generator(seed, "view", step))
        draws = generator(seed, "mask", step)
        ratio = mask_ratio(torch.rand(size, generator=draws), config.mask_schedule)
        masked = random_subset(masked_count(ratio, tokens), tokens, draws)
        dropped = torch.rand(size, generator=draws) < config.label_dropout
        total = float(masked_token_weights(masked, config.unmasked_weight).sum())
        positions = self.rows.positions(seed, step, size)
        return Draws(positions[mine], view[mine], masked[mine], dropped[mine], total)

    def _masked_numbers(self, model: MaskGit, rows: TokenRows) -> dict[str, float]:
        """Loss and accuracy at every fixed ratio and their means; the same rows and masks every time."""
        seed = self.recipe.training.seed
        draws = generator(seed, "evaluation")
        positions = rows.positions(key(seed, "evaluation"), 0, min(_EVALUATION_ROWS, rows.count))
        batch = rows.at(positions, torch.zeros(len(positions), dtype=torch.int64))
        classes = self.recipe.model.num_classes
        labels = torch.where((batch.labels < 0) | (batch.labels >= classes), classes, batch.labels)
        found: dict[str, float] = {}
        for ratio in _EVALUATION_RATIOS:
            count = masked_count(torch.full((len(positions),), ratio), batch.ids.shape[1])
            masked = random_subset(count, batch.ids.shape[1], draws).to(batch.ids.device)
            loss = accuracy = torch.zeros((), device=batch.ids.device)
            for first in range(0, len(positions), _EVALUATION_PIECE):
                piece = slice(first, first + _EVALUATION_PIECE)
                ids, hidden = batch.ids[piece], masked[piece]
                logits = model(torch.where(hidden, self.recipe.model.mask_id, ids), labels[piece])
                loss = loss + masked_token_loss(logits, ids, hidden.float(), 0.0)
                accuracy = accuracy + len(ids) * masked_accuracy(logits, ids, hidden)
            found[f"loss_at_{ratio:g}"] = float(loss / masked.sum())
            found[f"accuracy_at_{ratio:g}"] = float(accuracy / len(positions))
        return {name: _mean_of(found, f"{name}_at_") for name in ("loss", "accuracy")} | found


def _mean_of(numbers: dict[str, float], start: str) -> float:
    chosen = [value for name, value in numbers.items() if name.startswith(start)]
    return sum(chosen) / len(chosen)


def masked_count(ratio: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """(B,) int64: round(K x ratio) masked positions a row, at least one."""
    return (ratio * num_tokens).round().long().clamp(1, num_tokens)


def random_subset(count: torch.Tensor, num_tokens: int, draws: torch.Generator) -> torch.Tensor:
    """(B, K) bool with exactly `count` (B,) true positions in each row, all subsets equally likely."""
    order = torch.rand(len(count), num_tokens, generator=draws).argsort(dim=1)
    first = torch.arange(num_tokens) < count.unsqueeze(1)
    return torch.zeros_like(first).scatter_(1, order, first)
