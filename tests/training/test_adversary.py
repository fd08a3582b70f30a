"""The adversary: whose weights get which gradients, when it begins, and that pieces of a batch are as the whole."""

import pytest
import torch

from titokctl.config.tokenizer_recipe import AdversaryConfig
from titokctl.config.training import OptimizerConfig, ScheduleConfig, TrainingConfig
from titokctl.distributed.group import single_group
from titokctl.models.discriminator import Discriminator
from titokctl.training.adversary import Adversary

START = 3


@pytest.fixture
def adversary():
    return make()


def make() -> Adversary:
    torch.manual_seed(0)
    discriminator = Discriminator(32)
    config = AdversaryConfig(
        start=START, weight=0.5, lecam_weight=10.0, lecam_decay=0.5, channels=32,
        optimizer=OptimizerConfig(learning_rate=1e-4, clip_norm=0.5),
        schedule=ScheduleConfig(kind="constant", warmup_steps=2),
    )  # fmt: skip
    return Adversary(discriminator, config, TrainingConfig(steps=20, global_batch_size=4), single_group())


def pictures(seed: int) -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_the_generators_term_reaches_the_pictures_and_no_weight_of_the_discriminator(adversary):
    made = pictures(0).requires_grad_()
    adversary.loss(made, START).backward()
    assert made.grad is not None
    assert made.grad.abs().max() > 0
    assert all(p.grad is None and p.requires_grad for p in adversary.discriminator.parameters())
    by_hand = -0.5 * adversary.discriminator(made).mean()
    torch.testing.assert_close(adversary.loss(made, START), by_hand)


def test_it_costs_nothing_before_its_start_and_its_schedule_counts_from_there(adversary):
    assert not adversary.is_on(START - 1)
    assert adversary.loss(pictures(0), START - 1) == 0
    before = [p.clone() for p in adversary.discriminator.parameters()]
    for step in (START, START + 1):
        adversary.update([(pictures(1), pictures(2))], step)
        moved = [not torch.equal(a, b) for a, b in zip(before, adversary.discriminator.parameters(), strict=True)]
        assert any(moved) == (step > START)  # the first step of the warm-up has rate 0


def test_a_batch_in_pieces_is_as_the_whole_with_lecam_over_all_of_it():
    whole, pieces = make(), make()
    for step in range(START, START + 5):
        real, made = pictures(10 + step), 0.8 * pictures(30 + step)
        found = whole.update([(real, made)], step)
        also = pieces.update(list(zip(real.split(1), made.split(1), strict=True)), step)
        for name in ("discriminator_loss", "real_logit", "made_logit", "discriminator_gradient_norm"):
            torch.testing.assert_close(also[name], found[name], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pieces.averages, whole.averages, rtol=1e-4, atol=1e-5)
    assert whole.averages.abs().min() > 0
    for a, b in zip(whole.discriminator.parameters(), pieces.discriminator.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_pictures_that_are_not_finite_leave_it_as_it_was(adversary):
    adversary.update([(pictures(1), pictures(2))], START)
    before = {name: t.clone() for name, t in adversary.tensors().items() if "exp_avg" not in name}
    found = adversary.update([(pictures(1), pictures(2) * float("nan"))], START + 1)
    assert found["skipped_in_a_row"] == 1
    after = adversary.tensors()
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("module.") or n == "averages")
