"""Training of a generator: masked ids, and the cross-entropy of what they were (MaskGIT, arXiv 2202.04200).

Letters: B global batch, K latent tokens, V codebook size.
"""

from dataclasses import dataclass

import torch

from titokctl.config.recipe import GeneratorRecipe
from titokctl.data.tokens import TokenBatch, TokenRows
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.maskgit.mask_schedule import mask_ratio
from titokctl.models.precision import precision, training_attention
from titokctl.training.learner import Learner, part
from titokctl.training.loop import Metrics
from titokctl.training.losses import masked_accuracy, masked_token_loss, masked_token_weights
from titokctl.training.randomness import generator, key

_EVALUATION_RATIOS = (0.25, 0.5, 0.75, 1.0)
_EVALUATION_ROWS = 1024


@dataclass(frozen=True)
class MaskedBatch:
    """One global batch as the generator sees it: ids, inputs (B, K) int64, masked (B, K) bool, labels (B,) int64."""

    ids: torch.Tensor
    inputs: torch.Tensor
    masked: torch.Tensor
    labels: torch.Tensor


class MaskedTokens:
    """The task of train-gen.

    Args:
        model: freshly initialised, in training mode, on its device.
        recipe: the resolved recipe.
        rows: training rows.
        held_out: rows for the held-out loss, or None.
    """

    def __init__(
        self, model: MaskGit, recipe: GeneratorRecipe, rows: TokenRows, held_out: TokenRows | None = None
    ) -> None:
        self.model, self.recipe, self.rows, self.held_out = model, recipe, rows, held_out
        training = recipe.training
        self.learner = Learner(model, recipe.optimizer, recipe.schedule, training.steps, training.ema_decay)

    def prepare(self, step: int) -> None:
        """Gather and mask the global batch of `step`."""
        training = self.recipe.training
        size = training.global_batch_size
        view = torch.randint(len(self.recipe.views), (size,), generator=generator(training.seed, "view", step))
        self._batch = self._mask(self.rows.batch(training.seed, step, size, view), step)

    def step(self, step: int) -> Metrics:
        """One optimizer step; the loss is divided by the weights of the whole global batch."""
        training, batch = self.recipe.training, self._batch
        weights = masked_token_weights(batch.masked, self.recipe.loss.unmasked_weight)
        total = weights.sum()
        micro = training.micro_batch_size or training.global_batch_size
        loss = accuracy = torch.zeros((), device=total.device)
        for first in range(0, len(batch.ids), micro):
            rows = slice(first, first + micro)
            torch.manual_seed(key(training.seed, "dropout", step, first))
            with precision(training.precision, total.device), training_attention(total.device):
                logits = self.model(batch.inputs[rows], batch.labels[rows])
            part_loss = masked_token_loss(logits, batch.ids[rows], weights[rows], self.recipe.loss.label_smoothing)
            (part_loss / total).backward()
            loss = loss + part_loss.detach() / total
            share = len(logits) / len(batch.ids)
            accuracy = accuracy + share * masked_accuracy(logits, batch.ids[rows], batch.masked[rows])
        return {"loss": loss, "accuracy": accuracy, **self.learner.update(step)}

    @torch.inference_mode()
    def evaluate(self, step: int) -> dict[str, float]:
        """Masked-token loss (nats, no smoothing) and accuracy at fixed mask ratios, training rows beside held-out."""
        model = self.averaged()
        found: dict[str, float] = {}
        for name, rows in (("train", self.rows), ("held_out", self.held_out)):
            if rows is not None:
                found |= {f"{name}_{k}": v for k, v in self._masked_numbers(model, rows).items()}
        if self.held_out is not None:
            found["gap"] = found["held_out_loss"] - found["train_loss"]
        return found

    def averaged(self) -> MaskGit:
        """A copy of the generator with the averaged weights, in evaluation mode."""
        return self.learner.averaged_module()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything a checkpoint needs."""
        return {f"generator.{k}": v for k, v in self.learner.tensors().items()}

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Go on from a checkpoint."""
        self.learner.load(part(tensors, "generator."), step)

    def _mask(self, batch: TokenBatch, step: int) -> MaskedBatch:
        config, seed = self.recipe.loss, self.recipe.training.seed
        device, null = batch.ids.device, self.recipe.model.num_classes
        draws = generator(seed, "mask", step)
        rows, tokens = batch.ids.shape
        ratio = mask_ratio(torch.rand(rows, generator=draws), config.mask_schedule)
        masked = random_subset(masked_count(ratio, tokens), tokens, draws).to(device)
        dropped = (torch.rand(rows, generator=draws) < config.label_dropout).to(device)
        labels = torch.where(dropped | (batch.labels < 0), null, batch.labels)
        inputs = torch.where(masked, self.recipe.model.mask_id, batch.ids)
        return MaskedBatch(batch.ids, inputs, masked, labels)

    def _masked_numbers(self, model: MaskGit, rows: TokenRows) -> dict[str, float]:
        """Mean over the fixed ratios; the same rows and masks every time."""
        draws = generator(self.recipe.training.seed, "evaluation")
        positions = torch.randperm(rows.count, generator=draws)[:_EVALUATION_ROWS]
        batch = rows.at(positions, torch.zeros(len(positions), dtype=torch.int64))
        labels = torch.where(batch.labels < 0, self.recipe.model.num_classes, batch.labels)
        losses, accuracies = [], []
        for ratio in _EVALUATION_RATIOS:
            count = masked_count(torch.full((len(positions),), ratio), batch.ids.shape[1])
            masked = random_subset(count, batch.ids.shape[1], draws).to(batch.ids.device)
            logits = model(torch.where(masked, self.recipe.model.mask_id, batch.ids), labels)
            losses.append(masked_token_loss(logits, batch.ids, masked.float(), 0.0) / masked.sum())
            accuracies.append(masked_accuracy(logits, batch.ids, masked))
        return {"loss": float(torch.stack(losses).mean()), "accuracy": float(torch.stack(accuracies).mean())}


def masked_count(ratio: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """(B,) int64: round(K x ratio) masked positions a row, at least one."""
    return (ratio * num_tokens).round().long().clamp(1, num_tokens)


def random_subset(count: torch.Tensor, num_tokens: int, draws: torch.Generator) -> torch.Tensor:
    """(B, K) bool with exactly `count` (B,) true positions in each row, all subsets equally likely."""
    ranks = torch.rand(len(count), num_tokens, generator=draws).argsort(dim=1).argsort(dim=1)
    return ranks < count.unsqueeze(1)
