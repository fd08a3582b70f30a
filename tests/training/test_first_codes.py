"""k-means for the first codes: bounded for any codebook, shown, and ended by a signal without losing a step."""

import os
import signal

import pytest
import tiny
import torch
from stages import Leave, train

from titokctl.errors import Stopped
from titokctl.formats.checkpoint import steps_in
from titokctl.formats.run_folder import open_run
from titokctl.training.codebook import kmeans, kmeans_effort


def test_the_work_is_bounded_for_every_codebook():
    for codes in (16, 1024, 8192):
        assert kmeans_effort(codes) == (16, 10), "as published sizes always had it"
    for codes in (16384, 65536, 1 << 18, 1 << 20):
        latents, iterations = kmeans_effort(codes)
        assert codes**2 * latents * iterations <= 1 << 35
        assert latents >= 2, "every code starts at a latent of its own"
    assert kmeans_effort(65536)[1] >= 3


def test_without_iterations_the_codes_are_latents():
    latents = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    codes = kmeans(latents, 20, 0, torch.Generator().manual_seed(1))
    assert len({tuple(code.tolist()) for code in codes} & {tuple(point.tolist()) for point in latents}) == 20


class InKMeans(Leave):
    """Progress that raises a signal when k-means shows its n-th part."""

    def __init__(self, part: int) -> None:
        super().__init__()
        self.left = part

    def advance(self, count: int = 1, note: str = "") -> None:
        if note.startswith("k-means"):
            self.said.append(note)
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("part", [1, 6])
@pytest.mark.parametrize("stage", ["single", "vqgan"])
def test_a_signal_in_k_means_saves_the_step_before_and_the_run_resumes_bit_for_bit(tmp_path, stage, part):
    pictures = tiny.class_folder(tmp_path / "pictures", per_class=6)
    changes = ("training.steps=8", "training.checkpoint_every=100")
    runs = tmp_path / "runs"
    whole = train(pictures, stage, runs, tmp_path, *changes, name="whole")
    talk = InKMeans(part)
    with pytest.raises(Stopped) as stopped:
        train(pictures, stage, runs, tmp_path, *changes, name="cut", progress=talk)
    assert (stopped.value.exit_code, stopped.value.message) == (75, "Step 3 of 8 is saved.")
    assert any(" of " in note for note in talk.said)
    assert steps_in(runs / open_run(whole.run).kind / "cut" / "checkpoints") == [3]
    again = train(pictures, stage, runs, tmp_path, *changes, name="cut")
    assert again.weights_sha256 == whole.weights_sha256
