"""Waiting for a dead process ends: by its report, or by missing heartbeats."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from titokctl.distributed.pulse import Pulse
from titokctl.errors import EXIT_STOPPED, Stopped, UserError


@pytest.fixture
def store():
    return dist.HashStore()


@pytest.fixture
def begin(store):
    """Start the heartbeat of a process; it ends with the test."""
    started = []

    def call(rank, size, silence):
        started.append(Pulse(store, rank, size, silence))
        started[-1].start()
        return started[-1]

    yield call
    for pulse in started:
        pulse.stop()


def test_a_slow_process_is_waited_for(begin, monkeypatch):
    """Time passes only after all heartbeats were received, so that a busy machine can't fail this test."""
    now = [0.0]
    monkeypatch.setattr("titokctl.distributed.pulse.time", SimpleNamespace(monotonic=lambda: now[0]))
    pulses = [begin(rank, 3, silence=0.1) for rank in range(3)]
    for _ in range(5):
        now[0] += 0.09
        for pulse in pulses:
            pulse.check()
        while any(at < now[0] for pulse in pulses for at in pulse.last_received.values()):
            time.sleep(0.005)


def check_until_it_raises(pulse):
    while True:
        pulse.check()


@pytest.mark.parametrize(("rank", "gone"), [(0, 1), (2, 0)])
def test_missing_heartbeats_are_noticed_on_both_sides(begin, rank, gone):
    pulse = begin(rank, 2 if rank == 0 else 3, silence=0.1)
    with pytest.raises(
        UserError, match=rf"no heartbeat from rank {gone} for 0\.1 s: the process or its machine died"
    ) as caught:
        check_until_it_raises(pulse)
    assert "every machine" in caught.value.hint


def test_heartbeats_are_sent_until_the_end(store):
    pulse = Pulse(store, 1, 2)
    pulse.start()
    while not store.add("beat/1", 0):
        time.sleep(0.01)
    pulse.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "pulse"]


def test_a_process_that_leaves_reports_why(store):
    main, one, two = (Pulse(store, rank, 3) for rank in range(3))
    two.leave(UserError("the disk is full", "free some space"))
    one.leave(UserError("a consequence of it"))
    with pytest.raises(UserError, match="rank 2 failed: the disk is full") as caught:
        main.check()
    assert caught.value.hint == "free some space"


def test_a_stop_of_one_process_stops_all(store):
    Pulse(store, 1, 2).leave(Stopped(EXIT_STOPPED, "saved."))
    with pytest.raises(Stopped) as caught:
        Pulse(store, 0, 2).check()
    assert caught.value.exit_code == EXIT_STOPPED
