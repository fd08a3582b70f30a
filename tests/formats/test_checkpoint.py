"""Checkpoints: what is saved comes back, and damage is noticed."""

import json
import subprocess
import time

import pytest
import torch
from safetensors.torch import save_file

from titokctl.formats import checkpoint
from titokctl.formats.checkpoint import Checkpoint, CheckpointWriter, Policy, load_newest, save

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
        save(folder, made(step), Policy(2))
    found = load_newest(folder, say)
    assert (found.step, found.scalars) == (3, {"loss": 0.5})
    assert torch.equal(found.tensors["weight"], made(3).tensors["weight"])
    assert sorted(p.name for p in folder.iterdir()) == ["step-00000002", "step-00000003"]


def test_every_mth_stays_for_good(folder):
    for step in range(1, 9):
        save(folder, made(step), Policy(2, keep_every=3))
    assert sorted(int(p.name[5:]) for p in folder.iterdir()) == [3, 6, 7, 8]


def test_large_states_are_spread_over_files(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "_FILE_BYTES", 4000)
    tensors = {f"t{i}": torch.rand(100 + 37 * i) for i in range(20)} | {
        "none": torch.ones(0),
        "flag": torch.tensor(True),
    }
    path = save(folder, Checkpoint(5, tensors, {}), Policy(1))
    files = sorted(path.glob("*.safetensors"))
    assert len(files) == 8
    assert max(f.stat().st_size for f in files) < 2 * min(f.stat().st_size for f in files)
    found = load_newest(folder, say).tensors
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    files[3].write_bytes(files[3].read_bytes()[:-1] + b"x")
    assert load_newest(folder, say) is None


def test_a_checkpoint_of_the_first_format_is_read(folder):
    path = folder / "step-00000007"
    path.mkdir(parents=True)
    save_file({"weight": torch.ones(3)}, path / "tensors.safetensors")
    (path / "scalars.json").write_text("{}")
    prints = checkpoint._fingerprints(path, ["tensors.safetensors", "scalars.json"])
    state = {"format": "titokctl/checkpoint", "format_version": 1, "step": 7, "files": prints}
    (path / "state.json").write_text(json.dumps(state))
    assert torch.equal(load_newest(folder, say).tensors["weight"], torch.ones(3))


def test_a_damaged_one_of_a_later_step_pushes_no_other_out(folder):
    (save(folder, made(9), Policy(1)) / "state.json").unlink()
    save(folder, made(4), Policy(1))
    assert load_newest(folder, say).step == 4
    save(folder, made(5), Policy(1))
    assert load_newest(folder, say).step == 5
    assert not (folder / "step-00000004").exists()


def test_files_outside_the_folder_are_never_read(folder):
    marker = save(folder, made(1), Policy(1)) / "state.json"
    state = json.loads(marker.read_text())
    state["files"]["../../secret.safetensors"] = state["files"].pop("tensors-0.safetensors")
    marker.write_text(json.dumps(state))
    assert load_newest(folder, say) is None
    assert "names files that no checkpoint has" in LINES[0]


def test_what_is_written_beside_the_training_is_the_state_of_its_step(folder):
    weight = torch.zeros(1 << 20)
    with CheckpointWriter(folder, Policy(3)) as writer:
        for step in (1, 2, 3):
            weight.fill_(step)
            writer.save(Checkpoint(step, {"weight": weight}, {}))
            weight.fill_(-1)
    for step in (3, 2, 1):
        found = load_newest(folder, say)
        assert found.step == step
        assert (found.tensors["weight"] == step).all()
        (folder / f"step-{step:08d}" / "state.json").unlink()


def test_a_write_that_fails_is_told_by_the_next_one_or_at_the_end(tmp_path):
    (tmp_path / "file").write_text("")
    writer = CheckpointWriter(tmp_path / "file", Policy(1))
    writer.save(made(1))
    with pytest.raises(FileExistsError):
        writer.save(made(2))
    with pytest.raises(FileExistsError), writer:
        writer.save(made(3))


def test_nothing_there(folder):
    assert load_newest(folder, say) is None


@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "marker"])
def test_a_damaged_newest_falls_back_and_says_so(folder, damage):
    save(folder, made(1), Policy(2))
    file = save(folder, made(2), Policy(2)) / "tensors-0.safetensors"
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
    save(folder, made(1), Policy(2))
    leftover = folder / ".step-00000002.tmp-1-abcd"
    leftover.mkdir()
    (leftover / "tensors.safetensors").write_bytes(b"half")
    assert load_newest(folder, say).step == 1
    save(folder, made(3), Policy(2))
    assert not leftover.exists()


def test_killed_at_any_moment_a_whole_one_is_left(folder, start, python):
    script = (
        "import torch; from pathlib import Path\n"
        "from titokctl.formats import checkpoint\n"
        "checkpoint._FILE_BYTES = 1 << 20\n"
        "weight, other = torch.zeros(1 << 20), torch.zeros(1 << 20)\n"
        f"with checkpoint.CheckpointWriter(Path({str(folder)!r}), checkpoint.Policy(2)) as writer:\n"
        "    for step in range(1, 100_000):\n"
        "        weight.fill_(step), other.fill_(step)\n"
        "        writer.save(checkpoint.Checkpoint(step, {'weight': weight, 'other': other}, {}))\n"
    )
    for round in range(3):
        child, before = start([python, "-c", script]), set(folder.glob("step-*"))
        while set(folder.glob("step-*")) == before:
            assert child.poll() is None, child.communicate()[1]
        time.sleep(0.05 * round)
        child.kill()
        child.communicate()
        found = load_newest(folder, say)
        assert all((t == found.step).all() for t in found.tensors.values())
        assert not LINES


def test_a_full_disk_keeps_the_older_one(folder, python):
    save(folder, made(1), Policy(2))
    script = (
        "import resource, signal, torch; from pathlib import Path\n"
        "from titokctl.formats.checkpoint import Checkpoint, Policy, save\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        f"save(Path({str(folder)!r}), Checkpoint(2, {{'w': torch.zeros(100_000)}}, {{}}), Policy(1))\n"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "UserError" in done.stderr
    assert "step-00000002/tensors-0.safetensors" in done.stderr, "not the temporary name"
    assert load_newest(folder, say).step == 1
    assert [p.name for p in folder.iterdir()] == ["step-00000001"]


def test_a_newer_format_is_refused(folder):
    marker = save(folder, made(1), Policy(1)) / "state.json"
    marker.write_text(marker.read_text().replace('"format_version": 2', '"format_version": 3'))
    assert load_newest(folder, say) is None
    assert "newer" in LINES[0]
