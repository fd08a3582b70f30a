"""`titokctl shard`: unchanged bytes, the same shards every time, nothing half-written."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE_S
from image_files import class_folders, encoded, noise, webdataset_samples
from process_tree import held, wait_for_files

from titokctl.context import Context
from titokctl.data.sources import open_source
from titokctl.distributed.stop import StopRequest
from titokctl.errors import Stopped, UserError
from titokctl.jobs.shard import Shard, Sharded


def make(paths: list[Path], output: Path, stop: StopRequest | None = None, **options: Any) -> Sharded:
    return Shard(paths, output, **options).run(Context(stop=stop or StopRequest()))


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


class StopAfter(StopRequest):
    """A stop request at the n-th check."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def check(self, saved: str = "") -> None:
        self._looks -= 1
        if self._looks < 0:
            raise Stopped(130, saved)


def test_images_are_unchanged(tmp_path: Path) -> None:
    files = class_folders(tmp_path / "in", each=12)
    result = make([tmp_path / "in"], tmp_path / "out", per_shard=5)
    assert (result.samples, result.shards, result.rejected) == (24, 5, [])
    assert result.class_names == ["cat", "dog"]
    source = open_source([tmp_path / "out"])
    found = {s.key: (s.label, s.data) for s in source.read_many(range(24))}
    assert found == {n.rpartition(".")[0]: (int(n[:3] == "dog"), data) for n, data in files.items()}
    assert {0, 1} == set(source.labels()[:5].tolist())
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["total"] == 24
    assert [s["samples"] for s in index["shards"]] == [5, 5, 5, 5, 4]
    assert not list(tmp_path.glob(".*"))


def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    class_folders(tmp_path / "in", each=3)
    make([tmp_path / "in"], tmp_path / "out", shuffle=False)
    found = webdataset_samples(tmp_path / "out/shard-000000.tar")
    assert [s["__key__"] for s in found] == ["cat/0", "cat/1", "cat/2", "dog/0", "dog/1", "dog/2"]
    assert [s["cls"] for s in found] == [b"0"] * 3 + [b"1"] * 3
    assert [("png" in s, "jpg" in s) for s in found[:2]] == [(True, False), (False, True)]


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    class_folders(tmp_path / "in")
    for name in ("one", "two"):
        make([tmp_path / "in"], tmp_path / name, per_shard=4)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    make([tmp_path / "in"], tmp_path / "three", per_shard=4, seed=1)
    assert files_of(tmp_path / "one") != files_of(tmp_path / "three")


def test_shards_of_shards_hold_the_same(tmp_path: Path) -> None:
    class_folders(tmp_path / "in")
    make([tmp_path / "in"], tmp_path / "one", shuffle=False)
    make([tmp_path / "one"], tmp_path / "two", shuffle=False)
    assert files_of(tmp_path / "one")["shard-000000.tar"] == files_of(tmp_path / "two")["shard-000000.tar"]
    assert open_source([tmp_path / "two"]).class_names == ["cat", "dog"]


def test_max_bytes(tmp_path: Path) -> None:
    class_folders(tmp_path / "in", each=10)
    sizes = sorted(p.stat().st_size for p in (tmp_path / "in").rglob("*.*"))
    limit = sizes[-1] + sizes[0]
    make([tmp_path / "in"], tmp_path / "out", max_bytes=limit)
    source = open_source([tmp_path / "out"])
    totals = [sum(len(s.data) for s in source.read_unit(unit)[0]) for unit in source.units]
    assert len(totals) > 1
    assert max(totals) <= limit
    assert len(source) == 20
    make([tmp_path / "in"], tmp_path / "single", max_bytes=1)
    assert len(open_source([tmp_path / "single"]).units) == 20


def test_unreadable_images_are_listed(tmp_path: Path) -> None:
    class_folders(tmp_path / "in")
    (tmp_path / "in/cat/cut.jpg").write_bytes(encoded(noise(30, 30), "JPEG")[:300])
    (tmp_path / "in/dog/text.png").write_bytes(b"hello")
    result = make([tmp_path / "in"], tmp_path / "out")
    assert result.samples == 10
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert {(line["key"], line["kind"]) for line in lines} == {("cat/cut", "truncated"), ("dog/text", "format")}
    assert all(line.keys() == {"key", "kind", "reason"} and line["reason"] for line in lines)
    assert make([tmp_path / "in"], tmp_path / "out").rejected == result.rejected


def test_only_unreadable_images(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(b"hello")
    with pytest.raises(UserError, match="none of 1 image can be decoded"):
        make([tmp_path / "in"], tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_dots_in_names_do_not_cut_keys(tmp_path: Path) -> None:
    (tmp_path / "in/v1.2").mkdir(parents=True)
    for i, name in enumerate(("a.b.png", "a_b.png", "a.b.jpg")):
        (tmp_path / "in/v1.2" / name).write_bytes(encoded(noise(4, 4, seed=i)))
    make([tmp_path / "in"], tmp_path / "out", shuffle=False)
    assert open_source([tmp_path / "out"]).keys() == ["v1.2/a_b", "v1.2/a_b_png", "v1.2/a_b-2"]


def test_a_stopped_run_is_resumed(tmp_path: Path) -> None:
    class_folders(tmp_path / "in", each=40)
    make([tmp_path / "in"], tmp_path / "whole", per_shard=20)
    with pytest.raises(Stopped):
        make([tmp_path / "in"], tmp_path / "out", StopAfter(5), per_shard=20)
    assert not (tmp_path / "out").exists()
    staging = tmp_path / ".out.unfinished"
    finished = {p: p.stat().st_mtime_ns for p in staging.glob("*.tar")}
    assert len(finished) == 2
    make([tmp_path / "in"], tmp_path / "out", per_shard=20)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert {(tmp_path / "out" / p.name).stat().st_mtime_ns for p in finished} == set(finished.values())


def test_work_begun_with_other_settings_is_kept_unless_overwritten(tmp_path: Path) -> None:
    class_folders(tmp_path / "in", each=40)
    with pytest.raises(Stopped):
        make([tmp_path / "in"], tmp_path / "out", StopAfter(5), per_shard=20)
    with pytest.raises(UserError, match=r"begun with other settings:\n  per_shard: 20 -> 33"):
        make([tmp_path / "in"], tmp_path / "out", per_shard=33)
    make([tmp_path / "in"], tmp_path / "out", per_shard=33, overwrite=True)
    assert [u.count for u in open_source([tmp_path / "out"]).units] == [33, 33, 14]


def test_an_existing_output(tmp_path: Path) -> None:
    class_folders(tmp_path / "in")
    make([tmp_path / "in"], tmp_path / "out", per_shard=4)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert make([tmp_path / "in"], tmp_path / "out", per_shard=4).samples == 10
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    with pytest.raises(UserError, match="made with other settings:\n  per_shard: 4 -> 5"):
        make([tmp_path / "in"], tmp_path / "out", per_shard=5)
    assert make([tmp_path / "in"], tmp_path / "out", per_shard=5, overwrite=True).shards == 2
    assert len(open_source([tmp_path / "out"])) == 10


@pytest.mark.parametrize("overwrite", [False, True])
def test_other_files_are_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    class_folders(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("precious")
    for output in (tmp_path / "out", tmp_path / "out/thesis.txt"):
        with pytest.raises(UserError, match="was not made by `titokctl shard`"):
            make([tmp_path / "in"], output, overwrite=overwrite)
    assert (tmp_path / "out/thesis.txt").read_text() == "precious"


def test_the_command(tmp_path: Path, run_cli) -> None:
    class_folders(tmp_path / "in")
    done = run_cli("shard", "in", "-o", "out", "--json", "--quiet", code=0)
    assert done.json["samples"] == 10
    assert done.stderr == ""
    again = run_cli("shard", "in", "-o", "out", code=0)
    assert "finished already" in again.stderr
    assert "shuffled with seed 0" in again.stderr
    assert again.stdout == ""
    missing = run_cli("shard", "nowhere", "-o", "out2", code=1)
    assert "no such file or folder: nowhere" in missing.stderr


def test_ctrl_c(tmp_path: Path, start, python: str) -> None:
    class_folders(tmp_path / "in", each=300)
    command = [python, "-m", "titokctl", "shard", "in", "-o", "out", "--per-shard", "5"]
    among = (tmp_path / ".out.unfinished", "*.tar", 1)
    process = start(command, cwd=tmp_path, env={**os.environ, **held(*among)})
    wait_for_files(process, *among)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, said
    assert "same command again" in said
    assert not (tmp_path / "out").exists()
    make([tmp_path / "in"], tmp_path / "out", per_shard=5)
    assert len(open_source([tmp_path / "out"])) == 600
