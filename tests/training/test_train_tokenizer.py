"""train-tokenizer: it learns, keeps its codes in use, resumes bit for bit, and says what is wrong with its input."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import stages
import tiny
import torch
from command_line import ROOT
from PIL import Image
from process_tree import held, wait_for_files
from remarks import Remarks
from safetensors.torch import load_file

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.images import preprocess
from titokctl.data.sources import open_source
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.evaluation.baselines import mean_colour_psnr
from titokctl.formats import checkpoint
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import open_run
from titokctl.jobs.evaluate.reconstruct import Reconstruct
from titokctl.jobs.train.tokenizer import TrainTokenizer
from titokctl.models.perceptual import Lite0Perceptual
from titokctl.progress import SilentProgress
from titokctl.weights.feature_networks import load_lite0
from titokctl.weights.hashes import encoder_sha256
from titokctl.weights.load import load_tokenizer

SILENT = SilentProgress().say
RECIPE = f"""{stages.ALONE}
optimizer: {{learning_rate: 3e-3, muon_learning_rate: 5e-3}}
schedule: {{warmup_steps: 5}}
training: {{steps: 60, global_batch_size: 8, ema_decay: 0.9, log_every: 1, evaluate_every: 30, checkpoint_every: 10}}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def pictures(tmp_path):
    return tiny.class_folder(tmp_path / "pictures", per_class=12)


@pytest.fixture
def train(recipe, pictures, runs):
    """Train in this process: train("a.b=value", name=...)."""

    def call(*overrides, data=pictures, validation=(), name=None):
        with StopRequest() as stop:
            return TrainTokenizer([data], str(recipe), overrides, validation, name=name).run(Context(runs, stop=stop))

    return call


def test_a_run_learns_and_ends_with_a_tokenizer_its_metrics_and_a_picture(train, pictures):
    result = train(validation=[pictures])
    records = MetricsLog(result.run / "metrics.jsonl").read()
    psnr = [r["psnr"] for r in records if "psnr" in r]
    assert len(psnr) == 60
    assert np.mean(psnr[-5:]) > psnr[0] + 0.3
    assert result.metrics["val_psnr"] > 10
    assert 0 < result.metrics["val_codebook_usage"] <= 1
    with Image.open(result.run / "reconstructions-00000060.png") as picture:
        assert picture.size[0] > 8 * 32
    tokenizer = load_tokenizer(result.run)
    assert encoder_sha256(tokenizer) == result.encoder_sha256 == open_run(result.run).hashes["encoder_sha256"]
    assert tokenizer.tokenize(torch.rand(2, 3, 32, 32)).shape == (2, 8)


def test_a_codebook_that_falls_out_of_use_is_warned_about_once(recipe, tmp_path, runs):
    one_picture = tiny.class_folder(tmp_path / "one", per_class=1, names=("cat",))
    collapsing = ("augmentation={crop: center, flip: false}", "codebook={reseed_decay: null}",
                  "model.codebook_size=16384", "training.steps=110", "training.evaluate_every=500")  # fmt: skip
    said = Remarks()
    with StopRequest() as stop:
        request = TrainTokenizer([one_picture], str(recipe), collapsing)
        result = request.run(Context(runs, progress=said, stop=stop))
    warnings = [line for line in said.said if "of the codebook is in use" in line]
    assert len(warnings) == 1
    assert "at step 101" in warnings[0], "once there were a hundred steps to judge by"
    used = [r["codebook_usage"] for r in MetricsLog(result.run / "metrics.jsonl").read() if "codebook_usage" in r]
    assert len(used) == 10
    assert max(used) < 0.1


def test_a_few_held_out_images_are_no_sign_of_a_codebook_out_of_use(recipe, pictures, tmp_path, runs):
    one_picture, said = tiny.class_folder(tmp_path / "one", per_class=1, names=("cat",)), Remarks()
    few = ("model.codebook_size=256", "training.steps=7")
    with StopRequest() as stop:
        request = TrainTokenizer([pictures], str(recipe), few, [one_picture])
        result = request.run(Context(runs, progress=said, stop=stop))
    assert result.metrics["val_codebook_usage"] < 0.1
    assert "of the codebook is in use" not in said


def test_the_same_command_finds_the_same_run_and_other_settings_another(train):
    first = train("training.steps=2")
    assert train("training.steps=2").run == first.run
    assert train("training.steps=2", "training.seed=1").run != first.run
    with pytest.raises(UserError, match="other settings") as refused:
        train("training.steps=3", name=first.run.name)
    assert "training.steps: 2 -> 3" in refused.value.message


def test_a_killed_run_goes_on_bit_for_bit(train, start, python, recipe, pictures, runs):
    whole = train("training.steps=35", "training.evaluate_every=500", name="whole")
    words = [python, "-m", "titokctl", "train-tokenizer", pictures, "--recipe", recipe, "--name", "cut"]
    words += ["--set", "training.steps=35", "--set", "training.evaluate_every=500", "--runs-dir", runs]
    among = (runs / "tokenizer" / "cut" / "checkpoints", "step-*", 1)
    child = start(
        [str(w) for w in words], env={**os.environ, **held(*among), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    )
    wait_for_files(child, *among)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not open_run(runs / "tokenizer" / "cut").is_finished
    cut = train("training.steps=35", "training.evaluate_every=500", name="cut")
    a, b = load_file(whole.weights), load_file(cut.weights)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_gaussian_tokenizer_trains_too(train):
    result = train("model.quantizer=gaussian", "model.codebook_size=null", "codebook.continuous_steps=0",
                   "codebook.reseed_decay=null", "training.steps=5")  # fmt: skip
    assert load_tokenizer(result.run).tokenize(torch.rand(1, 3, 32, 32)).shape == (1, 8, 4)


def test_the_perceptual_loss_joins_at_its_step(train):
    without = train("training.steps=8", name="without")
    joined = train("training.steps=8", "loss.perceptual={lite0: 0.1}", "loss.perceptual_start=6", name="with")
    losses = [
        [r["loss"] for r in MetricsLog(run.run / "metrics.jsonl").read() if "loss" in r] for run in (without, joined)
    ]
    assert losses[0][:6] == losses[1][:6]
    assert losses[1][6] > losses[0][6] + 0.01
    last = joined.metrics
    parts = 10 ** (-last["psnr"] / 10) + last["quantizer_loss"] + 0.1 * last["lite0"]
    assert last["loss"] == pytest.approx(parts, rel=1e-4)
    assert "lite0" not in without.metrics


def test_the_perceptual_loss_ranks_a_blur_behind_a_shift():
    distance = Lite0Perceptual(load_lite0())
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.avg_pool2d(picture, 3, 1, 1)
    blurred = torch.nn.functional.avg_pool2d(picture, 5, 1, 2)
    shifted = picture.roll(1, -1)
    assert distance(picture, picture) == 0
    assert distance(blurred, picture) > distance(shifted, picture)
    made = picture.clone().requires_grad_()
    distance(made + 0.01, picture).backward()
    assert made.grad is not None
    assert all(p.grad is None for p in distance.parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere", "nowhere"),
        (lambda p: _made(p / "empty"), "empty"),
        (lambda p: _made(p / "text", "notes.txt"), "text"),
    ],
)
def test_input_without_images_is_one_sentence_and_a_hint(train, tmp_path, make, message):
    with pytest.raises(UserError, match=message) as refused:
        train(data=make(tmp_path))
    assert refused.value.hint


def _made(folder, *files):
    folder.mkdir()
    for name in files:
        (folder / name).write_text("no picture")
    return folder


def test_after_encoder_steps_only_the_decoder_goes_on(train):
    result = train("training.steps=20", "encoder_steps=10", "training.keep_checkpoints=5", name="kept")
    folder = result.run / "checkpoints"
    states = [checkpoint.load_newest(folder, SILENT).tensors]
    for path in sorted(folder.glob("step-*"))[1:]:
        (path / "state.json").unlink()
    states.append(checkpoint.load_newest(folder, SILENT).tensors)
    last, at_ten = states
    same = [k for k in last if k.startswith("tokenizer.ema.") and torch.equal(last[k], at_ten[k])]
    assert {"tokenizer.ema.latent_tokens", "tokenizer.ema.quantizer.codebook"} <= set(same)
    assert not any(k.startswith("tokenizer.ema.decoder.blocks") for k in same)


def test_a_demo_never_writes_into_a_folder_of_other_things(run_cli, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tokens.h5").write_text("precious")
    refused = run_cli("demo", "-o", "mine", code=1)
    assert "holds other files" in refused.stderr
    assert "hint:" in refused.stderr
    assert (tmp_path / "mine" / "tokens.h5").read_text() == "precious"


def test_a_bad_picture_is_named_and_another_stands_in(train, pictures):
    (pictures / "cat" / "zz.jpg").symlink_to("/nonexistent")
    assert train("training.steps=4").weights.is_file()


def test_a_plan_measures_the_speed_and_a_run_profiles_some_steps(recipe, pictures, runs):
    """--measure estimates the whole run and writes nothing; --profile writes a trace; the log has a baseline."""
    steps = ("training.steps=9", "training.evaluate_every=9", "training.log_every=9")
    request = TrainTokenizer([pictures], str(recipe), steps, [pictures], name="one", profile=True)
    cost = replace(request, measure=True).plan(Context(runs)).cost
    assert cost.seconds == pytest.approx(cost.images_seen / cost.images_per_s)
    assert not (runs / "tokenizer").exists()
    talk = Remarks()
    done = request.run(Context(runs, progress=talk))
    trace = json.loads((done.run / "trace.json").read_text())
    assert {"aten::addmm", "aten::linear"} & {event["name"] for event in trace["traceEvents"]}
    assert "profile of 3 steps" in talk
    assert done.metrics["images_per_s_per_device"] == done.metrics["images_per_s"]
    read = open_source([pictures])
    pixels = np.stack([preprocess(s.data, PreprocessingConfig(size=32)) for s in read.read_many(range(len(read)))])
    assert done.metrics["val_psnr_mean_colour"] == pytest.approx(mean_colour_psnr(pixels), abs=1e-4)
    again = Reconstruct([pictures], str(done.run), runs / "again", features="none", lpips=False).run(Context(runs))
    assert (again.psnr_pca, again.psnr_gaussian) == (done.metrics["val_psnr_pca"], done.metrics["val_psnr_gaussian"])
    glossary = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert not [name for name in done.metrics if f"`{name}`" not in glossary]


def test_unusable_pictures_are_found_before_the_first_step_and_accepted_by_their_share(train, pictures, recipe, runs):
    files = sorted(path for path in pictures.rglob("*") if path.is_file())
    bad = [files[1], files[13], files[14]]
    for path in bad:
        path.write_bytes(b"no picture")
    keys = [str(path.relative_to(pictures).with_suffix("")) for path in bad]
    with pytest.raises(UserError, match=r"3 of 24 images \(12.50%\) can't be used") as caught:
        train("training.steps=4")
    assert all(key in caught.value.message for key in keys)
    enough = float(caught.value.hint.split("--max-rejected ")[1].split()[0])  # what the hint says
    job = TrainTokenizer([pictures], str(recipe), ["training.steps=4"], max_rejected=enough)
    progress = Remarks()
    made = job.run(Context(runs, progress=progress))
    listed = (made.run / "rejected.jsonl").read_text()
    assert [json.loads(line)["key"] for line in listed.splitlines()] == keys
    assert sum("3 of 24 images can't be used" in text for text in progress.said) == 1
