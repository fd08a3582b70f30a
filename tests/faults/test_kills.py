"""kill -9 and Ctrl-C at every kind of system call of every command that writes: the same command then gives the same.

The shim sends the signal in front of a call that concerns the command's files, so that the moments between a write, a
flush and a rename are met, and not only those in which most time is spent. TITOKCTL_KILLS changes how many there are
of each signal for each command.
"""

import os
import random
import signal

import commands
import pytest
from campaign import Server, problem_after_again

SEED, KILLS = 22, int(os.environ.get("TITOKCTL_KILLS", "25"))
KINDS = (
    "open", "create", "read", "write", "fsync", "close", "rename", "unlink", "rmdir", "mkdir", "truncate", "link",
    "stat", "list", "thread",
)  # fmt: skip
STOPPED, SAVED = 130, 75
NAMES = [name for name in (*commands.COMMANDS, *commands.TRAINING) if name not in commands.READING]
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
@pytest.mark.parametrize("name", NAMES)
def test_after_a_signal_the_same_command_gives_the_same(
    server: Server, place: commands.Place, name: str, number: signal.Signals
) -> None:
    words, work, problems = place.words(name), server.root / "work", []
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
        if first["code"] not in allowed or "Traceback" in said or "unexpected " in said:
            problems.append(f"{what}: code {first['code']}: {said[-300:]}")
        elif first["code"] == 0 and commands.made(work, name) != expected:
            problems.append(f"{what}: another product, in silence: {said[-300:]}")
        elif first["code"] and (problem := problem_after_again(server, name, words, expected)):
            problems.append(f"{what}: {problem}")
    assert not problems, "\n".join(problems)
