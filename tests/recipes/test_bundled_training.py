"""recipes/bundled/train.py makes two weights files that load and fit each other, and does nothing twice."""

import json
import os
import subprocess
import sys

import pytest
from command_line import PATIENCE_S, ROOT

from titokctl.weights.hashes import encoder_sha256
from titokctl.weights.load import load_tokenizer
from titokctl.weights.read import read

SMALL = ("model.encoder.num_layers=1", "model.decoder.num_layers=1", "training.global_batch_size=8",
         "loss.perceptual=none", "training.steps=6", "training.evaluate_every=6",
         "codebook.continuous_steps=2")  # fmt: skip
SMALL_GENERATOR = ("model.num_layers=2", "training.steps=4", "training.evaluate_every=4",
                   "training.global_batch_size=8")  # fmt: skip


@pytest.mark.slow
def test_from_nothing_to_two_files_that_fit(tmp_path):
    words = [sys.executable, str(ROOT / "recipes/bundled/train.py"), "-o", str(tmp_path / "made"), "--device", "cpu"]
    words += ["--images", "60", "--held-out", "10"]
    words += [part for change in SMALL for part in ("--set", change)]
    words += [part for change in SMALL_GENERATOR for part in ("--set-generator", change)]
    for _ in range(2):
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, env=dict(os.environ))
        assert done.returncode == 0, done.stdout + done.stderr
    tokenizer, generator = (tmp_path / "made" / f"{name}.safetensors" for name in ("scenes-64", "maskgit-scenes-64"))
    inputs = json.loads(read(generator).extra["inputs"])
    assert inputs["encoder_sha256"] == encoder_sha256(load_tokenizer(tokenizer))
    assert "red-ball" in inputs["class_names"]
    assert str(tmp_path) not in json.dumps(dict(read(generator).extra)), "no place on this machine is recorded"
    numbers = json.loads((tmp_path / "made/numbers.json").read_text())
    assert numbers["tokenizer"]["val_psnr"] > 0
    assert numbers["seconds"].keys() >= {"render", "train-tokenizer", "train-gen"}
