"""Adversarial training: a discriminator beside what is trained, with an optimizer and a schedule of its own.

Letters: B images of the global batch, b of a micro batch, S image size.
"""

from collections.abc import Sequence

import torch
from torch.func import functional_call

from titokctl.config.tokenizer_recipe import AdversaryConfig
from titokctl.config.training import TrainingConfig
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import summed
from titokctl.models.discriminator import Discriminator
from titokctl.models.precision import Precision, backward_precision, precision
from titokctl.training.acceleration import accelerate
from titokctl.training.learner import Learner
from titokctl.training.losses import adversarial_loss, global_means, hinge_loss, lecam, lecam_averages

Pair = tuple[torch.Tensor, torch.Tensor]


class Adversary:
    """Tells real pictures from made ones, from the recipe's start step on.

    Args:
        discriminator: freshly initialised, on its device, the same on every process.
        config: weights, start, optimizer and schedule; the schedule counts from the start.
        training: length and batch of the whole run.
        group: the processes that share each batch.
        arithmetic: the precision of the discriminator, forward and backward.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        config: AdversaryConfig,
        training: TrainingConfig,
        group: Group,
        arithmetic: Precision = "tf32",
    ) -> None:
        self.config, self.training, self.group, self.arithmetic = config, training, group, arithmetic
        self.discriminator = discriminator.train()
        accelerate([discriminator], training)
        steps = max(1, training.steps - config.start)
        self.learner = Learner(discriminator, config.optimizer, config.schedule, steps, None, group)
        self._device = next(discriminator.parameters()).device
        self.averages = torch.zeros(2, device=self._device)  # of the mean logits, for LeCam: real, made

    def is_on(self, step: int) -> bool:
        """Return True if the adversary takes part in `step`."""
        return step >= self.config.start

    def loss(self, made: torch.Tensor, step: int) -> torch.Tensor:
        """Return the weighted generator loss for `made` (b, 3, S, S), a scalar; the discriminator gets no gradients."""
        if not self.is_on(step):
            return made.new_zeros(())
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        with precision(self.arithmetic, self._device):
            logits = functional_call(self.discriminator, fixed, (made,))
        return self.config.weight * adversarial_loss(logits)

    def update(self, pictures: Sequence[Pair], step: int) -> dict[str, torch.Tensor | float]:
        """One optimizer step on all micro batches of this process, each (real, made) (b, 3, S, S) in [0, 1]."""
        # LeCam squares means of the whole global batch, so these come first; one micro batch keeps its graph for later.
        once = len(pictures) == 1
        with torch.set_grad_enabled(once):
            logits = [self._logits(*pair) for pair in pictures]
        found = self._over_all(logits, pictures)
        known = torch.stack([found["real_logit"], found["made_logit"]]).float()
        for pair, seen in zip(pictures, logits, strict=True):
            real, made = seen if once else self._logits(*pair)
            share = len(pair[0]) / self.training.global_batch_size
            means = global_means(torch.stack([real.mean(), made.mean()]), known, share)
            regularised = self.config.lecam_weight * lecam(means, self.averages)
            with backward_precision(self._device, self.arithmetic):
                self.learner.backward(hinge_loss(real, made) * share + regularised, pair is pictures[-1])
        metrics = self.learner.update(step - self.config.start)
        moved = lecam_averages(known, self.averages, self.config.lecam_decay)
        self.averages.copy_(torch.where(self.learner.is_finite, moved, self.averages))
        skipped = torch.as_tensor(metrics["skipped_in_a_row"])
        return {**found, "discriminator_gradient_norm": metrics["gradient_norm"], "skipped_in_a_row": skipped}

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything a checkpoint needs."""
        return self.learner.tensors() | {"averages": self.averages}

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Continue from a checkpoint that was made after `step` steps of the run."""
        self.learner.load(tensors, max(0, step - self.config.start))
        self.averages.copy_(tensors["averages"])

    def _logits(self, real: torch.Tensor, made: torch.Tensor) -> Pair:
        """Float32 logits of real and made pictures, one pass for both."""
        with precision(self.arithmetic, self._device):
            logits = self.discriminator(torch.cat([real, made]))
        first, second = logits.float().chunk(2)
        return first, second

    def _over_all(self, logits: Sequence[Pair], pictures: Sequence[Pair]) -> dict[str, torch.Tensor]:
        """Mean logits and the hinge loss over the global batch."""
        shares = [len(real) / self.training.global_batch_size for real, _ in pictures]
        own = {
            "discriminator_loss": sum(hinge_loss(r, m).detach() * s for (r, m), s in zip(logits, shares, strict=True)),
            "real_logit": sum(r.detach().mean() * s for (r, _), s in zip(logits, shares, strict=True)),
            "made_logit": sum(m.detach().mean() * s for (_, m), s in zip(logits, shares, strict=True)),
        }
        return summed({name: torch.as_tensor(value) for name, value in own.items()}, self.group)
