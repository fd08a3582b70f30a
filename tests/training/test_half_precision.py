"""training.precision fp16: the loss is scaled, steps that overflow are skipped and counted, and runs resume exactly."""

import pytest
import tiny
import torch
from safetensors.torch import load_file
from stages import Leave
from stages import train as train_stage

from titokctl.config.training import OptimizerConfig, ScheduleConfig
from titokctl.distributed.group import single_group
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import open_run
from titokctl.training.learner import Learner

FP16 = "training.precision=fp16"
# With these weights of the pixels, gradients overflow until the loss scale is small enough.
LARGE = {"single": 1e6, "gaussian": 1e6, "vqgan": 1e4}


def rows(run):
    return [row for row in MetricsLog(run / "metrics.jsonl").read() if "loss_scale" in row]


def decisive(run):
    return [(row["step"], row["loss"], row["skipped_steps"], row["loss_scale"]) for row in rows(run)]


@pytest.fixture
def pictures(tmp_path):
    return tiny.class_folder(tmp_path / "pictures", per_class=6)


@pytest.mark.slow
@pytest.mark.parametrize("stage", LARGE)
def test_overflows_are_skipped_and_told_and_a_stopped_run_resumes_bit_for_bit(stage, pictures, tmp_path):
    settings = (FP16, f"loss.reconstruction_weight={LARGE[stage]}", "training.steps=30")
    told = Leave()
    whole = train_stage(pictures, stage, tmp_path / "runs", tmp_path, *settings, name="whole", progress=told)
    scales = [row["loss_scale"] for row in rows(whole.run)]
    skipped = [row["skipped_steps"] for row in rows(whole.run)]
    assert skipped[-1] > 0
    assert scales[-1] == scales[0] / 2 ** skipped[-1]
    assert skipped[-1] < 20, "training goes on once the scale fits"
    assert scales == sorted(scales, reverse=True)

    def leave():
        raise KeyboardInterrupt

    for after in (3, 13):  # among the skipped steps, and beyond
        with pytest.raises(KeyboardInterrupt):
            train_stage(
                pictures, stage, tmp_path / "runs", tmp_path, *settings, name="cut", progress=Leave(after, leave)
            )
    again = train_stage(pictures, stage, tmp_path / "runs", tmp_path, *settings, name="cut")
    assert decisive(again.run) == decisive(whole.run)
    a, b = (load_file(open_run(run.run).product_path) for run in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_generator_trains_and_resumes_in_half_precision(train):
    settings = ("schedule.kind=constant", "training.log_every=1", "training.global_batch_size=4", "model.width=16")
    whole, _ = train(FP16, *settings, "training.steps=6", name="whole")
    train(FP16, *settings, "training.steps=3", name="cut")
    again, talk = train(FP16, *settings, "training.steps=6", name="cut")
    assert "resuming from step 3" in talk
    assert decisive(again.run) == decisive(whole.run)
    a, b = (load_file(open_run(run.run).product_path) for run in (whole, again))
    assert all(torch.equal(a[name], b[name]) for name in a)
    exact, _ = train(*settings, "training.steps=6", name="exact")
    assert again.metrics["loss"] == pytest.approx(exact.metrics["loss"], rel=0.01)
    assert "loss_scale" not in exact.metrics


def learner(scales_loss=True, **changes):
    torch.manual_seed(0)
    settings = {"learning_rate": 1e-2} | changes
    module = torch.nn.Linear(4, 4)
    schedule = ScheduleConfig(kind="constant")
    return Learner(module, OptimizerConfig(**settings), schedule, 10_000, 0.9, single_group(), scales_loss)


def step(of, number, factor=1.0):
    loss = (of.module(torch.linspace(-1, 1, 8).view(2, 4)).square().mean()) * factor
    of.backward(loss)
    return {name: float(value) for name, value in of.update(number).items()}


@pytest.mark.parametrize("muon", [None, 1e-2])
def test_the_scale_changes_no_finite_step(muon):
    scaled, plain = (learner(scales, muon_learning_rate=muon) for scales in (True, False))
    for number in range(5):
        a, b = step(scaled, number), step(plain, number)
        assert a["gradient_norm"] == b["gradient_norm"]
    assert "loss_scale" not in b
    for one, other in zip(scaled.module.parameters(), plain.module.parameters(), strict=True):
        assert torch.equal(one, other)  # a power of two


def test_the_scale_doubles_after_2000_finite_steps_and_its_state_is_saved():
    whole = learner()
    late = whole.tensors() | {"loss_scale.finite_steps": torch.tensor(1994)}
    whole.load(late, 1994)
    for number in range(1994, 1997):
        step(whole, number)
    resumed = learner()
    resumed.load({name: t.clone() for name, t in whole.tensors().items()}, 1997)
    scales = [(step(whole, n)["loss_scale"], step(resumed, n)["loss_scale"]) for n in range(1997, 2004)]
    assert scales == [(2.0**16, 2.0**16)] * 3 + [(2.0**17, 2.0**17)] * 4
    assert all(torch.equal(a, b) for a, b in zip(whole.tensors().values(), resumed.tensors().values(), strict=True))


def test_steps_of_a_large_scale_are_no_divergence_and_those_of_the_smallest_are():
    found = learner()
    before = [p.detach().clone() for p in found.module.parameters()]
    counts = [step(found, number, float("nan")) for number in range(20)]
    assert [row["loss_scale"] for row in counts] == [max(1.0, 2.0 ** (16 - n)) for n in range(20)]
    assert [row["skipped_steps"] for row in counts] == list(range(1, 21))
    assert [row["skipped_in_a_row"] for row in counts] == [0] * 16 + [1, 2, 3, 4]
    assert all(torch.equal(a, b) for a, b in zip(before, found.module.parameters(), strict=True))
