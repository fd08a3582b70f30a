"""`titokctl sample --engine ray`: the bytes of one process; killed actors and drivers, signals, resumed sets."""

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import ray_machine
from command_line import PATIENCE_S
from process_tree import wait_for_files
from trained import sampling

from titokctl.cli.app import run
from titokctl.formats.sample_set import SampleSet

pytest.importorskip("ray", reason="needs the extra ray: pip install 'titokctl[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
Start = Callable[..., subprocess.Popen[str]]


def contents(folder: Path) -> dict[str, bytes]:
    names = [SampleSet.open(folder).manifest["images"], "ids.h5", "grid.png"]
    files = [path for name in names for path in sorted([folder / name, *(folder / name).rglob("*")]) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("more", [("--batch-size", "5"), ("--format", "png", "--classes", "2,0")], ids=["npz", "png"])
def test_images_and_ids_are_those_of_one_process(networks: Path, ray_cluster: str, tmp_path: Path, more) -> None:
    number = ("-n", 100, *more)
    assert run([*sampling(networks, tmp_path / "one", *number), "--quiet"]) == 0
    ray = ("--engine", "ray", "--address", ray_cluster, "--max-workers", 2)
    assert run([*sampling(networks, tmp_path / "many", *number, *ray), "--quiet"]) == 0
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_kept_tokens_and_scores_are_those_of_one_process(
    networks: Path, ray_cluster: str, tmp_path: Path, capsys
) -> None:
    """The cache of --keep is read by the driver alone; features are computed by the workers."""
    assert run([*sampling(networks, tmp_path / "first", "-n", 40), "--quiet"]) == 0
    keep = ("--keep", tmp_path / "first" / "ids.h5", "--keep-tokens", "0-3")
    score = ("--fid", tmp_path / "first", "--features", "lite0", "--format", "npz")
    capsys.readouterr()
    found = []
    for name, engine in (("one", ()), ("many", ("--engine", "ray", "--address", ray_cluster))):
        assert run([*sampling(networks, tmp_path / name, *keep, *score, *engine), "--json", "--quiet"]) == 0
        found.append(json.loads(capsys.readouterr().out)["metrics"])
    assert found[0] == found[1]
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_a_killed_actor_a_signal_and_a_killed_driver_lose_nothing(
    networks: Path, ray_cluster: str, start: Start, tmp_path: Path
) -> None:
    output, number = tmp_path / "set", ("-n", 2000)
    command = sampling(networks, output, *number)
    first = ray_machine.driver(start, command, ray_cluster, 2)
    assert ray_machine.kill_one(first, "ray::SampleActor.tile")
    wait_for_files(first, output / ".unfinished", "chunk-*", 1)
    first.send_signal(signal.SIGTERM)
    _, err = first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 75, err
    assert "died while it worked on images" in err
    kept = len(list((output / ".unfinished").glob("chunk-*")))
    second = ray_machine.driver(start, command, ray_cluster, 1)
    wait_for_files(second, output / ".unfinished", "chunk-*", kept + 1)
    second.kill()
    second.wait()
    assert not (output / "manifest.json").exists()
    assert run([*command, "--engine", "ray", "--address", ray_cluster, "--max-workers", "2", "--quiet"]) == 0
    assert run([*sampling(networks, tmp_path / "undisturbed", *number), "--quiet"]) == 0
    assert contents(output) == contents(tmp_path / "undisturbed")


def test_a_plan_and_options_that_exclude_each_other(networks: Path, ray_cluster: str, tmp_path: Path, capsys) -> None:
    command = sampling(networks, tmp_path / "set", "-n", 10, "--engine", "ray", "--address", ray_cluster)
    assert run([*command, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 10
    assert not (tmp_path / "set").exists()
    assert run([*command, "--procs", "2"]) == 2
    assert "mutually exclusive" in capsys.readouterr().err
