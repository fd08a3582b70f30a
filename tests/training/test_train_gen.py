"""train-gen as people use it: it learns, resumes bit for bit, and says what does not fit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from caches import write_cache
from safetensors.torch import load_file

from titokctl.config import recipe_files
from titokctl.data.tokens import TokenRows, held_out
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import open_run
from titokctl.formats.token_cache import TokenCache
from titokctl.models.initialization import initialize
from titokctl.models.maskgit.generator import MaskGit
from titokctl.training.masked_tokens import MaskedTokens


def train(run_cli, cache, recipe, *more, code=0, **options):
    return run_cli("train-gen", cache, "--recipe", recipe, "--json", *more, code=code, **options)


def weights_of(run):
    return load_file(open_run(run).product_path)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_ends_with_weights_metrics_and_lineage(run_cli, runs, cache, recipe):
    result = train(run_cli, cache, recipe, "--name", "one").json
    run = open_run(runs / "generator" / "one")
    assert result["run"] == str(run.path)
    assert run.is_finished
    assert run.product_path.is_file()
    assert run.inputs["encoder_sha256"] == "e" * 64
    steps = [r["step"] for r in MetricsLog(run.path / "metrics.jsonl").read() if "loss" in r]
    assert steps == [10, 20, 30, 40]


def test_the_same_command_again_changes_nothing(run_cli, runs, cache, recipe):
    train(run_cli, cache, recipe, "--name", "one")
    before = (runs / "generator" / "one" / "weights.safetensors").stat()
    again = train(run_cli, cache, recipe, "--name", "one")
    assert "finished already" in again.stderr
    assert (runs / "generator" / "one" / "weights.safetensors").stat().st_mtime_ns == before.st_mtime_ns


LONGER = ("--set", "training.steps=200", "--set", "training.log_every=1")


def test_a_stopped_run_goes_on_bit_for_bit(run_cli, runs, cache, recipe):
    train(run_cli, cache, recipe, *LONGER, "--name", "whole")
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        stop_and_go_on(run_cli, runs, cache, recipe, how, f"cut-{how.name}")


def stop_and_go_on(run_cli, runs, cache, recipe, how, name):
    words = [sys.executable, "-m", "titokctl", "train-gen", cache, "--recipe", recipe, *LONGER, "--name", name]
    child = subprocess.Popen(
        list(map(str, words)), env={**os.environ, "TITOKCTL_RUNS": str(runs)}, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: any((runs / "generator" / name / "checkpoints").glob("step-*")), child)
    child.send_signal(how)
    talk = child.communicate()[1]
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 75}.get(how, -how), talk
    assert not open_run(runs / "generator" / name).is_finished, "it was stopped before its end"
    again = train(run_cli, cache, recipe, *LONGER, "--name", name)
    assert "going on from step" in again.stderr
    assert same(weights_of(runs / "generator" / "whole"), weights_of(runs / "generator" / name))
    logged = [r["step"] for r in MetricsLog(runs / "generator" / name / "metrics.jsonl").read() if "loss" in r]
    assert logged == list(range(1, 201)), "every step is logged once"


def wait_for(condition, child):
    while not condition():
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.01)


def test_changed_settings_of_a_named_run_are_refused_with_a_list(run_cli, cache, recipe):
    train(run_cli, cache, recipe, "--name", "one")
    refused = train(run_cli, cache, recipe, "--name", "one", "--set", "optimizer.learning_rate=0.5", code=1)
    assert "optimizer.learning_rate: 0.001 -> 0.5" in refused.stderr
    assert "hint:" in refused.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_latent_tokens=9", "model.num_latent_tokens: the recipe says 9, the cache has 8"),
        ("model.codebook_size=32", "model.codebook_size: the recipe says 32, the cache has 16"),
        ("model.num_classes=2", "model.num_classes: the recipe says 2, the cache's labels need 3"),
        ("views=[plain, ten]", "the recipe wants ten, the cache has plain, flip"),
        ("training.global_batch_size=500", "fewer than one global batch of 500"),
    ],
)
def test_what_does_not_fit_is_named(run_cli, cache, recipe, override, message):
    refused = train(run_cli, cache, recipe, "--set", override, code=1)
    assert message in " ".join(refused.stderr.split())
    assert "hint:" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_unlabelled_caches_train_unconditionally(run_cli, tmp_path, recipe):
    cache = write_cache(tmp_path / "none.h5", 100, classes=0)
    done = train(run_cli, cache, recipe, "--set", "training.steps=2")
    assert "no labels" in done.stderr


def test_a_recipe_is_found_by_tokens_codes_and_classes(run_cli, runs, tmp_path):
    tiny = recipe_files.load("tiny", "generator").model
    cache = write_cache(tmp_path / "tiny.h5", 300, codes=tiny.codebook_size, tokens=tiny.num_latent_tokens, classes=5)
    found = run_cli("train-gen", cache, "--set", "training.steps=1", "--json", code=0)
    assert "recipe: generator/tiny" in found.stderr
    assert open_run(next((runs / "generator").iterdir())).settings["model"]["num_classes"] == 5


def test_no_fitting_recipe_is_one_sentence(run_cli, cache):
    refused = run_cli("train-gen", cache, code=1)
    assert "no shipped generator recipe has the 8 tokens and 16 codes" in " ".join(refused.stderr.split())
    assert "recipes cp" in refused.stderr


def test_held_out_rows_are_never_trained_on_and_survive_reordering(cache):
    keys = TokenCache.open(cache).keys
    kept = held_out(keys, 0.25)
    assert 20 < kept.sum() < 80
    assert (held_out(keys[::-1], 0.25)[::-1] == kept).all()


def test_each_epoch_sees_every_row_once(cache):
    rows = TokenRows(TokenCache.open(cache), ("plain",), None)
    view = torch.zeros(16, dtype=torch.int64)
    seen = torch.cat([rows.batch(0, step, 16, view).ids for step in range(25)])  # two epochs of 200
    everything = rows.at(torch.arange(200), torch.zeros(200, dtype=torch.int64)).ids
    assert torch.equal(unique_rows(seen[:200]), unique_rows(everything))
    assert torch.equal(unique_rows(seen[200:]), unique_rows(everything))


def unique_rows(ids):
    return torch.unique(ids, dim=0)


def test_views_and_the_memory_map_give_the_same_rows(cache, monkeypatch):
    opened = TokenCache.open(cache)
    positions, view = torch.arange(50), torch.arange(50) % 2
    resident = TokenRows(opened, ("plain", "flip"), None).at(positions, view)
    monkeypatch.setattr("titokctl.data.tokens._DEVICE_BUDGET_BYTES", 0)
    mapped = TokenRows(opened, ("plain", "flip"), None).at(positions, view)
    assert torch.equal(resident.ids, mapped.ids)
    assert torch.equal(resident.labels, mapped.labels)
    assert torch.equal(resident.ids[1], torch.from_numpy(opened.view("flip")[1].astype("int64")))


def test_micro_batches_give_the_gradient_of_the_whole_batch(cache, recipe):
    opened = TokenCache.open(cache)
    finals = []
    for micro in (16, 4):
        settings = recipe_files.load(
            str(recipe),
            "generator",
            [f"training.micro_batch_size={micro}", "model.dropout=0.0", "model.attention_dropout=0.0"],
        )
        torch.manual_seed(0)
        model = MaskGit(settings.model)
        initialize(model)
        task = MaskedTokens(model, settings, TokenRows(opened, settings.views, None))
        losses = []
        for step in range(20):
            task.prepare(step)
            losses.append(task.step(step)["loss"])
        finals.append(torch.stack(losses))
    torch.testing.assert_close(finals[0], finals[1], rtol=1e-4, atol=0)


def test_it_learns_what_the_label_decides(cache, recipe):
    settings = recipe_files.load(
        str(recipe),
        "generator",
        ["training.steps=300", "training.global_batch_size=64", "training.ema_decay=0.99", "views=[plain]"],
    )
    torch.manual_seed(0)
    model = MaskGit(settings.model)
    initialize(model)
    task = MaskedTokens(model.train(), settings, TokenRows(TokenCache.open(cache), settings.views, None))
    for step in range(300):
        task.prepare(step)
        task.step(step)
    generator = task.averaged()
    labels = torch.arange(3)
    logits = generator(torch.full((3, 8), settings.model.mask_id), labels)
    assert torch.equal(logits[:, 0].argmax(-1), labels), "the first id is the class"
