"""keep_best and stop_after: the product is made from the best held-out number, whatever happened on the way."""

import json
import os
import signal
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from stages import Leave
from stages import train as train_stage

from titokctl.config.training import TrainingConfig
from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.errors import Stopped, UserError
from titokctl.formats.checkpoint import load, steps_in
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import open_run
from titokctl.jobs.caches.inspect import Inspect
from titokctl.jobs.train.generator import TrainGenerator
from titokctl.training.best import Best, lower_is_better

HELD_OUT = ("val_fraction=0.2", "training.evaluate_every=5", "training.keep_checkpoints=1")
# The rate is so high that the held-out loss rises after the first evaluations.
OVERFITS = (*HELD_OUT, "optimizer.learning_rate=0.05", "training.steps=40", "training.keep_best=held_out_loss")
STILL = ("optimizer.learning_rate=1e-30", "optimizer.weight_decay=0.0")


def curve(run, name):
    return {r["step"]: r[name] for r in MetricsLog(run / "metrics.jsonl").read() if name in r and r["step"]}


def best_of(run, name, better=min):
    values = curve(run, name)
    return next(step for step, value in values.items() if value == better(values.values()))


def test_the_product_is_that_of_the_lowest_held_out_loss_and_says_its_step(train):
    result, talk = train(*OVERFITS, name="one")
    run, best = open_run(result.run), best_of(result.run, "held_out_loss")
    assert best < 40, "the test needs a loss that rises again"
    assert run.step == best
    assert steps_in(run.path / "checkpoints") == [best, 40], "the best stays beside the newest"
    state = load(run.path / "checkpoints" / f"step-{best:08d}").tensors
    product = load_file(run.product_path)
    assert all(torch.equal(tensor, state[f"generator.ema.{name}"]) for name, tensor in product.items())
    assert result.metrics["held_out_loss"] == curve(run.path, "held_out_loss")[best]
    assert f"that of step {best}" in talk
    assert Inspect(run.product_path).run(Context()).facts["step"] == str(best)


def test_a_run_that_stops_improving_ends_early_and_is_finished(train):
    result, talk = train(*HELD_OUT, *STILL, "training.keep_best=held_out_loss", "training.stop_after=2", name="still")
    run = open_run(result.run)
    assert run.is_finished
    assert run.step == 5, "later evaluations give the same number, which is no better"
    assert max(curve(run.path, "loss")) == 15
    assert "ended early after step 15 of 20" in talk
    again, talk = train(*HELD_OUT, *STILL, "training.keep_best=held_out_loss", "training.stop_after=2", name="still")
    assert "finished already, with the weights of step 5 of 20" in talk
    assert again == result


@pytest.mark.parametrize("after", [7, 21, 33])
def test_a_stopped_run_keeps_the_best_from_before(train, cache, recipe, runs, after):
    whole, _ = train(*OVERFITS, name="whole")
    with StopRequest() as stop:
        talk = Leave(after, lambda: os.kill(os.getpid(), signal.SIGTERM))
        request = TrainGenerator(cache, str(recipe), OVERFITS, name="cut")
        with pytest.raises(Stopped):
            request.run(Context(runs, progress=talk, stop=stop))
    again, _ = train(*OVERFITS, name="cut")
    ours, theirs = open_run(again.run), open_run(whole.run)
    assert (ours.step, ours.hashes) == (theirs.step, theirs.hashes)
    assert curve(again.run, "held_out_loss") == curve(whole.run, "held_out_loss")


def test_a_wrong_name_costs_no_training_and_the_nearest_is_named(train, runs):
    with pytest.raises(UserError, match="unknown metric heldout_los") as refused:
        train(*HELD_OUT, "training.keep_best=heldout_los", name="one")
    assert "did you mean held_out_loss" in refused.value.hint
    assert not steps_in(runs / "generator" / "one" / "checkpoints")
    corrected, _ = train(*HELD_OUT, "training.keep_best=held_out_accuracy", name="one")
    assert open_run(corrected.run).step == best_of(corrected.run, "held_out_accuracy", max)


def test_without_held_out_images_it_is_refused(train, tmp_path):
    with pytest.raises(UserError, match="unknown metric held_out_loss"):
        train("training.keep_best=held_out_loss", name="one")
    pictures = tiny.class_folder(tmp_path / "pictures", per_class=8)
    with pytest.raises(UserError, match="needs held-out images") as refused:
        train_stage(pictures, "vqgan", tmp_path / "runs", tmp_path, "training.keep_best=val_psnr")
    assert "--val" in refused.value.hint


def test_stop_after_needs_a_number(train):
    with pytest.raises(UserError, match="stop_after 3 needs keep_best"):
        train("training.stop_after=3")


@pytest.mark.parametrize("stage", ["single", "vqgan"])
def test_tokenizers_keep_their_best_too(tmp_path, stage):
    pictures = tiny.class_folder(tmp_path / "pictures", per_class=8)
    wanted = ("training.keep_best=val_psnr", "training.evaluate_every=4", "optimizer.learning_rate=0.02")
    made = train_stage(pictures, stage, tmp_path / "runs", tmp_path, *wanted, validation=[pictures])
    run = open_run(made.run)
    assert run.step == best_of(run.path, "val_psnr", max)
    assert json.loads((run.path / "run.json").read_text())["step"] == run.step


def test_losses_and_distances_are_better_when_lower():
    lower = ["held_out_loss", "gap", "val_rfid", "val_rlite0_fid", "unigram_entropy", "held_out_loss_at_0.5"]
    assert all(map(lower_is_better, lower))
    assert not any(map(lower_is_better, ["val_psnr", "val_ssim", "held_out_accuracy", "val_codebook_usage"]))


def test_numbers_that_are_not_finite_are_never_the_best():
    config = TrainingConfig(steps=10, global_batch_size=1, keep_best="val_psnr", stop_after=2)
    best = Best(config, {})
    assert not best.judge(1, {"val_psnr": float("nan")})
    assert best.judge(2, {"val_psnr": 20.0})
    assert not best.judge(3, {"val_psnr": float("nan")})
    assert not best.is_over
    assert Best(config, best.scalars()).judge(4, {"val_psnr": 20.0}) is False


def test_inspect_takes_what_other_commands_take(train, run_cli, runs):
    result, _ = train(*OVERFITS, name="one")
    best, context = open_run(result.run).step, Context(runs)
    for reference, step in ((f"one@{best}", str(best)), ("generator/one@40:raw", 40), (f"{result.run}@latest", 40)):
        assert Inspect(Path(reference)).run(context).facts["step"] == step
    at_folder = Inspect(result.run / "checkpoints" / "step-00000040").run(context)
    assert at_folder.what == "generator weights"
    assert (at_folder.facts["step"], at_folder.facts["weights"]) == (40, "averaged")
    assert f"@{best}, @40" in run_cli("inspect", "one", "--runs-dir", runs, code=0).stdout
    with pytest.raises(UserError, match="does not keep @39") as refused:
        Inspect(Path("one@39")).run(context)
    assert f"one@{best}" in refused.value.hint, "what it keeps is listed"
    with pytest.raises(UserError, match="no such file, folder, run or model: two"):
        Inspect(Path("two")).run(context)
