"""Losses that are not a network's own business.

Letters: B batch, K latent tokens, V codebook size, N places of the decoder's grid.
"""

import torch
from torch.nn import functional as F


def proxy_cross_entropy(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy in nats of logits (B, N, codes) against the same crop's proxy codes (B, N) int64."""
    return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())


def hinge_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """The discriminator's loss on its logits, of any equal shape, for real pictures and for made ones; a scalar.

    0.5 (mean relu(1 - real) + mean relu(1 + fake)), as in bytedance/1d-tokenizer, commit 942a96f.
    """
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def adversarial_loss(fake: torch.Tensor) -> torch.Tensor:
    """Return the generator's hinge loss: minus the mean of the discriminator's logits."""
    return -fake.float().mean()


def lecam(means: torch.Tensor, averages: torch.Tensor) -> torch.Tensor:
    """LeCam regularisation of the discriminator (arXiv 2104.03310), a scalar.

    relu(real - average fake)^2 + relu(average real - fake)^2, as in bytedance/1d-tokenizer, commit 942a96f.

    Args:
        means: (2,) mean logit of the real and of the made pictures of the global batch.
        averages: (2,) of the steps before, from `lecam_averages`; zeros at first.
    """
    return F.relu(means[0] - averages[1]).square() + F.relu(averages[0] - means[1]).square()


def lecam_averages(means: torch.Tensor, averages: torch.Tensor, decay: float = 0.999) -> torch.Tensor:
    """(2,) averages for the next step, after `lecam` was taken with these `means` and `averages`."""
    return decay * averages + (1 - decay) * means.detach()


def global_means(means: torch.Tensor, known: torch.Tensor, share: float) -> torch.Tensor:
    """Means with the values of the whole global batch and the gradients of one micro batch's share of it.

    What is computed from them in every micro batch on every process has gradients whose sum is that of one pass over
    the global batch; their values are not shares and count once.

    Args:
        means: (2,) of this micro batch, with gradients.
        known: (2,) of the global batch.
        share: rows of this micro batch divided by those of the global batch.
    """
    return known.detach() + share * (means - means.detach())
