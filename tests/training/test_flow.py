"""The flow over latents: exactness of sampling and training, and the chain from a cache of latents to a score."""

import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import toy_features
import trained
from caches import write_cache
from command_line import ROOT
from process_tree import signalled

from titokctl.cli.app import run
from titokctl.config import recipe_files
from titokctl.config.models import FlowConfig
from titokctl.config.recipe import FlowLossConfig
from titokctl.config.sampling import FlowSampling, SamplingConfig
from titokctl.context import Context
from titokctl.errors import UserError
from titokctl.formats.run_folder import finished_runs
from titokctl.formats.sample_set import SampleSet
from titokctl.formats.token_cache import CacheHeader, TokenCache
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.jobs.train.generator import TrainGenerator
from titokctl.models.flow.generator import FlowGenerator
from titokctl.models.generator import Batch, TrainingStep
from titokctl.models.noise import KeyedNoise
from titokctl.sampling.decoding import sample_ids
from titokctl.weights.load import load_generator

TOKENS, CHANNELS, CLASSES = 4, 3, 3
EDGE = 24  # of the toy network
LABELS = torch.tensor([0, 1, 2, 0, 1])
SMALL = ["model.width=32", "model.num_layers=2", "training.global_batch_size=8", "training.precision=float32",
         "training.steps=6", "training.evaluate_every=3", "training.checkpoint_every=3", "views=[plain]"]  # fmt: skip


@pytest.fixture(scope="module")
def flow() -> FlowGenerator:
    torch.manual_seed(0)
    config = FlowConfig(
        kind="flow", num_latent_tokens=TOKENS, token_size=CHANNELS, num_classes=CLASSES, width=32, num_layers=2,
        num_heads=2,
    )  # fmt: skip
    model = FlowGenerator(config)
    return tiny.enlarged(model, 5)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_an_image_depends_on_its_label_and_its_index_alone(flow, solver):
    settings = FlowSampling(num_steps=4, solver=solver, guidance_scale=1.5)
    whole = sample_ids(flow, LABELS, settings)
    assert whole.shape == (5, TOKENS, CHANNELS)
    assert whole.dtype == torch.float32
    order = torch.tensor([3, 1, 4])
    assert torch.allclose(sample_ids(flow, LABELS[order], settings, order), whole[order], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(whole[0], whole[3])
    assert sample_ids(flow, None, settings, torch.arange(2)).shape == (2, TOKENS, CHANNELS)


def test_noise_is_normal_and_keyed():
    noise = KeyedNoise(3, torch.arange(4_000)).normal(TOKENS, CHANNELS)
    assert noise.shape == (4_000, TOKENS, CHANNELS)
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    assert float((noise**4).mean()) == pytest.approx(3, abs=0.15)
    flat = noise.flatten(1)
    assert float((flat.T.corrcoef() - torch.eye(flat.shape[1])).abs().max()) < 0.08
    assert torch.equal(KeyedNoise(3, torch.tensor([7])).normal(TOKENS, CHANNELS)[0], noise[7])


def test_guidance_costs_one_pass_outside_its_interval(flow):
    seen: list[int] = []
    hook = flow.transformer.input.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    settings = FlowSampling(num_steps=4, solver="euler", guidance_schedule="constant", guidance_interval=(0.25, 0.75))
    sample_ids(flow, LABELS, settings)
    hook.remove()
    assert seen == [5, 10, 10, 5]


class Growing(FlowGenerator):
    """The field dx/dt = 2 t x, which multiplies noise by e."""

    def forward(self, ids, labels=None, times=None):
        return 2 * times[:, None, None] * ids


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_of_a_solver_falls_with_its_order(flow, solver, order):
    field = Growing(flow.config)
    exact = math.e * KeyedNoise(0, torch.arange(5)).normal(TOKENS, CHANNELS)

    def error(steps: int) -> float:
        return float((sample_ids(field, LABELS, FlowSampling(num_steps=steps, solver=solver)) - exact).norm())

    assert error(8) / error(16) == pytest.approx(2**order, rel=0.2)


def test_the_loss_is_the_squared_error_of_the_velocities(flow):
    latents = torch.randn(6, TOKENS, CHANNELS, generator=torch.Generator().manual_seed(0)) * 3 + 1
    flow.latent_mean.fill_(1.0)
    flow.latent_deviation.fill_(3.0)
    drawn = flow.draw(6, FlowLossConfig(), torch.Generator().manual_seed(1), TrainingStep(0, 1))
    labels = torch.tensor([0, 1, 2, 3, 3, 0])
    found = flow.loss(Batch(latents, labels, drawn.tensors), FlowLossConfig()).total
    z, e, t = ((latents - 1) / 3).numpy(), drawn.tensors["noise"].numpy(), drawn.tensors["times"].numpy()[:, None, None]
    with torch.inference_mode():
        v = flow(torch.from_numpy((1 - t) * e + t * z), labels, drawn.tensors["times"]).numpy()
    assert float(found.detach()) == pytest.approx(float(((v - (z - e)) ** 2).sum()), rel=1e-4)
    assert drawn.total_weight == 6 * TOKENS * CHANNELS
    flow.begin_training(latents)
    assert torch.allclose(flow.latent_mean, latents.mean((0, 1)), atol=1e-5)


def test_times_are_logit_normal(flow):
    times = flow.draw(20_000, FlowLossConfig(), torch.Generator().manual_seed(0), TrainingStep(0, 1)).tensors["times"]
    normal = torch.log(times / (1 - times))
    assert (float(normal.mean()), float(normal.std())) == pytest.approx((0, 1), abs=0.03)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a Gaussian tokenizer, a cache of its latents, a feature network and a reference."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TITOKCTL_RUNS", "runs")
    monkeypatch.syspath_prepend(tmp_path / "package")
    toy_features.install(tmp_path / "package")
    trained.tokenizer_run(
        Path("runs"), image_size=EDGE, quantizer="gaussian", codebook_size=None, normalize_codes=False
    )
    np.savez("ref.npz", np.random.default_rng(1).integers(0, 256, (60, EDGE, EDGE, 3), np.uint8))
    tiny.class_folder(Path("pictures"), per_class=12)
    assert run(["tokenize", "pictures", "-o", "latents.h5", "--device", "cpu"]) == 0
    return tmp_path


def train(*more: str) -> list[str]:
    fits = [f"model.num_latent_tokens={trained.TOKENS}", "model.token_size=4", "model.num_classes=2", *SMALL]
    words = ["train-gen", "latents.h5", "--recipe", "tiny-flow", "--device", "cpu"]
    return [*words, *(f"--set={each}" for each in fits), *more]


def test_from_latents_to_a_score(here, capsys):
    assert run([*train(), "--dry-run"]) == 0
    assert run(train("--set=val_fraction=0.2")) == 0
    (done,) = finished_runs(Path("runs"), "generator")
    assert list(done.path.glob("samples-*.png")), "previews"
    assert {"train_loss", "held_out_loss"} <= json.loads(
        (done.path / "metrics.jsonl").read_text().splitlines()[-1]
    ).keys()
    generator = load_generator(done.path)
    rows = TokenCache.open(Path("latents.h5")).latents.astype(np.float64)
    assert generator.latent_deviation.numpy() == pytest.approx(rows.std((0, 1)), rel=0.2)
    drawing = ["sample", "-n", "20", "--cfg", "1.0", "--cfg-interval", "0,0.5", "--steps", "3", "--solver", "euler"]
    assert run([*drawing, "-o", "one", "--device", "cpu"]) == 0
    assert run([*drawing, "-o", "two", "--device", "cpu", "--batch-size", "3"]) == 0
    one, two = (TokenCache.open(SampleSet.open(Path(name)).ids).latents for name in ("one", "two"))
    assert one.shape == (20, trained.TOKENS, 4)
    assert np.array_equal(one, two)
    assert run(["decode", "one/ids.h5", "-o", "again.npz", "--device", "cpu"]) == 0
    with np.load("again.npz") as again, np.load("one/images.npz") as first:
        assert np.array_equal(again["arr_0"], first["arr_0"])
    judging = ["--ref", "ref.npz", "--features", "toy", "--metrics", "fid", "--device", "cpu"]
    for samples in ("one", "latents.h5"):
        assert run(["fid", samples, *judging]) == 0
    capsys.readouterr()
    assert run(["sample", "-n", "4", "--choice-temperature", "2", "-o", "other"]) == 2
    assert "a generator of kind flow has no setting" in capsys.readouterr().err


def weights(name: str) -> dict[str, torch.Tensor]:
    return dict(load_generator(Path("runs/generator") / name).state_dict())


def test_a_killed_run_is_resumed_to_the_same_weights(here, python):
    assert run(train("--name", "whole")) == 0
    done = signalled(
        python, train("--name", "parts"), signal.SIGKILL, here / "runs/generator/parts/checkpoints", "step-*3", 1
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert run(train("--name", "parts")) == 0
    whole, parts = weights("whole"), weights("parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_processes_share_the_work_of_a_flow_and_its_settings_race(here, run_cli):
    environment = {"TITOKCTL_RUNS": "runs", "PYTHONPATH": f"{ROOT}{os.pathsep}{here / 'package'}"}

    def titokctl(*words: str) -> None:
        run_cli(*words, code=0, cwd=here, env=environment)

    titokctl(*train("--name", "whole"))
    titokctl(*train("--name", "shared", "--procs", "2"))
    whole, shared = weights("whole"), weights("shared")
    assert all(torch.allclose(whole[name], shared[name], atol=1e-4) for name in whole)
    drawing = ["sample", "--generator", "whole", "-n", "40", "--cfg", "1.0", "--steps", "3", "--device", "cpu"]
    titokctl(*drawing, "-o", "one")
    titokctl(*drawing, "-o", "three", "--procs", "3")
    one, three = (TokenCache.open(SampleSet.open(Path(name)).ids).latents for name in ("one", "three"))
    assert np.array_equal(one, three)
    titokctl("tune", "--ref", "ref.npz", "--features", "toy", "--images", "400", "--candidates", "3", "--device", "cpu")
    titokctl(*drawing, "-o", "tuned-set", "--settings", "tuned/settings.yaml")


def test_recipe_and_cache_of_other_kinds_are_named(here, capsys):
    capsys.readouterr()
    assert run(["train-gen", "latents.h5", "--recipe", "tiny", "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "recipe tiny trains a generator of ids, and latents.h5 holds latents" in said
    assert "such as tiny-flow" in said
    write_cache(Path("ids.h5"), 12)
    assert run(["train-gen", "ids.h5", "--recipe", "tiny-flow", "--device", "cpu"]) == 1
    assert "holds ids" in capsys.readouterr().err
    assert run(train("--set=model.token_size=5")) == 1
    assert "model.token_size: the recipe says" in capsys.readouterr().err
    assert run(["train-gen", "latents.h5", "--device", "cpu"]) == 1
    assert "no shipped generator recipe has the 8 tokens and latents of 4" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tiny-flow", "flow-b-ll-32"])
def test_recipes_fit_the_tokenizers_that_they_name(name):
    tokenizer = {"tiny-flow": "tiny-vae", "flow-b-ll-32": "titok-ll-32-vae"}[name]
    ours, theirs = recipe_files.load(name, "generator").model, recipe_files.load(tokenizer, "tokenizer").model
    assert (ours.num_latent_tokens, ours.token_size) == (theirs.num_latent_tokens, theirs.token_size)


def test_settings_of_another_kind_are_refused(flow):
    with pytest.raises(ValueError, match="expected the settings of this kind, FlowSampling"):
        sample_ids(flow, LABELS, SamplingConfig())


def test_a_flow_keeps_no_part_of_an_image(flow, here, capsys):
    given, mask = torch.zeros(5, TOKENS, CHANNELS), torch.arange(TOKENS) < 2
    with pytest.raises(UserError, match="a generator of kind flow can't keep a part of an image"):
        sample_ids(flow, LABELS, FlowSampling(), known=given, known_mask=mask)
    assert run(train("--set=training.steps=1", "--set=training.evaluate_every=1")) == 0
    capsys.readouterr()
    assert run(["sample", "-n", "4", "--keep", "latents.h5", "--keep-tokens", "0-1", "-o", "set"]) == 1
    error = " ".join(capsys.readouterr().err.split())
    assert "a generator of kind flow can't keep a part of an image" in error
    assert "hint: generators of kind maskgit" in error
    assert not Path("set").exists()


def mixture(count: int, seed: int) -> np.ndarray:
    """Points (count, 1, 2) of three Gaussians that overlap little."""
    rng = np.random.default_rng(seed)
    centres = np.array([[4.0, 1.0], [1.0, 3.0], [5.0, 6.0]])
    shapes = np.array([[[0.6, 0.3], [0.0, 0.3]], [[0.3, 0.0], [-0.2, 0.5]], [[0.4, 0.0], [0.4, 0.2]]])
    part = rng.choice(3, count, p=[0.5, 0.3, 0.2])
    return (centres[part] + np.einsum("nij,nj->ni", shapes[part], rng.normal(size=(count, 2))))[:, None]


@pytest.mark.slow
def test_a_mixture_of_gaussians_is_matched_in_mean_and_covariance(tmp_path):
    points = mixture(60_000, 0).astype(np.float16)
    header = CacheHeader(
        tokenizer={}, encoder_sha256="e" * 64, weights_sha256="f" * 64, codebook_size=0, token_size=2,
        num_latent_tokens=1, image_size=64, preprocessing={"size": 64}, source={"kind": "test"}, created_by="tests",
    )  # fmt: skip
    with TokenCacheWriter(tmp_path / "points.h5", header, num_rows=len(points), key_bytes=6 * len(points)) as writer:
        writer.append(points, np.full(len(points), -1), [f"{i:06d}" for i in range(len(points))])
    changes = [
        "model.num_latent_tokens=1", "model.token_size=2", "model.width=64", "model.num_layers=3", "views=[plain]",
        "training.steps=3000", "training.global_batch_size=1024", "training.precision=float32",
        "training.ema_decay=0.999", "training.evaluate_every=3000", "training.checkpoint_every=3000",
    ]  # fmt: skip
    done = TrainGenerator(tmp_path / "points.h5", "tiny-flow", changes).run(Context(tmp_path / "runs"))
    generator = load_generator(done.weights)
    drawn = sample_ids(generator, None, FlowSampling(num_steps=32), torch.arange(60_000)).numpy()[:, 0]
    wanted = mixture(2_000_000, 1)[:, 0]
    deviation = wanted.std(0)
    assert np.abs(drawn.mean(0) - wanted.mean(0)).max() < 0.02 * np.abs(wanted.mean(0)).min()
    scale = np.outer(deviation, deviation)
    assert (np.abs(np.cov(drawn.T) - np.cov(wanted.T)) / scale).max() < 0.02
