"""Real signals in real processes."""

import signal
import sys

import pytest
from command_line import PATIENCE_S

from titokctl.distributed.stop import StopRequest
from titokctl.errors import Stopped

# Says "ready", works until it is asked to stop, and says with which code it would end.
WORKER = """
import sys, time
from titokctl.distributed.stop import StopRequest
from titokctl.errors import Stopped
try:
    with StopRequest() as stop:
        print("ready", flush=True)
        while not (stop.requested and FINISHES):
            if stop.requested:
                print("asked", flush=True)
            time.sleep(0.01)
        stop.check("three steps are kept")
except Stopped as stopped:
    print(stopped.exit_code, stopped.message)
except KeyboardInterrupt:
    print("at once")
"""


@pytest.fixture
def work(start):
    """Start the worker and wait until it is at work."""

    def call(finishes: bool):
        # In a session of its own, without a terminal that could send signals, too.
        process = start([sys.executable, "-c", WORKER.replace("FINISHES", str(finishes))], start_new_session=True)
        assert process.stdout.readline() == "ready\n"
        return process

    return call


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, "130"), (signal.SIGTERM, "75"), (signal.SIGUSR1, "75"), (signal.SIGHUP, "75")],
    ids=str,
)
def test_a_signal_ends_work_in_order(work, number, code):
    process = work(finishes=True)
    process.send_signal(number)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert out == f"{code} three steps are kept\n"


def test_a_second_ctrl_c_ends_at_once(work):
    process = work(finishes=False)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert out.splitlines()[-1] == "at once"


def test_the_first_signal_decides_the_exit_code():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
        with pytest.raises(Stopped) as caught:
            stop.check()
    assert caught.value.exit_code == 75
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped) as caught:
            stop.check()
    assert caught.value.exit_code == 130


def test_handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    with StopRequest() as stop:
        assert all(signal.getsignal(number) != handler for number, handler in before.items())
        stop.check()
        assert not stop.requested
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_command_under_nohup_outlives_its_terminal(start):
    source = f"import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n{WORKER.replace('FINISHES', 'True')}"
    process = start([sys.executable, "-c", source], start_new_session=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert out == "130 three steps are kept\n", "SIGHUP changed nothing"
