"""Several processes: they find each other, exit together, and none is left when one of them dies."""

import platform
import resource
import signal
import sys
from pathlib import Path

import pytest
from command_line import PATIENCE_S
from process_tree import wait_for_end, wait_for_files

import titokctl
from titokctl.distributed.launch import relaunch, run_workers
from titokctl.errors import UsageError, UserError

ROOT = Path(titokctl.__file__).resolve().parents[1]

WORKER = """
import os, signal, sys, time
from titokctl.distributed import worker
worker.started()
import torch
from titokctl.distributed.group import process_group
from titokctl.distributed.reduce import GradientSums, StopAgreement, gathered, summed
from titokctl.distributed.stop import StopRequest
from titokctl.errors import Stopped, UserError

def work(group, stop):
    how, folder = sys.argv[1], sys.argv[2]
    big, used, unused = (torch.nn.Parameter(torch.ones(size)) for size in (1 << 19, 3, 2))
    sums = GradientSums([big, used, unused], group)
    for is_last in (False, True):  # gradients of two micro batches, in more than one message
        sums.backward((group.rank + 1) * (2 * big.sum() + used.sum()), is_last)
    sums.finish()
    assert used.grad.tolist() == [6.0, 6.0, 6.0] and unused.grad is None
    assert big.grad.unique().tolist() == [12.0]
    for parameter in (big, used):
        parameter.grad = None
    sums.backward((group.rank + 1) * used.sum(), True)
    sums.finish()
    assert used.grad.tolist() == [3.0, 3.0, 3.0] and big.grad is None, "nothing is left of the step before"
    assert summed({"a": torch.tensor(group.rank + 0.5)}, group)["a"] == 2.0
    assert gathered(torch.tensor([group.rank]), group).tolist() == [0, 1]
    assert group.from_main({"from": group.rank}) == {"from": 0}
    claimed = group.shared_store("queue").add("next", 1)
    open(os.path.join(folder, f"{group.rank}-{claimed}-{os.getpid()}"), "w").close()
    if how == "fail" and group.rank == 1:
        raise UserError("the second process found a fault", "mend it")
    if how in ("die", "crash") and group.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL if how == "die" else signal.SIGSEGV)
    if how in ("fail", "die", "crash"):
        group.barrier()
    agreed, step = StopAgreement(stop, group), 0
    while how == "wait" and not agreed.reached():
        step += 1
        time.sleep(0.01)
    agreed.close()
    if how == "wait":
        assert group.from_main(step) == step, "all leave after the same step"
        stop.check("Saved.")

ending = (0,)
try:
    with StopRequest() as stop, process_group("cpu") as group:
        work(group, stop)
except UserError as error:
    ending = (error.exit_code, error.message, error.hint)
except Stopped as stopped:
    ending = (stopped.exit_code, stopped.message)
except RuntimeError as error:  # the connection to a process that was killed
    ending = (1, str(error))
sys.exit(worker.ended(*ending))
"""

PARENT = """
import sys
from titokctl.distributed.launch import run_workers
from titokctl.errors import Stopped
try:
    run_workers(sys.argv[1:], 2)
except Stopped as stopped:
    print(stopped)
    sys.exit(stopped.exit_code)
"""


# Bytes that are fetched from the system for blocks of 64 MiB, one after the other, after a first one.
FETCHING = """
import os, resource, sys
from titokctl.distributed import worker
worker.started()
b"x" * (1 << 26)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    b"x" * (1 << 26)
fetched = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
with open(f"{sys.argv[1]}-{os.environ['RANK']}", "w") as file:
    file.write(str(fetched * os.sysconf("SC_PAGE_SIZE")))
worker.ended(0)
"""


@pytest.fixture
def script(tmp_path, monkeypatch, command_server):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = tmp_path / "worker.py"
    path.write_text(WORKER)
    (tmp_path / "seen").mkdir()
    return path


def ready(script):
    return sorted(path.name for path in (script.parent / "seen").iterdir())


def test_processes_find_each_other_and_share_a_queue(script):
    run_workers([str(script), "work", str(script.parent / "seen")], 2)
    seen = [name.split("-")[:2] for name in ready(script)]
    assert [rank for rank, _ in seen] == ["0", "1"]
    assert sorted(claimed for _, claimed in seen) == ["1", "2"], "each item is claimed once"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries manage memory in other ways")
@pytest.mark.parametrize("own", [None, "glibc.malloc.trim_threshold=1"])
def test_workers_keep_memory_that_they_freed_unless_the_user_says_otherwise(tmp_path, monkeypatch, own):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("PYTHON_EXEC", raising=False)  # the C library reads its settings when a process starts
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if own:
        monkeypatch.setenv("GLIBC_TUNABLES", own)
    (tmp_path / "worker.py").write_text(FETCHING)
    run_workers([str(tmp_path / "worker.py"), str(tmp_path / "bytes")], 2)
    fetched = [int((tmp_path / f"bytes-{rank}").read_text()) for rank in range(2)]
    assert all((number > 300e6) == bool(own) for number in fetched), fetched


def test_an_error_of_one_process_ends_all_and_is_reported(script):
    with pytest.raises(UserError, match="the second process found a fault") as caught:
        run_workers([str(script), "fail", str(script.parent / "seen")], 2)
    assert caught.value.hint == "mend it"
    assert_nobody_is_left(script)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"), [("die", r"was killed by the system \(SIGKILL\)"), ("crash", r"crashed \(SIGSEGV\)")]
)
def test_a_killed_process_is_named(script, how, said):
    """The other process reports the connection that it lost, which is only a consequence."""
    with pytest.raises(UserError, match=f"^rank 1 of 2 processes {said}"):
        run_workers([str(script), how, str(script.parent / "seen")], 2)
    assert_nobody_is_left(script)


@pytest.mark.parametrize(
    "how",
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow),
     pytest.param(signal.SIGUSR1, marks=pytest.mark.slow), pytest.param(signal.SIGKILL, marks=pytest.mark.slow)],
)  # fmt: skip
def test_signals_reach_the_workers_and_none_is_left(script, start, python, how, tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    parent = start([python, "-c", PARENT, str(script), "wait", str(script.parent / "seen")])
    wait_for_files(parent, script.parent / "seen", "*", 2)
    parent.send_signal(how)
    said, complaints = parent.communicate(timeout=PATIENCE_S)
    assert parent.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}.get(how, 75), complaints
    assert said.strip() == ("" if how == signal.SIGKILL else "Saved.")
    assert_nobody_is_left(script)
    assert how == signal.SIGKILL or not list(temporary.iterdir())


@pytest.mark.slow
def test_a_failure_of_torchrun_itself_is_one_sentence(script, start):
    def few_descriptors():
        resource.setrlimit(resource.RLIMIT_NOFILE, (18, 18))

    words = [sys.executable, "-c", PARENT, str(script), "work", str(script.parent / "seen")]
    parent = start(words, preexec_fn=few_descriptors)
    _, said = parent.communicate(timeout=PATIENCE_S)
    assert "UserError: the processes can't be started together: " in said.splitlines()[-1] + said.splitlines()[-2]
    assert said.count("Traceback") == 1, "that of the test's own parent"
    assert not ready(script)


def test_a_launched_process_does_not_launch_again(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    assert not relaunch(None, 4)


@pytest.mark.parametrize(
    ("gpus", "procs", "message"),
    [("2", 2, "mutually exclusive"), (None, 0, "must be at least 1"), ("two", None, "must be a positive number or all"),
     ("4096", None, "this machine has")],
)  # fmt: skip
def test_impossible_numbers_of_processes_are_refused(gpus, procs, message):
    with pytest.raises(UsageError, match=message):
        relaunch(gpus, procs)


def test_one_process_is_not_launched():
    assert not relaunch(None, None)
    assert not relaunch(None, 1)


def assert_nobody_is_left(script):
    wait_for_end([int(name.split("-")[2]) for name in ready(script)])
