"""What every test gets: no network, its share of the cores, a real command line to call."""

import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from command_line import PATIENCE_S, ROOT, CliResult, RunCli
from command_server import CommandServer

# Before anything imports torch or a hub client, here and in every process a test starts.
os.environ["TITOKCTL_OFFLINE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Threads that wait for each other at a core that another test process holds take many times as long. Test processes
# inherit what the process that starts them set here, which does not know of them: they set it again.
_CORES, _PROCESSES = os.cpu_count() or 1, os.environ.get("PYTEST_XDIST_WORKER_COUNT")
if _PROCESSES:
    os.environ["OMP_NUM_THREADS"] = str(max(1, min(2, _CORES // int(_PROCESSES))))
else:
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, _CORES)))
# Tests end processes, never the machine: nothing waits until a disk has what was written.
os.fsync = os.fstat  # type: ignore[assignment]
# What the person's shell says must not decide what the tests see.
_OURS = ("TITOKCTL_RUNS", "TITOKCTL_DEBUG")
_TERMINAL = ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
_RANKS = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
for _name in _OURS + _TERMINAL + _RANKS:
    os.environ.pop(_name, None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes; run with --slow"))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The private runs folder of `run_cli`."""
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def command_server() -> Iterator[CommandServer]:
    """Starts commands quickly, and workers of commands in several processes, too."""
    with CommandServer(ROOT) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHON_EXEC", server.python)  # what torchrun starts workers with
        yield server


@pytest.fixture(scope="session")
def python(command_server: CommandServer) -> str:
    """A Python interpreter for `start` and subprocess that starts quickly: see command_server.py."""
    return command_server.python


@pytest.fixture
def run_cli(tmp_path: Path, runs: Path, command_server: CommandServer) -> RunCli:
    """Call `titokctl` as a process of its own: `run_cli("inspect", path, code=0, cwd=..., env={...})`.

    It works in `tmp_path` with its own runs folder. With `code` given, any other exit code fails the test and shows
    what the command said.
    """

    def call(
        *words: object, code: int | None = None, cwd: Path = tmp_path, env: Mapping[str, str] | None = None
    ) -> CliResult:
        line = [str(word) for word in words]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TITOKCTL_RUNS": str(runs), **(env or {})}
        if command_server.can_run(environment):
            result = CliResult(*command_server.run(line, cwd, environment, PATIENCE_S))
        else:
            result = _run_alone(line, cwd, environment)
        if code is not None:
            assert result.code == code, f"exit code {result.code}, not {code}\n{result.stdout}\n{result.stderr}"
        return result

    return call


def _run_alone(words: list[str], folder: Path, environment: Mapping[str, str]) -> CliResult:
    done = subprocess.run(
        [sys.executable, "-m", "titokctl", *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    return CliResult(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process with its output in pipes; whatever still runs when the test ends is killed."""
    processes: list[subprocess.Popen[str]] = []

    def call(words: list[str], **options: Any) -> subprocess.Popen[str]:
        # A suite under `nohup` ignores SIGHUP, and so would its children.
        hears = {"preexec_fn": functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **hears, **options}
        processes.append(subprocess.Popen(words, **options))
        return processes[-1]

    yield call
    for process in processes:
        process.kill()
        process.communicate()
