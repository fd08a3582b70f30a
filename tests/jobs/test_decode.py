"""`titokctl decode`: the images of a token cache, in every form, stopped and resumed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import trained

from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.data.images import decode as pixels_of
from titokctl.data.sources import open_source
from titokctl.distributed.stop import StopRequest
from titokctl.errors import EXIT_STOPPED, Stopped
from titokctl.formats.sample_set import SampleSet
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.decode import Decode
from titokctl.progress import SilentProgress

N = 21


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SampleSet]:
    """A runs folder, and a sample set in it."""
    runs = trained.both(tmp_path_factory.mktemp("runs"))
    assert run(["sample", "--runs-dir", str(runs), "--device", "cpu", "-n", str(N), "-o", str(runs / "set"), "-q"]) == 0
    return runs, SampleSet.open(runs / "set")


@pytest.fixture
def decode(drawn, capsys):
    """Call the command; returns its JSON, or its stderr if it is to fail with `code`."""

    def call(*words: object, code: int = 0):
        assert run(["decode", "--runs-dir", str(drawn[0]), "--device", "cpu", "--json", *map(str, words)]) == code
        out, err = capsys.readouterr()
        return json.loads(out) if code == 0 else err

    return call


def array(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        return arrays["arr_0"]


def test_the_npz_is_that_of_the_sample_set_to_the_byte(drawn, decode, tmp_path):
    found = drawn[1]
    done = decode(found.ids, "-o", tmp_path / "out.npz")
    assert done == {"output": str(tmp_path / "out.npz"), "image_format": "npz", "images": N, "view": "plain"}
    assert (tmp_path / "out.npz").read_bytes() == found.images.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.npz.settings.json", "out.npz"]
    decode(found.ids, "-o", tmp_path / "small.npz", "--batch-size", 3)
    assert (tmp_path / "small.npz").read_bytes() == found.images.read_bytes()


@pytest.mark.parametrize("form", ["png", "webp", "wds"])
def test_folders_hold_the_same_images_and_shards_their_classes(drawn, decode, tmp_path, form):
    words = () if form == "png" else ("--format", form)
    decode(drawn[1].ids, "-o", tmp_path / "out", *words)
    source = open_source([tmp_path / "out"])
    images = np.stack([pixels_of(source.sample(i).data) for i in range(len(source))])
    assert np.array_equal(images, array(drawn[1].images))
    if form == "wds":
        assert source.labels().tolist() == TokenCache.open(drawn[1].ids).labels.tolist()
        assert source.class_names == ["ant", "bee", "cat"]
    decode(drawn[1].ids, "-o", tmp_path / "out", "--format", "png", "--overwrite")
    assert {p.suffix for p in (tmp_path / "out").glob("[!.]*")} == {".png"}


def test_unfinished_work_is_resumed_with_the_same_settings_only(drawn, decode, tmp_path):
    """A killed process leaves some chunks, and images that no chunk names."""
    work = tmp_path / ".out.npz.unfinished"
    decode(drawn[1].ids, "-o", tmp_path / "whole.npz", "--batch-size", 4)
    _begin(drawn, decode, tmp_path, work)
    said = decode(drawn[1].ids, "-o", tmp_path / "out.npz", "--batch-size", 4, "--precision", "float32", code=1)
    assert "begun with other settings" in said
    assert "precision: bf16 -> float32" in said
    decode(drawn[1].ids, "-o", tmp_path / "out.npz", "--batch-size", 4, "--precision", "bf16")
    assert np.array_equal(array(tmp_path / "out.npz"), array(tmp_path / "bf16.npz"))
    assert not work.exists()


def _begin(drawn, decode, tmp_path: Path, work: Path) -> None:
    decode(drawn[1].ids, "-o", tmp_path / "bf16.npz", "--precision", "bf16")
    stop = StopRequest()

    class StopsAtTheSecondBatch(SilentProgress):
        """Asks for a stop, as a signal between two batches does."""

        def advance(self, n: int = 1, note: str = "") -> None:
            stop.adopt(EXIT_STOPPED)

    request = Decode(drawn[1].ids, tmp_path / "out.npz", batch_size=4, precision="bf16")
    with pytest.raises(Stopped, match=f"4 of {N} images kept"):
        request.run(Context(drawn[0], progress=StopsAtTheSecondBatch(), stop=stop))
    assert len(list(work.glob("chunk-*"))) == 1
    assert not (tmp_path / "out.npz").exists()


def test_what_is_refused(drawn, decode, tmp_path):
    ids = drawn[1].ids
    (tmp_path / "there.npz").touch()
    assert "exists already" in decode(ids, "-o", tmp_path / "there.npz", code=1)
    assert "names a file, but webp output is a folder" in decode(
        ids, "-o", tmp_path / "out.npz", "--format", "webp", code=2
    )
    assert "does not end in .npz" in decode(ids, "-o", tmp_path / "out", "--format", "npz", code=2)
    assert "has no view 'flip'" in decode(ids, "-o", tmp_path / "out", "--view", "flip", code=1)
    assert "file not found" in decode(tmp_path / "missing.h5", "-o", tmp_path / "out", code=1)
    other = tmp_path / "other"
    trained.tokenizer_run(other, "tok", seed=5)
    shutil.copy(ids, tmp_path / "ids.h5")
    said = decode(tmp_path / "ids.h5", "-o", tmp_path / "out", "--tokenizer", other / "tokenizer" / "tok", code=1)
    assert "was made with another tokenizer than" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ids.h5", "other", "there.npz"]
