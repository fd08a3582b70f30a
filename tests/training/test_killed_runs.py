"""kill -9 at random moments while a run is made longer or started over: its product decodes its caches afterwards."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import tiny
from command_line import ROOT
from remarks import Remarks
from stages import train, write_recipe

from titokctl.context import Context
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.tokenize.request import Tokenize
from titokctl.weights.chain import tokenizer_with
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_tokenizer

KILLS = 20


@pytest.mark.slow
def test_kills_at_random_moments_leave_the_product_usable(tmp_path):
    pictures, runs = tiny.class_folder(tmp_path / "pictures", per_class=6), tmp_path / "runs"
    first = train(pictures, "single", runs, tmp_path, "training.steps=6", name="t")
    Tokenize([pictures], tmp_path / "t.h5", str(first.run)).run(Context(runs))
    header, moments = TokenCache.open(tmp_path / "t.h5").header, random.Random(0)
    recipe, remarks = write_recipe(tmp_path, "single"), Remarks()
    words = [sys.executable, "-m", "titokctl", "train-tokenizer", pictures, "--recipe", recipe, "--name", "t"]
    words = [*map(str, words), "--runs-dir", str(runs), "--set", "training.checkpoint_every=1", "--set"]
    steps, killed = 6, 0
    while killed < KILLS:
        steps += 6  # a short run, so that its end is among the moments, too
        more = ["--overwrite"] if killed % 2 else []
        child = subprocess.Popen(
            [*words, f"training.steps={steps}", *more], env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("run: "):  # the record is written; from here on any moment may come
                break
        time.sleep(moments.uniform(0, 2))
        killed += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.communicate()
        found = tokenizer_with(header.encoder_sha256, header.weights_sha256, None, runs, remarks.say)
        assert weights_sha256(load_tokenizer(found)) == header.weights_sha256
