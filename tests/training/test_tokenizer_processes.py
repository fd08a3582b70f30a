"""A tokenizer trained in two processes: the same losses as in one, with k-means and re-seeding of codes on the way."""

import numpy as np
import pytest
import tiny

from titokctl.config import recipe_files
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.formats.metrics_log import MetricsLog
from titokctl.jobs.train_tokenizer import train_tokenizer
from titokctl.progress import SilentProgress

RECIPE = """
kind: tokenizer
stage: single
model:
  image_size: 32
  num_latent_tokens: 8
  encoder: {patch_size: 8, width: 32, num_layers: 1, num_heads: 2}
  decoder: {patch_size: 8, width: 32, num_layers: 1, num_heads: 2}
  codebook_size: 32
  token_size: 4
initialization: fan-in
codebook: {reseed_decay: 0.99, continuous_steps: 5}
optimizer: {learning_rate: 1e-3, muon_learning_rate: 1e-3}
schedule: {warmup_steps: 5}
training: {steps: 20, global_batch_size: 8, micro_batch_size: 4, log_every: 1}
"""


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
    recipe = recipe_files.load(str(tmp_path / "small.yaml"), "tokenizer")
    three = Group(Place(0, 3, 0), single_group().shared_store("test"))
    with StopRequest() as stop, pytest.raises(UserError, match="8 is not a multiple of 3 processes") as refused:
        train_tokenizer([tmp_path], recipe, "x", tmp_path, progress=SilentProgress(), stop=stop, group=three)
    assert "training.global_batch_size=6" in refused.value.hint
