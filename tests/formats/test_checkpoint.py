"""Checkpoints: what is saved comes back, and damage is noticed."""

import subprocess
import sys

import pytest
import torch

from titokctl.formats.checkpoint import Checkpoint, load_newest, save

LINES = []


def say(line: str) -> None:
    LINES.append(line)


@pytest.fixture
def folder(tmp_path):
    LINES.clear()
    return tmp_path / "checkpoints"


def made(step: int) -> Checkpoint:
    return Checkpoint(step, {"weight": torch.full((3, 4), float(step))}, {"loss": 0.5})


def test_round_trip_and_only_the_newest_are_kept(folder):
    for step in (1, 2, 3):
        save(folder, made(step), keep=2)
    found = load_newest(folder, say)
    assert (found.step, found.scalars) == (3, {"loss": 0.5})
    assert torch.equal(found.tensors["weight"], made(3).tensors["weight"])
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000003"]


def test_nothing_there(folder):
    assert load_newest(folder, say) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "marker"])
def test_a_damaged_newest_falls_back_and_says_so(folder, damage):
    save(folder, made(1), keep=2)
    file = save(folder, made(2), keep=2) / "tensors.safetensors"
    if damage == "flip":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-5])
    elif damage == "remove":
        file.unlink()
    else:
        (file.parent / "state.json").write_text("{")
    assert load_newest(folder, say).step == 1
    assert len(LINES) == 1
    assert "step-00000002" in LINES[0]


def test_a_killed_writer_leaves_nothing_that_counts(folder):
    save(folder, made(1), keep=2)
    leftover = folder / ".step-00000002.tmp-1-abcd"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(b"half")
    assert load_newest(folder, say).step == 1
    save(folder, made(3), keep=2)
    assert not leftover.exists()


def test_a_full_disk_keeps_the_older_one(folder):
    save(folder, made(1), keep=2)
    script = (
        "import resource, signal, torch; from pathlib import Path\n"
        "from titokctl.formats.checkpoint import Checkpoint, save\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"save(Path({str(folder)!r}), Checkpoint(2, {{'w': torch.zeros(100_000)}}, {{}}), keep=1)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "UserError" in done.stderr
    assert load_newest(folder, say).step == 1
    assert [p.name for p in folder.iterdir()] == ["step-00000001"]


def test_a_newer_format_is_refused(folder):
    marker = save(folder, made(1), keep=1) / "state.json"
    marker.write_text(marker.read_text().replace('"format_version": 1', '"format_version": 2'))
    assert load_newest(folder, say) is None
    assert "newer" in LINES[0]
