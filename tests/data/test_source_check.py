"""The check of a source: what can't be decoded, found once, kept while the files stay, resumed after a stop."""

import json
from pathlib import Path

import pytest
import tiny

from titokctl.context import Context
from titokctl.data.source_check import allowed_share, checked_source
from titokctl.data.sources import open_source
from titokctl.distributed.stop import StopRequest
from titokctl.errors import EXIT_STOPPED, Stopped
from titokctl.progress import SilentProgress


class Counts(SilentProgress):
    """The images that were looked at; asks for a stop after `stop_after` of them."""

    def __init__(self, stop: StopRequest | None = None, stop_after: int = 0) -> None:
        self.seen, self._stop, self._after = 0, stop, stop_after

    def advance(self, n: int = 1, note: str = "") -> None:
        self.seen += n
        if self._stop is not None and self.seen >= self._after:
            self._stop.adopt(EXIT_STOPPED)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tiny.class_folder(tmp_path / "photos", 40)
    for name, data in (("cat/0003.jpg", b""), ("dog/0050.jpg", tiny.jpeg(1)[:200]), ("dog/zz.png", b"no image")):
        (folder / name).write_bytes(data)
    return folder


def check(folder: Path, runs: Path, progress: SilentProgress | None = None, stop: StopRequest | None = None):
    context = Context(runs, progress=progress or SilentProgress(), stop=stop or StopRequest())
    return checked_source(open_source([folder]).by_position(), context)


def test_every_image_is_looked_at_once_while_the_files_stay(photos, tmp_path):
    first, second = Counts(), Counts()
    found = check(photos, tmp_path / "runs", first)
    assert [(one.key, one.kind) for one in found.in_order()] == [
        ("cat/0003", "empty"),
        ("dog/0050", "truncated"),
        ("dog/zz", "format"),
    ]
    assert check(photos, tmp_path / "runs", second) == found
    assert (first.seen, second.seen) == (len(open_source([photos])), 0)
    (photos / "cat/0003.jpg").write_bytes(tiny.jpeg(3))
    assert [one.key for one in check(photos, tmp_path / "runs").in_order()] == ["dog/0050", "dog/zz"]


def test_a_stopped_check_goes_on_with_the_same_list(photos, tmp_path):
    whole = check(photos, tmp_path / "whole")
    stop = StopRequest()
    stopped = Counts(stop, 32)
    with pytest.raises(Stopped, match="are not checked again"):
        check(photos, tmp_path / "runs", stopped, stop)
    rest = Counts()
    assert check(photos, tmp_path / "runs", rest) == whole
    assert rest.seen == len(open_source([photos])) - stopped.seen > 0


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "titokctl/source-check", "format_version": 1, "checked": -5}'])
def test_a_damaged_record_is_made_again(photos, tmp_path, text):
    found = check(photos, tmp_path / "runs")
    (record,) = (tmp_path / "runs" / "checks").iterdir()
    record.write_text(text)
    assert check(photos, tmp_path / "runs") == found
    assert json.loads(record.read_text())["checked"] == len(open_source([photos]))


@pytest.mark.parametrize(("samples", "allowed"), [(20, 1), (100, 5), (300, 10), (5_000, 10), (1_000_000, 1000)])
def test_the_share_that_is_accepted_by_default(samples, allowed):
    assert int(allowed_share(samples) * samples + 1e-9) == allowed
