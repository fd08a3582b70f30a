"""`titokctl tokenize` as a process that is interrupted, killed, or out of disk: the same command resumes."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from command_line import ROOT, RunCli
from process_tree import children, signalled, wait_for_end

from titokctl.cli.app import run
from titokctl.formats.token_cache import TokenCache

SHARDS, PER_SHARD = 8, 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    # Deep enough that a kill after a time often hits the work itself.
    tiny.tokenizer(root / "tokenizer.safetensors", layers=12)
    tiny.tokenizer(root / "shallow.safetensors")
    tiny.shards(root / "shards", SHARDS, PER_SHARD)
    return root


def words(source: Path, output: Path) -> list[str]:
    return ["tokenize", str(source / "shards"), "-o", str(output), "--tokenizer", str(source / "tokenizer.safetensors")]


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> bytes:
    assert run([*words(source, source / "undisturbed.h5"), "--quiet", "--json"]) == 0
    return (source / "undisturbed.h5").read_bytes()


def stopped_after(
    python: str, parts: int, number: signal.Signals, source: Path, output: Path
) -> subprocess.CompletedProcess:
    return signalled(python, words(source, output), number, output.with_name(f"{output.name}.parts"), "unit-*", parts)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_ends_it_cleanly_and_the_same_command_resumes(
    source: Path,
    undisturbed: bytes,
    python: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    output = tmp_path / "tokens.h5"
    done = stopped_after(python, 2, number, source, output)
    assert done.returncode == code, done.stderr
    assert "run the same command again" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.h5.parts"]
    assert not list(tmp_path.rglob(".*.tmp-*"))
    assert run([*words(source, output), "--json"]) == 0
    assert 2 <= json.loads(capsys.readouterr().out)["units_reused"] < SHARDS
    assert output.read_bytes() == undisturbed
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.h5"]


@pytest.mark.parametrize("parts", [1, 3, 6])
def test_after_kill_9_the_same_command_gives_the_same_bytes(
    source: Path, undisturbed: bytes, python: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: int
) -> None:
    output = tmp_path / "tokens.h5"
    assert stopped_after(python, parts, signal.SIGKILL, source, output).returncode == -signal.SIGKILL
    assert not output.exists()
    assert run([*words(source, output), "--json"]) == 0
    out, err = capsys.readouterr()
    assert parts <= json.loads(out)["units_reused"] < SHARDS
    assert f"{SHARDS * PER_SHARD} rows + 0 rejected = {SHARDS * PER_SHARD} images" in err
    assert output.read_bytes() == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(20))
def test_after_kill_9_at_any_moment(
    source: Path, undisturbed: bytes, run_cli: RunCli, tmp_path: Path, attempt: int
) -> None:
    """Killed twice at some moment, with other numbers of threads, workers and processes each time."""
    output, procs = tmp_path / "tokens.h5", attempt % 3
    more = ["--quiet", "--workers", str(1 + attempt % 2), *(["--procs", str(procs)] if procs else [])]
    begin = 2.0 if procs == 2 else 0.0  # several processes take longer to be up
    for moment in (begin + 1.4 + attempt / 10, begin + 1.7 + attempt % 7 / 10):
        process = subprocess.Popen(
            [sys.executable, "-m", "titokctl", *words(source, output), *more],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(1 + attempt % 2)},
            stdout=subprocess.DEVNULL,
        )
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            below = children(process.pid)
            process.kill()
            process.wait()
            wait_for_end(below)
    if not output.exists():
        run_cli(*words(source, output), code=0)
    assert output.read_bytes() == undisturbed


def test_contents_do_not_depend_on_the_number_of_threads(source: Path, run_cli: RunCli, tmp_path: Path) -> None:
    hashes = set()
    for threads, batch_size in ((1, 16), (2, 5)):
        output = tmp_path / f"{threads}.h5"
        command = [*words(source, output), "--batch-size", batch_size, "--workers", threads]
        command[command.index("--tokenizer") + 1] = source / "shallow.safetensors"
        run_cli(*command, code=0, env={"OMP_NUM_THREADS": str(threads)})
        hashes.add(TokenCache.open(output).sha256)
    assert len(hashes) == 1


def test_a_full_disk_leaves_what_was_finished(source: Path, undisturbed: bytes, tmp_path: Path) -> None:
    """A limit on the size of files acts as the full disk: the parts fit below it, the merged file does not."""
    output = tmp_path / "tokens.h5"
    limited = subprocess.run(
        [sys.executable, "-m", "titokctl", *words(source, output)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY)),
    )
    assert limited.returncode == 1
    assert "tokens.h5 exceeds the maximum size" in limited.stderr
    assert "hint: " in limited.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.h5.parts"]
    assert len(list((tmp_path / "tokens.h5.parts").glob("unit-*"))) == SHARDS


def test_without_any_tokenizer_it_says_how_to_get_one(source: Path, run_cli: RunCli) -> None:
    done = run_cli("tokenize", source / "shards", "-o", "tokens.h5", code=1)
    assert "no tokenizer was named" in done.stderr
    assert "titok-l-32" in done.stderr
    assert "hint: " in done.stderr
