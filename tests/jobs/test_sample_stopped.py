"""`titokctl sample` as a process that is interrupted or killed: the same command resumes it, to the same bytes."""

import errno
import json
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import trained
from process_tree import signalled

from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.formats.run_folder import readable_runs
from titokctl.jobs.sample.request import Sample
from titokctl.progress import SilentProgress

NUM_IMAGES = 600  # two whole chunks and a part of one


def words(networks: Path, output: Path, *more: str) -> list[str]:
    number = more or ("-n", str(NUM_IMAGES))
    return ["sample", "--runs-dir", str(networks), "--device", "cpu", "-o", str(output), *number]


def stopped_after(
    python: str, chunks: int, number: signal.Signals, networks: Path, output: Path
) -> subprocess.CompletedProcess:
    return signalled(python, words(networks, output), number, output / ".unfinished", "chunk-*", chunks)


@pytest.fixture(scope="module")
def undisturbed(networks: Path) -> dict[str, bytes]:
    assert run([*words(networks, networks / "undisturbed"), "--quiet", "--json"]) == 0
    return contents(networks / "undisturbed")


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("images.npz", "ids.h5", "grid.png")}


def state(networks: Path, output: Path) -> str:
    """The status, for people, of the run whose samples go to `output`."""
    at = {"folder": str(output)}
    return next(
        run.status
        for run in readable_runs(networks, "samples")
        if json.loads((run.path / "location.json").read_text()) == at
    )


class Breaks(SilentProgress):
    """A disk that fails after the first images, and the status that the run has until then."""

    def __init__(self, networks: Path, output: Path) -> None:
        self.of, self.status = (networks, output), ""

    def advance(self, n: int = 1, note: str = "") -> None:
        self.status = state(*self.of)
        raise OSError(errno.EIO, "it fails")


def test_a_failed_run_elsewhere_is_not_listed_as_running(networks, tmp_path):
    output = tmp_path / "set"
    progress = Breaks(networks, output)
    with pytest.raises(OSError, match="it fails"):
        Sample(num_images=40, output=output).run(Context(networks, progress=progress))
    assert progress.status == "running"
    assert state(networks, output) == "failed"
    Sample(num_images=40, output=output).run(Context(networks))
    assert state(networks, output) == "finished"


def test_ctrl_c_ends_it_cleanly_and_the_same_command_resumes(networks, undisturbed, python, capsys, tmp_path):
    output = tmp_path / "set"
    done = stopped_after(python, 1, signal.SIGINT, networks, output)
    assert done.returncode == 130, done.stderr
    assert f"of {NUM_IMAGES:,} images kept in {output}." in done.stderr
    assert "run the same command again" in done.stderr
    assert {p.name for p in output.iterdir()} == {".lock", ".unfinished"}
    assert state(networks, output) == "stopped"
    assert run([*words(networks, output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images_per_second"] > 0
    assert contents(output) == undisturbed
    assert not (output / ".unfinished").exists()


def test_kill_9_then_other_settings_then_the_same_command(networks, undisturbed, python, capsys, tmp_path):
    output = tmp_path / "set"
    assert stopped_after(python, 1, signal.SIGKILL, networks, output).returncode == -signal.SIGKILL
    assert state(networks, output) == "stopped"
    chunks = {p: p.stat().st_mtime_ns for p in (output / ".unfinished").glob("chunk-*")}
    assert chunks
    assert run(words(networks, output, "-n", "700", "--seed", "1")) == 1
    said = capsys.readouterr().err
    assert f"num_images: {NUM_IMAGES} -> 700" in said
    assert "sampling.seed: 0 -> 1" in said
    assert "hint: " in said
    assert {p: p.stat().st_mtime_ns for p in chunks} == chunks
    assert run(words(networks, output)) == 0
    assert contents(output) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("form", ["npz", "png", "wds"])
def test_a_kill_between_the_manifest_and_the_end_is_resumed(python: str, tmp_path: Path, form: str, capsys) -> None:
    """At that moment the set is complete in its folder, and its run is not recorded as finished."""
    networks, output = trained.both(tmp_path / "runs"), tmp_path / "a" / "b" / "set"
    command = [*words(networks, output, "-n", "20"), "--format", form]
    # The records of two networks and of the run, where its set lies, and the manifest: the next record is not written.
    done = signalled(python, command, signal.SIGKILL, tmp_path, "*/*/*/*n*.json", 5)
    assert done.returncode == -signal.SIGKILL
    assert (output / "manifest.json").is_file()
    assert (output / ".unfinished").is_dir()
    assert state(networks, output) == "stopped"
    before = everything(output)
    assert run(command) == 0
    assert state(networks, output) == "finished"
    assert {p.name for p in output.iterdir() if p.name[0] == "."} <= {".lock"}
    assert everything(output) == before
    assert run([*command, "--overwrite"]) == 0
    assert everything(output).keys() == before.keys()


@pytest.mark.slow
@pytest.mark.parametrize("again", [["--overwrite"], []], ids=["same", "without"])
def test_a_kill_while_a_set_takes_the_place_of_another(networks, python, tmp_path, again) -> None:
    output = tmp_path / "set"
    first = [*words(networks, output, "-n", "20"), "--format", "png"]
    assert run(first) == 0
    (output / "notes.txt").write_text("mine")
    second = [*words(networks, output, "-n", "18"), "--format", "wds"]
    replaced = output / ".unfinished" / "replaced"
    done = signalled(python, [*second, "--overwrite"], signal.SIGKILL, replaced, "*", 2)
    assert done.returncode == -signal.SIGKILL
    assert not (output / "manifest.json").exists() or not (output / "ids.h5").exists()
    assert run([*second, *again]) == 0
    assert {p.name for p in output.iterdir()} - {".lock"} == {
        "manifest.json", "ids.h5", "grid.png", "shards", "notes.txt",
    }  # fmt: skip
    assert json.loads((output / "manifest.json").read_text())["num_images"] == 18
    assert state(networks, output) == "finished"


def everything(folder: Path) -> dict[str, bytes]:
    """The files of a set, but for what is hidden."""
    files = (p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p): (folder / p).read_bytes() for p in files if not any(part[0] == "." for part in p.parts)}


def test_another_number_of_threads_gives_the_same_bytes(networks, undisturbed, tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if before > 1 else 2)
        assert run(words(networks, tmp_path / "set", "-n", "20")) == 0
    finally:
        torch.set_num_threads(before)
    with np.load(tmp_path / "set" / "images.npz") as few, np.load(networks / "undisturbed" / "images.npz") as all_:
        assert np.array_equal(few["arr_0"], all_["arr_0"][:20])
