"""A feature pass that is stopped goes on where it was, and ends with the same numbers to the bit."""

from pathlib import Path

import numpy as np
import pytest
import toy_features
from PIL import Image

from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.errors import EXIT_STOPPED, Stopped
from titokctl.evaluation.extractors import FeatureNetwork
from titokctl.jobs.evaluate.fid import Fid
from titokctl.jobs.evaluate.stats import Stats
from titokctl.progress import SilentProgress

N = 60


class Watches(SilentProgress):
    """Counts the measured images of each phase; asks for a stop after `stop_after` images of the phase `stop_in`."""

    def __init__(self, stop: StopRequest | None = None, stop_in: str = "", stop_after: int = 0) -> None:
        self.counts: dict[str, int] = {}
        self.said: list[str] = []
        self._stop, self._in, self._after, self._now = stop, stop_in, stop_after, ""

    def start(self, what: str, total: int | None, unit: str = "images", done: int = 0) -> None:
        self._now = what
        self.counts[what] = 0

    def advance(self, n: int = 1, note: str = "") -> None:
        self.counts[self._now] += n
        if self._stop is not None and self._now.startswith(self._in) and self.counts[self._now] >= self._after:
            self._stop.adopt(EXIT_STOPPED)

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images of which one can't be read, and an .npz."""
    monkeypatch.syspath_prepend(tmp_path / "package")
    toy_features.install(tmp_path / "package")
    pixels = np.random.default_rng(0).integers(0, 256, (2 * N, 24, 24, 3), np.uint8)
    np.savez(tmp_path / "ref.npz", pixels[N:])
    (tmp_path / "drawn").mkdir()
    for i, image in enumerate(pixels[:N]):
        Image.fromarray(image).save(tmp_path / "drawn" / f"{i:03d}.png")
    (tmp_path / "drawn" / "007.png").write_bytes(b"no image")
    return tmp_path


def judge(root: Path, runs: str, progress: SilentProgress, stop: StopRequest | None = None):
    job = Fid(root / "drawn", root / "ref.npz", network=FeatureNetwork("toy"), skip_bad=True)
    return job.run(Context(root / runs, progress=progress, stop=stop or StopRequest()))


@pytest.mark.parametrize("phase", ["features of the reference", "features of"])
def test_a_stopped_pass_is_resumed_with_the_images_that_are_left(sets, phase):
    whole = judge(sets, "whole", Watches())
    (sets / "drawn" / "evaluation-toy.json").unlink()
    stop = StopRequest()
    stopped = Watches(stop, phase if "reference" in phase else f"features of {sets / 'drawn'}", 20)
    with pytest.raises(Stopped, match="The features so far are kept"):
        judge(sets, "runs", stopped, stop)
    rest = Watches()
    again = judge(sets, "runs", rest)
    assert (again.metrics, again.samples) == (whole.metrics, whole.samples)
    assert any("resumed" in text for text in rest.said)
    done = next(count for what, count in stopped.counts.items() if what.startswith(stopped._in))
    left = next(count for what, count in rest.counts.items() if what.startswith(stopped._in))
    assert done + left in (N, N + 1)  # the unreadable image counts once in either call
    assert not list((sets / "runs" / "statistics").glob(".*"))


def test_other_images_are_not_mixed_with_what_was_kept(sets):
    stop = StopRequest()
    with pytest.raises(Stopped):
        judge(sets, "runs", Watches(stop, f"features of {sets / 'drawn'}", 20), stop)
    Image.new("RGB", (24, 24)).save(sets / "drawn" / "003.png")
    rest = Watches()
    changed = judge(sets, "runs", rest)
    assert changed.metrics == judge(sets, "whole", Watches()).metrics
    assert not any("resumed" in text for text in rest.said)
    assert not list((sets / "runs" / "statistics").glob(".*"))


def test_statistics_are_resumed_to_the_same_bytes(sets):
    network = FeatureNetwork("toy")
    whole = Stats([sets / "ref.npz"], sets / "whole.npz", network).run(Context(sets / "whole"))
    stop = StopRequest()
    job = Stats([sets / "ref.npz"], sets / "made.npz", network)
    with pytest.raises(Stopped):
        job.run(Context(sets / "runs", progress=Watches(stop, "features", 20), stop=stop))
    assert job.run(Context(sets / "runs")).sha256 == whole.sha256
