"""`titokctl tokenize --engine ray`: the bytes of one process, whatever dies; the last words of what can't be made."""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray_machine
import tiny
from command_line import PATIENCE_S, ROOT, RunCli
from PIL import Image
from ray_machine import kill_one, titles

from titokctl.cli.app import run
from titokctl.formats.token_cache import TokenCache

pytest.importorskip("ray", reason="needs the extra ray: pip install 'titokctl[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore")

SHARDS, PER_SHARD = 40, 6
DEADLY = Path(__file__).parent.parent / "deadly"
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    tiny.tokenizer(root / "tokenizer.safetensors")
    tiny.tokenizer(root / "deep.safetensors", layers=60)
    tiny.shards(root / "shards", SHARDS, PER_SHARD)
    assert run([*words(root, root / "one.h5"), "--quiet"]) == 0
    return root


def words(source: Path, output: Path, *more: str, tokenizer: str = "deep", images: str = "shards") -> list[str]:
    weights = str(source / f"{tokenizer}.safetensors")
    return ["tokenize", str(source / images), "-o", str(output), "--tokenizer", weights, *more]


def by_ray(start: Start, command: list[str], workers: int, **environment: str) -> subprocess.Popen[str]:
    """Start a command with a cluster of its own, which ends with it."""
    ray = ["--engine", "ray", "--max-workers", str(workers)]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **ray_machine.SETTINGS, **environment}
    return start([sys.executable, "-m", "titokctl", *command, *ray], env=settings, stdin=subprocess.DEVNULL)


def wait_for_parts(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and len(list(folder.glob("unit-*"))) < count:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_killed_actors_and_a_killed_driver_leave_the_bytes_as_they_are(
    source: Path, ray_cluster: str, start: Start, tmp_path: Path, capsys
) -> None:
    """An actor dies, then a task that decodes, then the driver; another number of actors finishes the output."""
    output = tmp_path / "tokens.h5"
    first = ray_machine.driver(start, words(source, output), ray_cluster, 2)
    assert kill_one(first, "ray::TokenizeActor.part")
    assert kill_one(first, "ray::decode_unit")
    wait_for_parts(first, tmp_path / "tokens.h5.parts", 5)
    first.kill()
    first.wait()
    assert not output.exists()
    assert run([*words(source, output), *by_cluster(ray_cluster, 1), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["units_reused"] >= 5
    assert output.read_bytes() == (source / "one.h5").read_bytes()


def by_cluster(address: str, workers: int) -> list[str]:
    return ["--engine", "ray", "--address", address, "--max-workers", str(workers), "--quiet"]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_bytes_do_not_depend_on_the_number_of_actors(source, ray_cluster: str, tmp_path: Path, workers: int) -> None:
    """The pool grows while it works: all but the first actor are started in the middle."""
    output = tmp_path / "tokens.h5"
    assert run([*words(source, output, "--min-workers", "1"), *by_cluster(ray_cluster, workers)]) == 0
    assert output.read_bytes() == (source / "one.h5").read_bytes()


@pytest.mark.slow
def test_twenty_deaths_at_random_moments_leave_the_bytes_as_they_are(
    source: Path, ray_cluster: str, start: Start, tmp_path: Path
) -> None:
    """Of actors, of tasks that decode, and of drivers, each followed by one with another number of actors."""
    output, rng = tmp_path / "tokens.h5", random.Random(0)
    parts = tmp_path / "tokens.h5.parts"
    deaths = 0
    while deaths < 20:
        for part in rng.sample(sorted(parts.glob("unit-*")), len(list(parts.glob("unit-*"))) // 2):
            part.unlink()
        process = ray_machine.driver(start, words(source, output), ray_cluster, rng.choice([1, 2, 3]))
        for victim in rng.choices(["ray::TokenizeActor", "ray::decode_unit"], k=rng.randint(0, 3)):
            time.sleep(rng.random() / 2)
            deaths += kill_one(process, victim)
        wait_for_parts(process, parts, rng.randint(0, SHARDS // 2))
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.wait()
        deaths += 1
    assert run([*words(source, output), *by_cluster(ray_cluster, 2)]) == 0
    assert output.read_bytes() == (source / "one.h5").read_bytes()


@pytest.mark.slow
def test_a_signal_keeps_the_finished_parts(source: Path, start: Start, tmp_path: Path) -> None:
    process = by_ray(start, words(source, tmp_path / "tokens.h5"), 2)
    wait_for_parts(process, tmp_path / "tokens.h5.parts", 3)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 75
    assert "finished parts are kept" in err
    assert not [name for name in titles(process.pid).values() if name.startswith("ray::")]


@pytest.mark.slow
def test_a_deadly_image_is_rejected_by_name(source: Path, start: Start, tmp_path: Path) -> None:
    """It kills whatever decodes it; all other images of its unit have their rows."""
    images = tiny.class_folder(tmp_path / "images", 6)
    with_comment = io.BytesIO()
    Image.open(io.BytesIO(tiny.jpeg(3))).save(with_comment, "JPEG", comment=b"TITOKCTL_TESTS_DEADLY")
    (images / "cat" / "0003.jpg").write_bytes(with_comment.getvalue())
    weights = ["--tokenizer", str(source / "tokenizer.safetensors")]
    assert run(["tokenize", str(images), "-o", str(tmp_path / "whole.h5"), *weights, "--quiet"]) == 0
    command = ["tokenize", str(images), "-o", str(tmp_path / "tokens.h5"), *weights, "--max-rejected", "0.2"]
    process = by_ray(start, command, 2, PYTHONPATH=f"{DEADLY}{os.pathsep}{ROOT}")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert "one by one" in err
    (record,) = map(json.loads, (tmp_path / "tokens.h5.rejected.jsonl").read_text().splitlines())
    assert (record["key"], record["kind"]) == ("cat/0003", "deadly")
    made, whole = TokenCache.open(tmp_path / "tokens.h5"), TokenCache.open(tmp_path / "whole.h5")
    others = [i for i in range(12) if whole.key(i) != "cat/0003"]
    assert [made.key(i) for i in range(11)] == [whole.key(i) for i in others]
    assert (made.ids[:] == whole.ids[:][others]).all()


@pytest.mark.slow
def test_a_unit_over_which_actors_die_is_named(source: Path, start: Start, tmp_path: Path) -> None:
    """As when its tiles need more memory than a machine has: the third death ends the command."""
    tiny.shards(tmp_path / "one", 1, 200)
    weights = ["--tokenizer", str(source / "deep.safetensors")]
    process = by_ray(start, ["tokenize", str(tmp_path / "one"), "-o", str(tmp_path / "tokens.h5"), *weights], 1)
    for _ in range(3):
        assert kill_one(process, "ray::TokenizeActor.part", below=process.pid)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "3 workers died while it worked on" in err
    assert "000.tar[0:200]" in err
    assert "--batch-size" in err


@pytest.mark.slow
def test_a_machine_without_memory_is_told_with_the_unit(source: Path, start: Start, tmp_path: Path) -> None:
    """Ray ends the workers of a machine that has too little memory, also before their first unit."""
    little = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "50"}
    process = by_ray(start, words(source, tmp_path / "tokens.h5"), 1, **little)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "ran out of memory" in err
    assert re.search(r"\d\d\d\.tar|while starting", err)


@pytest.mark.slow
def test_an_actor_that_gets_no_memory_is_told_with_its_unit(source, ray_cluster: str, tmp_path: Path, capsys) -> None:
    """A tile of three terabytes is refused by the system; the process goes on."""
    command = words(source, tmp_path / "tokens.h5", "--batch-size", "1000000000", tokenizer="tokenizer")
    assert run([*command, *by_cluster(ray_cluster, 1)]) == 1
    err = capsys.readouterr().err
    assert re.search(r"a worker failed while it worked on \S*\d\d\d\.tar\S*: out of memory", " ".join(err.split()))
    assert "smaller batch" in err


@pytest.mark.slow
def test_a_running_cluster_is_used_by_other_processes_and_stays(
    source: Path, ray_cluster: str, start: Start, tmp_path: Path
) -> None:
    import ray

    other = ray_machine.driver(start, words(source, tmp_path / "tokens.h5"), ray_cluster, 2)
    _, err = other.communicate(timeout=PATIENCE_S)
    assert other.returncode == 0, err
    assert (tmp_path / "tokens.h5").read_bytes() == (source / "one.h5").read_bytes()
    assert ray.cluster_resources()["CPU"] == 2


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_named(source: Path, run_cli: RunCli, tmp_path: Path) -> None:
    command = words(source, tmp_path / "tokens.h5", "--engine", "ray", "--address", "127.0.0.1:1")
    done = run_cli(*command, code=1)
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stderr
    assert "ray start --head" in done.stderr
