"""train-gen with an autoregressive generator: it resumes bit for bit, is the same in two processes, and learns."""

import os
import signal

import numpy as np
import pytest
import torch
from caches import write_cache
from process_tree import held, wait_for_files
from safetensors.torch import load_file

from titokctl.config import recipe_files
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import open_run
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.jobs.evaluate.nll import Nll
from titokctl.jobs.train.generator import TrainGenerator
from titokctl.weights.load import load_generator

LONGER = ("training.steps=20", "training.log_every=1")


def weights(run):
    return load_file(open_run(run).product_path)


def losses(run):
    return {r["step"]: r["loss"] for r in MetricsLog(run / "metrics.jsonl").read() if "loss" in r}


def test_a_killed_run_goes_on_bit_for_bit_through_the_annealing(train, start, python, runs, cache, autoregressive):
    whole, _ = train(*LONGER, name="whole", recipe=autoregressive)
    run, among = runs / "generator" / "cut", (runs / "generator" / "cut" / "checkpoints", "step-*", 1)
    settings = [word for setting in LONGER for word in ("--set", setting)]
    words = [
        python,
        "-m",
        "titokctl",
        "train-gen",
        cache,
        "--recipe",
        autoregressive,
        *settings,
        "--name",
        "cut",
    ]
    child = start([*map(str, words)], env={**os.environ, **held(*among), "TITOKCTL_RUNS": str(runs)})
    wait_for_files(child, *among)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    again, talk = train(*LONGER, name="cut", recipe=autoregressive)
    assert "resuming from step" in talk
    a, b = weights(whole.run), weights(run)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert losses(again.run) == losses(whole.run)


def test_what_a_run_logs_and_leaves(train, autoregressive):
    result, _ = train("val_fraction=0.2", name="one", recipe=autoregressive)
    assert result.metrics["held_out_bits_per_id"] == pytest.approx(result.metrics["held_out_loss"] / np.log(2))
    model = load_generator(result.weights)
    assert model.config.kind == "autoregressive"
    assert open_run(result.run).inputs["val_fraction"] == 0.2


def test_options_for_memory_leave_the_losses_alone(train, autoregressive):
    no_dropout = ("model.dropout=0.0", "model.attention_dropout=0.0")
    options = ("training.micro_batch_size=4", "training.activation_checkpointing=true")
    first, _ = train(*no_dropout, name="first", recipe=autoregressive)
    second, _ = train(*no_dropout, *options, name="second", recipe=autoregressive)
    assert losses(second.run) == pytest.approx(losses(first.run), rel=1e-4)


@pytest.mark.slow
def test_processes_share_each_batch(train, run_cli, runs, cache, autoregressive):
    no_dropout = ("model.dropout=0.0", "model.attention_dropout=0.0", *LONGER, "training.global_batch_size=18")
    one, _ = train(*no_dropout, name="one", recipe=autoregressive)
    settings = [word for setting in no_dropout for word in ("--set", setting)]
    run_cli("train-gen", cache, "--recipe", autoregressive, *settings, "--procs", 3, "--name", "three", code=0)
    assert losses(runs / "generator" / "three") == pytest.approx(losses(one.run), rel=1e-3)


def test_weights_to_start_from(train, autoregressive):
    """Tables of tokens are matched row by row: another number of classes keeps the codes."""
    first, _ = train(name="first", recipe=autoregressive)
    second, talk = train("model.num_classes=5", "training.steps=1", "schedule.warmup_steps=1", name="second",
                         recipe=autoregressive, init=str(first.run))  # fmt: skip
    assert "resized: token_embedding.weight" in talk
    assert "none left" in talk
    a, b = (load_generator(result.weights).token_embedding.weight for result in (first, second))
    assert torch.equal(a[:16], b[:16]), "the first step has a rate of 0"


@pytest.mark.slow
def test_a_plan_counts_and_measures(run_cli, cache, autoregressive):
    words = ("train-gen", cache, "--recipe", autoregressive, "--json")
    plan = run_cli(*words, "--measure", code=0).json["plan"]
    model = recipe_files.load(str(autoregressive), "generator").model
    assert plan["images_per_s"] > 0
    assert plan["tokens"] == 20 * 16 * model.num_latent_tokens


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("loss.annealed_until=0.2", "annealed_until 0.2 (step 4) is before loss.random_until 0.4 (step 8)"),
        ("loss.annealed_until=21", "annealed_until 21 is after the last of 20 steps"),
        ("loss.mask_schedule=arccos", "loss.mask_schedule: unknown field"),
        ("sampling.num_steps=8", "sampling.num_steps: unknown field"),
        ("sampling.choice_temperature=2", "sampling.choice_temperature: unknown field"),
        ("sampling.top_p=0", "sampling.top_p"),
        ("sampling.top_k=0", "sampling.top_k"),
        ("sampling.guidance_interval=[0.5,0.2]", "sampling.guidance_interval: should begin below its end"),
        ("sampling.guidance_interval=[0.5,1.2]", "sampling.guidance_interval"),
        ("model.num_heads=3", "not a multiple of num_heads"),
        ("model.architecture=vit", "leave out 'vit'"),
    ],
)
def test_wrong_recipes_are_named(train, autoregressive, override, message):
    with pytest.raises(UserError) as caught:
        train(override, recipe=autoregressive)
    assert message in caught.value.message


@pytest.mark.parametrize("override", ["sampling.temperature=1", "sampling.top_k=5", "loss.random_until=0.5"])
def test_settings_of_an_autoregressive_generator_for_a_maskgit_are_named(train, override):
    with pytest.raises(UsageError, match=f"{override.split('=')[0]}: unknown field"):
        train(override)


@pytest.mark.slow
def test_a_known_entropy_is_reached_within_a_hundredth(tmp_path, cache, autoregressive):
    """Ids of a Markov chain: the first is one of 16, each further one of 4 that the id before it allows."""
    rng = np.random.default_rng(0)
    allowed = np.stack([rng.permutation(16)[:4] for _ in range(16)])

    def written(name, rows):
        path = write_cache(tmp_path / "model.h5", 1)
        ids = np.empty((rows, 8), np.uint16)
        ids[:, 0] = rng.integers(0, 16, rows)
        for k in range(1, 8):
            ids[:, k] = allowed[ids[:, k - 1], rng.integers(0, 4, rows)]
        header = TokenCache.open(path).header
        with TokenCacheWriter(tmp_path / name, header, num_rows=rows, key_bytes=8 * rows) as writer:
            writer.append(ids, np.zeros(rows, np.int64), [f"{i:06d}" for i in range(rows)], {"flip": ids})
        path.unlink()
        return tmp_path / name

    tokens, held_out = written("tokens.h5", 30_000), written("held_out.h5", 4_000)
    changes = ["training.steps=900", "training.global_batch_size=128", "training.ema_decay=0.98", "model.dropout=0.0",
               "model.attention_dropout=0.0", "initialization=fan-in", "views=[plain]", "loss.label_dropout=0.0",
               "optimizer.learning_rate=3e-3", "schedule.warmup_steps=30", "schedule.end_fraction=0.01",
               "training.evaluate_every=900", "training.checkpoint_every=900", "training.log_every=300"]  # fmt: skip
    context = Context(tmp_path / "runs")
    TrainGenerator(tokens, str(autoregressive), changes, name="chain").run(context)
    found = Nll(held_out, "generator/chain").run(context).numbers
    entropy = 4 + 7 * 2  # bits an image
    assert entropy <= found["bits_per_image"] + 4 * found["standard_error_per_image"]
    assert found["bits_per_image"] <= 1.01 * entropy
