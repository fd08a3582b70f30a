"""kill -9 and Ctrl-C at every kind of system call of every command that writes: the same command then gives the same.

The shim sends the signal in front of a call that concerns the command's files, so that the moments between a write, a
flush and a rename are met, and not only those in which most time is spent. TITOKCTL_KILLS changes how many there are
of each signal for each command; `pytest -rP` shows how many of them ended it.
"""

import os
import random
import signal

import commands
import pytest
from campaign import Server, leftovers, problem_after_again

SEED, KILLS = 22, int(os.environ.get("TITOKCTL_KILLS", "25"))
KINDS = (
    "open", "create", "read", "write", "fsync", "close", "rename", "unlink", "rmdir", "mkdir", "truncate", "link",
    "stat", "list", "thread",
)  # fmt: skip
STOPPED, SAVED = 130, 75
NAMES = [name for name in (*commands.COMMANDS, *commands.TRAINING) if name not in commands.READING]
SIGNALS = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
SECONDS = 600
pytestmark = pytest.mark.slow


def is_odd(done: dict, allowed: tuple[int, ...]) -> bool:
    """Return True if a command ended in another way than it may after a signal."""
    return done["code"] not in allowed or "Traceback" in done["stderr"] or "unexpected " in done["stderr"]


@SIGNALS
@pytest.mark.parametrize("name", NAMES)
def test_after_a_signal_the_same_command_gives_the_same(
    server: Server, place: commands.Place, name: str, number: signal.Signals
) -> None:
    words, work, problems, ended = place.words(name), server.root / "work", [], 0
    done = server.run(place.copy(work), words, kind="open", call=-1, errno=0, kinds=list(KINDS))
    assert done["code"] == 0, done["stderr"]
    counts, expected = done["count"], commands.made(work, name)
    assert expected
    draw = random.Random(f"{SEED} {name} {number}")
    for _ in range(KILLS):
        kind = draw.choice([kind for kind, count in counts.items() if count > 0])
        call = draw.randrange(counts[kind])
        first = server.run(place.copy(work), words, kind=kind, call=call, errno=-number)
        what, said = f"{name}: {number.name} at {kind} call {call} of {counts[kind]}", first["stderr"].strip()
        allowed = (0, -number) if number == signal.SIGKILL else (0, STOPPED, SAVED)
        ended += first["code"] != 0
        if is_odd(first, allowed):
            problems.append(f"{what}: code {first['code']}: {said[-300:]}")
        elif first["code"] == 0 and commands.made(work, name) != expected:
            problems.append(f"{what}: another product, in silence: {said[-300:]}")
        elif first["code"] and (problem := problem_after_again(server, name, words, expected)):
            problems.append(f"{what}: {problem}")
    print(f"{name}: {number.name} ended {ended} of {KILLS} commands")
    assert not problems, "\n".join(problems)


@SIGNALS
def test_jobs_that_divide_the_work_give_the_same_after_a_signal_to_one(
    server: Server, place: commands.Place, number: signal.Signals
) -> None:
    jobs, work, problems, ended = [words.split() for words in commands.JOBS], server.root / "work", [], 0
    place.copy(work)
    counts = []
    for words in jobs:
        done = server.run(work, words, kind="open", call=-1, errno=0, kinds=list(KINDS))
        assert done["code"] == 0, done["stderr"]
        counts.append(done["count"])
    expected = commands.made(work, "parts")
    draw = random.Random(f"{SEED} parts {number}")
    for _ in range(KILLS):
        hit, others_first = draw.randrange(2), draw.random() < 0.5
        kind = draw.choice([kind for kind, count in counts[hit].items() if count > 0])
        call = draw.randrange(counts[hit][kind])
        place.copy(work)
        if others_first:
            assert server.run(work, jobs[1 - hit])["code"] == 0
        first = server.run(work, jobs[hit], kind=kind, call=call, errno=-number)
        what = f"part {hit}, {'last' if others_first else 'first'}: {number.name} at {kind} call {call}"
        ended += first["code"] != 0
        if is_odd(first, (0, -number) if number == signal.SIGKILL else (0, STOPPED, SAVED)):
            problems.append(f"{what}: code {first['code']}: {first['stderr'].strip()[-300:]}")
            continue
        again = [] if first["code"] == 0 else [jobs[hit]]
        for words in again + ([] if others_first else [jobs[1 - hit]]):
            done = server.run(work, words)
            if done["code"] and "exists already" not in done["stderr"]:
                problems.append(f"{what}: then code {done['code']}: {done['stderr'].strip()[-300:]}")
        if commands.made(work, "parts") != expected or leftovers(work):
            problems.append(f"{what}: another product, or files that were left: {leftovers(work)[:3]}")
    print(f"--part: {number.name} ended {ended} of {KILLS} jobs")
    assert not problems, "\n".join(problems)


@SIGNALS
@pytest.mark.parametrize("name", commands.SHARED)
def test_processes_that_share_the_work_give_the_same_after_a_signal(
    server: Server, place: commands.Place, name: str, number: signal.Signals
) -> None:
    """A worker, or the launcher at a moment in a worker's work, gets the signal; Ctrl-C goes to the launcher."""
    words, work, problems, hits = place.words(name), server.root / "work", [], 0
    alone = [word for word in words if word not in ("--procs", "2")]
    counted = server.run(place.copy(work), alone, kind="open", call=-1, errno=0, kinds=list(KINDS))
    assert counted["code"] == 0, counted["stderr"]
    nobody = {"rank": 9, "kind": "open", "call": 0, "errno": 0, "launcher": False, "seconds": SECONDS}
    done = server.run(place.copy(work), words, **nobody)
    assert done["code"] == 0, done["stderr"]
    expected = commands.made(work, name)
    assert expected
    draw = random.Random(f"{SEED} {name} {number}")
    for _ in range(KILLS):
        kind = draw.choice([kind for kind, count in counted["count"].items() if count > 1 and kind != "thread"])
        call, rank = draw.randrange(counted["count"][kind] // 2), draw.randrange(2)
        fault = {"kind": kind, "call": call, "rank": rank, "errno": -number, "seconds": SECONDS}
        fault["launcher"] = number == signal.SIGINT or draw.random() < 0.5
        first = server.run(place.copy(work), words, **fault)
        what = f"{name}: {number.name} to {'the launcher' if fault['launcher'] else rank} at {kind} call {call}"
        allowed = (0, 1, -number) if number == signal.SIGKILL else (0, STOPPED, SAVED)
        hits += first["code"] != 0
        if is_odd(first, allowed):
            problems.append(f"{what}: code {first['code']}: {first['stderr'].strip()[-300:]}")
        elif first["code"] == 0 and commands.made(work, name) != expected:
            problems.append(f"{what}: another product, in silence: {first['stderr'].strip()[-300:]}")
        elif first["code"] and (problem := problem_after_again(server, name, words, expected, **nobody)):
            problems.append(f"{what}: {problem}")
    print(f"{name}: {number.name} ended {hits} of {KILLS} commands")
    assert not problems, "\n".join(problems)
    assert hits
