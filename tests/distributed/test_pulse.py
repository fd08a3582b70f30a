"""Waiting for a process that is gone ends: by what it said when it left, or by its silence."""

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
    """Start the pulse of a process; it ends with the test."""
    started = []

    def call(rank, size, silence):
        started.append(Pulse(store, rank, size, silence))
        started[-1].start()
        return started[-1]

    yield call
    for pulse in started:
        pulse.stop()


def test_who_lives_is_waited_for(begin, monkeypatch):
    """The clock of silence goes on only when all were heard anew: a busy machine may take its time."""
    now = [0.0]
    monkeypatch.setattr("titokctl.distributed.pulse.time", SimpleNamespace(monotonic=lambda: now[0]))
    pulses = [begin(rank, 3, silence=0.1) for rank in range(3)]
    for _ in range(5):
        now[0] += 0.09
        for pulse in pulses:
            pulse.check()
        while any(at < now[0] for pulse in pulses for _, at in pulse._heard.values()):
            time.sleep(0.005)


def check_until_it_raises(pulse):
    while True:
        pulse.check()


@pytest.mark.parametrize(("rank", "gone"), [(0, 1), (2, 0)])
def test_silence_is_noticed_on_both_sides(begin, rank, gone):
    pulse = begin(rank, 2 if rank == 0 else 3, silence=0.1)
    with pytest.raises(UserError, match=f"process {gone} is silent") as caught:
        check_until_it_raises(pulse)
    assert "every machine" in caught.value.hint


def test_signs_of_life_are_given_until_the_end(store):
    pulse = Pulse(store, 1, 2)
    pulse.start()
    while not store.add("beat/1", 0):
        time.sleep(0.01)
    pulse.stop()
    assert not pulse._thread.is_alive()


def test_who_leaves_says_why(store):
    main, one, two = (Pulse(store, rank, 3) for rank in range(3))
    two.leave(UserError("the disk is full", "free some space"))
    one.leave(UserError("something that follows from it"))
    with pytest.raises(UserError, match="process 2 ended: the disk is full") as caught:
        main.check()
    assert caught.value.hint == "free some space"


def test_a_stop_of_one_is_a_stop_of_all(store):
    Pulse(store, 1, 2).leave(Stopped(EXIT_STOPPED, "saved."))
    with pytest.raises(Stopped) as caught:
        Pulse(store, 0, 2).check()
    assert caught.value.exit_code == EXIT_STOPPED
