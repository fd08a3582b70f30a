"""`titokctl tokenize` in several processes: the same bytes for any number, and no hang when one of them dies."""

import json
import os
import signal
from pathlib import Path

import pytest
import tiny
from command_line import PATIENCE_S, ROOT, RunCli
from process_tree import end, signalled

from titokctl.cli.app import run
from titokctl.formats.token_cache import TokenCache

SHARDS, PER_SHARD = 10, 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    tiny.tokenizer(root / "tokenizer.safetensors")
    tiny.tokenizer(root / "deep.safetensors", layers=60)
    tiny.shards(root / "shards", SHARDS, PER_SHARD)
    return root


def words(source: Path, output: Path, *more: str, tokenizer: str = "tokenizer") -> list[str]:
    weights = str(source / f"{tokenizer}.safetensors")
    return ["tokenize", str(source / "shards"), "-o", str(output), "--tokenizer", weights, *more]


@pytest.mark.parametrize(("procs", "precision"), [pytest.param("2", "float32", marks=pytest.mark.slow), ("3", "bf16")])
def test_bytes_do_not_depend_on_the_number_of_processes(
    source: Path, run_cli: RunCli, tmp_path: Path, procs: str, precision: str
) -> None:
    assert run([*words(source, tmp_path / "one.h5", "--precision", precision), "--quiet"]) == 0
    more = ("--procs", procs, "--views", "flip", "--precision", precision, "--json")
    (tmp_path / "tmp").mkdir()
    done = run_cli(*words(source, tmp_path / "many.h5", *more), code=0, env={"TMPDIR": str(tmp_path / "tmp")})
    assert not list((tmp_path / "tmp").iterdir()), "neither torchrun nor the launcher leaves a folder"
    assert done.json["rows"] == SHARDS * PER_SHARD
    assert "60 rows + 0 rejected = 60 images" in done.stderr
    assert (tmp_path / "many.h5").read_bytes() == (tmp_path / "one.h5").read_bytes()


SLOW = ((signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130), ("parent", -9))


@pytest.mark.parametrize("endings", [(("worker", 1),), pytest.param(SLOW, marks=pytest.mark.slow)], ids=["1", "all"])
def test_killed_workers_and_signals_and_a_killed_parent(
    source: Path, start, python: str, tmp_path: Path, endings
) -> None:
    """One output, begun several times: each ending leaves only whole parts, and the final bytes are right."""
    output = tmp_path / "tokens.h5"
    for ending, code in endings:
        for part in list(tmp_path.rglob("unit-*"))[1:]:
            part.unlink()
        command = words(source, output, "--procs", "2")
        end(start, python, command, ending, code, tmp_path / "tokens.h5.parts", "unit-*", 2)
        assert not output.exists()
    assert run([*words(source, output), "--quiet", "--json"]) == 0
    assert run([*words(source, tmp_path / "undisturbed.h5"), "--quiet"]) == 0
    assert output.read_bytes() == (tmp_path / "undisturbed.h5").read_bytes()


def test_mistakes_end_it_before_any_process_is_started(source: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "there.h5").write_bytes(b"x")
    assert run(words(source, tmp_path / "there.h5", "--procs", "2")) == 1
    assert "exists already" in capsys.readouterr().err
    assert run(words(source, tmp_path / "new.h5", "--procs", "2", "--views", "nine")) == 2
    assert run(words(source, tmp_path / "new.h5", "--procs", "2", "--gpus", "2")) == 2


@pytest.mark.slow
def test_an_error_of_a_process_is_shown_once(source: Path, run_cli: RunCli, tmp_path: Path) -> None:
    done = run_cli("tokenize", tmp_path, "-o", "t.h5", "--tokenizer", source / "tokenizer.safetensors", "--procs", 2)
    assert done.code == 1
    assert done.stderr.count("error:") == 1
    assert "is empty" in done.stderr


@pytest.mark.parametrize("last", [[], pytest.param(["--procs", "2"], marks=pytest.mark.slow)], ids=["1", "2"])
def test_jobs_that_divide_the_units_run_at_once(
    source: Path, start, python: str, tmp_path: Path, last: list[str]
) -> None:
    """Two jobs at the same time that share nothing but the folder; the last one with one or two processes."""
    output = tmp_path / "tokens.h5"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    jobs = []
    for i, more in enumerate(([], last)):
        line = [*words(source, output, "--part", f"{i}/2", *more, tokenizer="deep"), "--quiet", "--json"]
        jobs.append(start([python, "-m", "titokctl", *line], env=environment))
    results = []
    for job in jobs:
        out, err = job.communicate(timeout=PATIENCE_S)
        assert job.returncode == 0, err
        results.append(json.loads(out))
    assert any(result["finished"] for result in results)
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.h5"]
    assert run([*words(source, tmp_path / "one.h5", tokenizer="deep"), "--quiet"]) == 0
    assert TokenCache.open(output).sha256 == TokenCache.open(tmp_path / "one.h5").sha256
    assert output.read_bytes() == (tmp_path / "one.h5").read_bytes()


def test_a_job_that_was_killed_runs_again_and_makes_what_is_missing(
    source: Path, run_cli: RunCli, python: str, tmp_path: Path
) -> None:
    """Part 0 of 2 is killed after one part; part 1 finishes first; part 0 runs again, makes the rest, and merges."""
    output = tmp_path / "tokens.h5"
    parts = output.with_name("tokens.h5.parts")
    first = words(source, output, "--part", "0/2")
    assert signalled(python, first, signal.SIGKILL, parts, "unit-*", 1).returncode == -signal.SIGKILL
    done = run_cli(*words(source, output, "--part", "1/2", "--json"), code=0)
    assert not done.json["finished"]
    assert "other jobs are still working" in done.stderr
    done = run_cli(*first, "--json", code=0)
    assert done.json["finished"]
    assert 1 <= done.json["units_reused"] < SHARDS // 2
    assert [p.name for p in tmp_path.iterdir()] == ["tokens.h5"]
    assert run([*words(source, tmp_path / "one.h5"), "--quiet"]) == 0
    assert output.read_bytes() == (tmp_path / "one.h5").read_bytes()
