"""`titokctl tokenize --engine ray`: the bytes of one process, whatever dies; the last words of what can't be made."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from command_line import PATIENCE_S, ROOT, RunCli
from PIL import Image
from process_tree import children, wait_for_end

from titokctl.cli.app import run
from titokctl.formats.token_cache import TokenCache

pytest.importorskip("ray", reason="needs the extra ray: pip install 'titokctl[ray]'")

SHARDS, PER_SHARD = 40, 6
# Object stores of 200 MB; no message to Ray's makers; workers that get as much of a busy machine as the test does.
SMALL = {
    "RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES": "200000000",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
}
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
    ray = ["--engine", "ray", "--max-workers", str(workers)]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), **SMALL, **environment}
    return start([sys.executable, "-m", "titokctl", *command, *ray], env=settings, stdin=subprocess.DEVNULL)


def titles(process: int) -> dict[int, str]:
    """The titles of all processes below `process`."""
    found = {}
    for child in children(process):
        try:
            found[child] = Path(f"/proc/{child}/cmdline").read_text().split("\0")[0].strip()
        except OSError:
            continue
    return found


def kill_one(process: subprocess.Popen[str], title: str) -> bool:
    """Kill a process below `process` whose title begins with `title`; waits for one. False if `process` ends before."""
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None:
        assert time.monotonic() < until
        if found := [one for one, name in titles(process.pid).items() if name.startswith(title)]:
            os.kill(found[0], signal.SIGKILL)
            wait_for_end(found[:1])
            return True
        time.sleep(0.002)
    return False


def wait_for_parts(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while process.poll() is None and len(list(folder.glob("unit-*"))) < count:
        assert time.monotonic() < until
        time.sleep(0.005)


def test_killed_actors_and_a_killed_driver_leave_the_bytes_as_they_are(
    source: Path, start: Start, tmp_path: Path
) -> None:
    """An actor dies, then a task that decodes, then the driver; another number of workers finishes the output."""
    output = tmp_path / "tokens.h5"
    first = by_ray(start, words(source, output), 2)
    assert kill_one(first, "ray::TokenizeActor.part")
    assert kill_one(first, "ray::decode_unit")
    wait_for_parts(first, tmp_path / "tokens.h5.parts", 5)
    first.kill()
    first.wait()
    assert not output.exists()
    last = by_ray(start, [*words(source, output), "--json"], 1)
    out, err = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, err
    assert json.loads(out)["units_reused"] >= 5
    assert output.read_bytes() == (source / "one.h5").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_bytes_do_not_depend_on_the_number_of_actors(source: Path, start: Start, tmp_path: Path, workers: int) -> None:
    output = tmp_path / "tokens.h5"
    process = by_ray(start, words(source, output, "--min-workers", "1"), workers)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    assert output.read_bytes() == (source / "one.h5").read_bytes()


@pytest.mark.slow
def test_twenty_deaths_at_random_moments_leave_the_bytes_as_they_are(
    source: Path, start: Start, tmp_path: Path
) -> None:
    output, rng = tmp_path / "tokens.h5", random.Random(0)
    parts = tmp_path / "tokens.h5.parts"
    deaths = 0
    while deaths < 20:
        for part in rng.sample(sorted(parts.glob("unit-*")), len(list(parts.glob("unit-*"))) // 2):
            part.unlink()
        process = by_ray(start, words(source, output), rng.choice([1, 2, 3]))
        for victim in rng.choices(["ray::TokenizeActor", "ray::decode_unit"], k=rng.randint(0, 3)):
            time.sleep(rng.random() / 2)
            deaths += kill_one(process, victim)
        wait_for_parts(process, parts, rng.randint(0, SHARDS // 2))
        assert process.poll() is None, process.communicate()[1]
        process.kill()
        process.wait()
        deaths += 1
    last = by_ray(start, words(source, output), 2)
    _, err = last.communicate(timeout=PATIENCE_S)
    assert last.returncode == 0, err
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
        assert kill_one(process, "ray::TokenizeActor.part")
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "3 workers died while it worked on" in err
    assert "000.tar[0:200]" in err
    assert "--batch-size" in err


@pytest.mark.slow
def test_a_machine_without_memory_is_told(source: Path, start: Start, tmp_path: Path) -> None:
    """Ray's own watch over memory ends the workers of a machine that has too little of it."""
    little = {"RAY_memory_usage_threshold": "0.001", "RAY_memory_monitor_refresh_ms": "50"}
    process = by_ray(start, words(source, tmp_path / "tokens.h5"), 1, **little)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "ran out of memory" in err


@pytest.mark.slow
def test_a_running_cluster_is_used_and_stays(source: Path, run_cli: RunCli, tmp_path: Path) -> None:
    import ray

    for name, value in SMALL.items():
        os.environ.setdefault(name, value)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        address = ray.get_runtime_context().gcs_address
        command = words(source, tmp_path / "tokens.h5", "--engine", "ray", "--address", address)
        run_cli(*command, code=0)
        assert (tmp_path / "tokens.h5").read_bytes() == (source / "one.h5").read_bytes()
        assert ray.cluster_resources()["CPU"] == 2
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_is_named(source: Path, run_cli: RunCli, tmp_path: Path) -> None:
    command = words(source, tmp_path / "tokens.h5", "--engine", "ray", "--address", "127.0.0.1:1")
    done = run_cli(*command, code=1)
    assert "no Ray cluster answers at 127.0.0.1:1" in done.stderr
    assert "ray start --head" in done.stderr
