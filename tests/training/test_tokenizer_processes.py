"""A batch shared by processes, or taken in pieces: the same losses, with k-means, re-seeding of codes and a GAN."""

import os
import sys

import numpy as np
import pytest
import stages
import tiny
import torch
from process_tree import held, wait_for_files

from titokctl.context import Context
from titokctl.data.sources import open_source
from titokctl.errors import UserError
from titokctl.formats import checkpoint
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import open_run
from titokctl.jobs.train.stage_start import find_start
from titokctl.jobs.train.stages import Parts, build_stage
from titokctl.jobs.train.tokenizer import TrainTokenizer
from titokctl.training.step_images import StepImages

RECIPE = f"""{stages.ALONE}
optimizer: {{learning_rate: 1e-3, muon_learning_rate: 1e-3}}
schedule: {{warmup_steps: 5}}
training: {{steps: 20, global_batch_size: 8, micro_batch_size: 4, log_every: 1}}
"""


SHOWN = {
    "single": ("loss", "psnr", "discriminator_loss", "real_logit", "made_logit"),
    "gaussian": ("loss", "psnr", "discriminator_loss"),
    "vqgan": ("loss", "psnr", "discriminator_loss"),
    "proxy": ("loss", "cross_entropy"),
    "decoder": ("loss", "psnr", "discriminator_loss"),
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Pictures and a runs folder with a VQGAN and a stage-1 tokenizer."""
    folder = tmp_path_factory.mktemp("split")
    pictures = tiny.class_folder(folder / "pictures", per_class=12)
    for stage in ("vqgan", "proxy"):
        stages.train(pictures, stage, folder / "runs", folder, "training.steps=8", name=stage)
    return folder


@pytest.fixture
def in_float64(monkeypatch):
    """New weights and losses are float64: what is the same in exact arithmetic then differs by very little.

    In float32 how little depends on the kernels that a release of torch has for a CPU and a size of the batch.
    """
    to_float32 = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else to_float32(x))
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Float64Images:
    """The images of each step in float64."""

    def __init__(self, images: StepImages) -> None:
        self._images = images

    def batch(self, step: int) -> torch.Tensor:
        return self._images.batch(step).double()


def float64_curves(chain, stage, *overrides) -> dict[str, list[float]]:
    """Train a stage in float64, and return its metrics of every step."""
    recipe = TrainTokenizer([chain], str(stages.write_recipe(chain, stage)), overrides).resolved
    context = Context(chain / "runs")
    start = find_start(recipe, context.runs, context.say, context.group, False)
    for network in (start.vqgan, start.tokenizer):
        if network is not None:
            network.double()
    images = Float64Images(StepImages(open_source([chain / "pictures"]), recipe, context))
    task = build_stage(recipe, start, Parts(images, None, context.device, context.group))
    found: dict[str, list[float]] = {}
    for step in range(recipe.training.steps):
        task.prepare(step)
        for name, value in task.step(step).items():
            found.setdefault(name, []).append(float(value))
    return found


def named(chain, stage) -> list[str]:
    """What a stage starts from; for the VQGAN a rate at which no latent flips between two codes by rounding."""
    runs = chain / "runs"
    words = {"proxy": f"proxy={runs / 'proxy' / 'vqgan'}", "decoder": f"init={runs / 'tokenizer' / 'proxy'}"}
    return [words.get(stage, "optimizer.learning_rate=1e-4" if stage == "vqgan" else "training.seed=0")]


def logged_curves(run) -> dict[str, list[float]]:
    log = MetricsLog(run / "metrics.jsonl").read()
    return {name: [line[name] for line in log if name in line] for name in set().union(*log)}


def assert_same_curves(stage, one, other, rtol=1e-4):
    """Logits pass through zero: what counts is their error beside the 1 that the hinge loss compares them with."""
    for what in SHOWN[stage]:
        a, b = one[what], other[what]
        assert len(a) == (14 if "discriminator" in what or "logit" in what else 20)  # the GAN starts at 6
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol if "logit" in what else rtol / 10, err_msg=what)


def assert_same_state(one, other):
    """The newest checkpoints, to the bit: weights, averages, optimizers, usage of codes, discriminator."""
    a, b = (checkpoint.load_newest(run / "checkpoints", print).tensors for run in (one, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "stage", ["single", *(pytest.param(s, marks=pytest.mark.slow) for s in SHOWN if s != "single")]
)
def test_four_pieces_of_two_train_as_one_of_eight(chain, stage, in_float64):
    """Sums in another order differ by 1e-16; Adam, which divides gradients by their size, makes more of that."""
    words = named(chain, stage)
    whole = float64_curves(chain, stage, *words)
    pieces = float64_curves(chain, stage, *words, "training.micro_batch_size=2")
    assert_same_curves(stage, whole, pieces, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("stage", SHOWN)
def test_two_processes_train_as_one_and_one_goes_on_alone(chain, stage, runs, run_cli):
    pictures, words = chain / "pictures", named(chain, stage)
    whole = stages.train(pictures, stage, runs, chain, *words, name="whole")
    flags = [f"--set={word}" for word in words]
    command = ("train-tokenizer", pictures, "--recipe", stages.write_recipe(chain, stage), *flags, "--runs-dir", runs)
    run_cli(*command, "--name", "two", "--procs", "2", code=0)
    curves = logged_curves(whole.run)
    assert_same_curves(stage, curves, logged_curves(whole.run.with_name("two")))
    run_cli(*command, "--name", "again", "--procs", "2", "--set", "training.steps=11", code=0)
    run_cli(*command, "--name", "again", "--procs", "2", code=0)
    assert_same_state(whole.run.with_name("two"), whole.run.with_name("again"))
    run_cli(*command, "--name", "fewer", "--procs", "2", "--set", "training.steps=11", code=0)
    stages.train(pictures, stage, runs, chain, *words, name="fewer")
    assert_same_curves(stage, curves, logged_curves(whole.run.with_name("fewer")))


@pytest.mark.slow
@pytest.mark.parametrize("stage", [s for s in SHOWN if s != "single"])
def test_a_killed_process_goes_on_bit_for_bit(chain, stage, runs, start):
    pictures, words = chain / "pictures", [*named(chain, stage), "training.steps=60"]
    whole = stages.train(pictures, stage, runs, chain, *words, name="whole")
    command = [
        sys.executable,
        "-m",
        "titokctl",
        "train-tokenizer",
        pictures,
        "--recipe",
        stages.write_recipe(chain, stage),
    ]
    command += [f"--set={word}" for word in words] + ["--runs-dir", runs, "--name", "cut"]
    among = (whole.run.with_name("cut") / "checkpoints", "step-*", 1)
    child = start(
        [str(w) for w in command], env={**os.environ, **held(*among), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    )
    wait_for_files(child, *among)
    child.kill()
    child.communicate()
    assert not open_run(whole.run.with_name("cut")).is_finished
    cut = stages.train(pictures, stage, runs, chain, *words, name="cut")
    assert_same_state(whole.run, cut.run)


@pytest.mark.slow
def test_two_processes_train_as_one(run_cli, runs, tmp_path):
    (tmp_path / "small.yaml").write_text(RECIPE)
    data = tiny.class_folder(tmp_path / "data", per_class=10)
    words = ("train-tokenizer", data, "--recipe", "small.yaml", "--name")
    run_cli(*words, "one", code=0)
    run_cli(*words, "two", "--procs", "2", code=0)
    logs = [MetricsLog(runs / "tokenizer" / name / "metrics.jsonl").read() for name in ("one", "two")]
    for what in ("loss", "psnr"):
        one, two = ([r[what] for r in log] for log in logs)
        assert len(one) == 20
        np.testing.assert_allclose(two, one, rtol=1e-4)


def test_a_batch_that_the_processes_cannot_share_is_refused(tmp_path, monkeypatch):
    from titokctl.distributed.group import Group, single_group
    from titokctl.distributed.place import Place

    (tmp_path / "small.yaml").write_text(RECIPE)
    three = Group(Place(0, 3, 0), single_group().shared_store("test"))
    request = TrainTokenizer([tmp_path], str(tmp_path / "small.yaml"))
    with pytest.raises(UserError, match="8 is not a multiple of 3 processes") as refused:
        request.run(Context(tmp_path, group=three))
    assert "training.global_batch_size=12" in refused.value.hint, "whole micro batches of 4, too"
