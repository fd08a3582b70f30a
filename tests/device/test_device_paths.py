"""Everything that runs on a GPU runs on a pretend one: no operation mixes devices, and no hot loop waits for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Functions in which the host may wait for the device, and why. What happens once a run, once a checkpoint or once an
# evaluation is not hot.
MAY_WAIT = {
    "speed.matrix_peak": "measures the device once a run",
    "checkpoint.save": "copies everything to the host, once a checkpoint",
    "loop._resume": "loads a checkpoint",
    "loop._log": "reads the numbers of the log, once in log_every steps",
    "loop._evaluate": "held-out numbers and pictures, once in evaluate_every steps",
    "codebook.seed_by_kmeans": "finds the first codes, once a run",
    "single_stage.begin": "settles the encoder, once a run",
    "stages.build_stage": "moves new networks to the device",
    "generator.build_task": "moves a new network to the device",
    "tokens.__init__": "moves the ids of all images to the device, once a run",
    "tokenizer._train": "the finished product goes to the host",
    "generator._train": "the finished product goes to the host",
    "inference.prepared": "moves a network to the device",
    "load.load_tokenizer": "reads weights",
    "hashes.weights_sha256": "hashes weights, once a command",
    "hashes.encoder_sha256": "hashes weights, once a command",
    "plan.labels": "sends the classes to the device; they are kept there",
    "encode._gathered": "the ids of a unit go to the host, once a unit",
    "image_decoder.fetch": "a thread waits for images while the device has the next ones in hand",
    "features._on_gpu": "features of an earlier batch, while the device has later ones in hand",
    "extractors.open_extractor": "moves a network to the device",
    "fused.triton_problem": "tries the fused kernels once a process, where triton is installed",
    "inputs.build_networks": "moves networks to the device",
}


SCENARIOS = ("stages", "generators", "products")  # one after the other in a process, which imports torch once


@pytest.mark.parametrize("scenarios", [SCENARIOS, pytest.param(("deterministic_stages",), marks=pytest.mark.slow)])
def test_no_device_is_mixed_and_no_hot_loop_waits(scenarios: tuple[str, ...], tmp_path: Path) -> None:
    found = worked(scenarios, tmp_path, "cuda")
    assert found["mixed"] == {}
    waits = [chain for chain in found["waits"] if not MAY_WAIT.keys() & set(chain.split(" < ")[1:])]
    assert waits == []
    assert found["waits"]  # the pretence sees what waits


@pytest.mark.slow
def test_events_and_pinned_memory_belong_to_the_gpu_that_was_named(tmp_path: Path) -> None:
    assert worked(SCENARIOS, tmp_path, "cuda:1")["mixed"] == {}


@pytest.mark.slow
def test_an_apple_gpu_is_given_no_float64_no_pinned_memory_and_no_tensors_of_the_host(tmp_path: Path) -> None:
    assert worked(SCENARIOS, tmp_path, "mps")["mixed"] == {}


def worked(scenarios: tuple[str, ...], tmp_path: Path, kind: str) -> dict:
    """Run scenarios on a pretend GPU; returns what waited for it, and what mixed devices."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TITOKCTL_OFFLINE": "1"}
    environment["TITOKCTL_PRETEND"] = kind
    environment |= {"OMP_NUM_THREADS": "1", "TITOKCTL_WEIGHTS": str(tmp_path / "weights")}
    command = [sys.executable, Path(__file__).with_name("scenarios.py"), *scenarios, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
