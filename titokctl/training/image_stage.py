"""The part that all stages of training a tokenizer share: micro batches, one learner, an optional adversary.

A stage says in `make` what one micro batch costs; everything else of an optimizer step is here.
Letters: B images of the global batch, b of a micro batch, S image size, M latents, C token size.
"""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar

import torch
from torch import nn

from titokctl.config.tokenizer_recipe import PixelLossConfig, TokenizerRecipe
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import slice_of, summed
from titokctl.models.precision import Precision, backward_precision
from titokctl.training.acceleration import accelerate
from titokctl.training.adversary import Adversary
from titokctl.training.codebook import LiveCodebook, Watch
from titokctl.training.learner import Learner, part
from titokctl.training.loop import Metrics

M = TypeVar("M", bound=nn.Module)
Values = dict[str, torch.Tensor | float]


class ImageBatches(Protocol):
    """Where training images come from."""

    def batch(self, step: int) -> torch.Tensor:
        """Return this process's share of `step`'s batch, the same whenever it is asked for.

        (b, 3, S, S) float32 in [0, 1], on the device of the stage.
        """


class Micro(NamedTuple):
    """One micro batch: images (b, 3, S, S) float32 in [0, 1], which are `rows` of the global batch of `step`."""

    images: torch.Tensor
    rows: slice
    step: int


class Made(NamedTuple):
    """Result of a micro batch.

    `loss` and `shown` are scalars, means over its images; `shown` by name, detached ("mse" becomes "psnr"). `images`
    are the float32 reconstructions for the adversary; `latents` (M, C) and `ids` (M,) what the codebook was looked up
    with, for its care.
    """

    loss: torch.Tensor
    shown: dict[str, torch.Tensor]
    images: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    ids: torch.Tensor | None = None


class ImageStage(Generic[M]):
    """A task of the training loop; the stages fill in `make`.

    Args:
        module: what is trained: freshly initialised, in training mode, on its device; frozen parts want no gradients.
        parts: networks in it that are compiled, or recompute their blocks, where the recipe says so.
        recipe: the resolved recipe.
        images: the training images.
        validate: held-out numbers of an averaged module after some steps, or None.
        group: the processes that share each batch.
        codebook: the codes that are looked after, or None.
        adversary: the discriminator's side, or None.
    """

    def __init__(
        self,
        module: M,
        parts: Sequence[nn.Module],
        recipe: TokenizerRecipe,
        images: ImageBatches,
        validate: Callable[[M, int], dict[str, float]] | None,
        group: Group,
        *,
        codebook: LiveCodebook | None = None,
        adversary: Adversary | None = None,
    ) -> None:
        self.module, self.images, self.validate, self.group = module, images, validate, group
        self.training = training = recipe.training
        self.codebook, self.adversary = codebook, adversary
        self.watch: Watch = lambda done, total: None  # called in a step that takes long, before it changes anything
        accelerate(parts, training, processes=group.world_size)
        in_fp16 = training.precision == "fp16"
        self.learner = Learner(
            module, recipe.optimizer, recipe.schedule, training.steps, training.ema_decay, group, in_fp16
        )
        self.device = next(module.parameters()).device
        self._loss_precision: Precision = (
            recipe.loss.precision if isinstance(recipe.loss, PixelLossConfig) else training.precision
        )

    def make(self, micro: Micro) -> Made:
        """Forward pass and losses of one micro batch."""
        raise NotImplementedError

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Images (b, 3, S, S) to what codes are found for, (M, C) float32; only stages with a live codebook."""
        raise NotImplementedError

    def begin(self, step: int) -> None:
        """Prepare for `step`, before its batch."""

    def quantizes(self, step: int) -> bool:
        """Return True if `step` quantizes latents; False if it passes them on as they are."""
        return self.codebook is None or self.codebook.quantizes(step)

    def cares_for_codes(self, step: int) -> bool:
        """Return True if unused codes are re-seeded after `step`."""
        return self.codebook is not None and self.codebook.quantizes(step) and self.codebook.is_trained

    def prepare(self, step: int) -> None:
        """Fetch the images of `step`."""
        self._images = self.images.batch(step)

    def step(self, step: int) -> Metrics:
        """One optimizer step over the global batch, in micro batches."""
        if self.codebook is not None and self.codebook.config.continuous_steps == step > 0 and self.codebook.is_trained:
            self._seed_codes(self.codebook, step)
        self.begin(step)
        micros = self._micros(step)
        made = [self._backward(micro, micro is micros[-1]) for micro in micros]
        metrics = self.learner.update(step)
        found = self._totals(made)
        if self.codebook is not None and self.codebook.quantizes(step):
            ids = torch.cat([m.ids for m in made if m.ids is not None])
            found |= self.codebook.share_in_use(ids, step)
            if self.cares_for_codes(step):
                latents = torch.cat([m.latents for m in made if m.latents is not None])
                self.codebook.reseed(latents, ids, self.learner.is_finite)
        if self.adversary is not None and self.adversary.is_on(step):
            # It sees what the module made before it was updated.
            pictures = [(m.images, d.images) for m, d in zip(micros, made, strict=True) if d.images is not None]
            metrics = _with_adversary(metrics, self.adversary.update(pictures, step))
        return {**found, **metrics}

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out numbers with the averaged weights."""
        return self.validate(self.averaged(), step) if self.validate is not None else {}

    def averaged(self) -> M:
        """A copy of the module with the averaged weights, in evaluation mode."""
        return self.learner.averaged_module()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything a checkpoint needs."""
        found = {f"tokenizer.{k}": v for k, v in self.learner.tensors().items()}
        if self.codebook is not None:
            found |= self.codebook.tensors()
        if self.adversary is not None:
            found |= {f"adversary.{k}": v for k, v in self.adversary.tensors().items()}
        return found

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Continue from a checkpoint."""
        self.learner.load(part(tensors, "tokenizer."), step)
        if self.codebook is not None:
            self.codebook.load(tensors)
        if self.adversary is not None:
            self.adversary.load(part(tensors, "adversary."), step)

    @property
    def micro_batch(self) -> int:
        """Images that are on the device at once."""
        return self.training.micro_batch_size or self.training.global_batch_size // self.group.world_size

    def _micros(self, step: int) -> list[Micro]:
        first = slice_of(self.training.global_batch_size, self.group).start
        pieces = self._images.split(self.micro_batch)
        starts = range(first, first + len(self._images), self.micro_batch)
        return [Micro(p, slice(at, at + len(p)), step) for at, p in zip(starts, pieces, strict=True)]

    def _backward(self, micro: Micro, is_last: bool) -> Made:
        """The gradients of one micro batch; what is returned keeps no graph."""
        made = self.make(micro)
        with backward_precision(self.device, self.training.precision, self._loss_precision):
            self.learner.backward(made.loss * self._share(micro), is_last)
        detached = (t.detach() if t is not None else None for t in (made.images, made.latents, made.ids))
        share = self._share(micro)
        return Made(made.loss.detach() * share, {name: v * share for name, v in made.shown.items()}, *detached)

    def _share(self, micro: Micro) -> float:
        return len(micro.images) / self.training.global_batch_size

    def _totals(self, made: list[Made]) -> dict[str, torch.Tensor]:
        """The metrics over the global batch."""
        own = {"loss": torch.stack([m.loss for m in made]).sum()}
        for name in made[0].shown:
            own[name] = torch.stack([m.shown[name] for m in made]).sum()
        total = summed(own, self.group)
        if "mse" in total:
            total["psnr"] = -10 * torch.log10(total.pop("mse"))
        return total

    @torch.no_grad()
    def _seed_codes(self, codebook: LiveCodebook, step: int) -> None:
        """k-means over the latents of the next batches gives the first codes."""

        def latents_of(later: int) -> torch.Tensor:
            pieces = self.images.batch(later).split(self.micro_batch)
            return torch.cat([self.latents(piece) for piece in pieces])

        codebook.seed_by_kmeans(latents_of, self.training.seed, step, self.watch)
        if self.learner.ema is not None:
            self.learner.ema.shadow[codebook.name].copy_(codebook.codes)


def _with_adversary(own: Values, theirs: Values) -> Values:
    """The metrics of both sides; steps that either of them skipped count for the message about them."""
    skipped = [torch.as_tensor(side["skipped_in_a_row"]) for side in (own, theirs)]
    return theirs | own | {"skipped_in_a_row": torch.maximum(*skipped)}
