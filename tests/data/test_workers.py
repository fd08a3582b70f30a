"""Batches made ahead: each once at a time, whatever is asked for."""

import threading
import time

import pytest

from titokctl.data.workers import Prefetch


def test_the_next_is_made_while_this_one_is_used_and_never_two_at_once():
    busy, made = threading.Lock(), []

    def make(step):
        assert busy.acquire(blocking=False), "another one is being made"
        time.sleep(0.01)
        made.append(step)
        busy.release()
        return step * step

    batches = Prefetch(make)
    asked = [0, 1, 2, 2, 9, 3, 4, 0]
    assert [batches.get(step) for step in asked] == [step * step for step in asked]
    assert made.count(1) <= 2


def test_an_error_is_raised_where_its_batch_is_asked_for():
    def make(step):
        if step == 1:
            raise ArithmeticError("one")
        return step

    batches = Prefetch(make)
    assert batches.get(0) == 0
    with pytest.raises(ArithmeticError, match="one"):
        batches.get(1)
    assert batches.get(0) == 0
    assert batches.get(2) == 2, "what was made ahead in vain is nobody's business"
