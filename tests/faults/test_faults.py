"""Faults of the machine in every command: one sentence, nothing half-written, and the same command then succeeds.

A shim (`shim.c`) is preloaded into the process and lets one system call on a file fail. The calls are chosen by the
seed below; TITOKCTL_FAULTS changes how many, in all commands together.
"""

import errno
import os
import random

import commands
import pytest
from campaign import Server, problem_after_again

SEED, FAULTS = 20, int(os.environ.get("TITOKCTL_FAULTS", "520"))
ERRORS = {
    "open": (errno.EIO, errno.EMFILE, errno.ESTALE, errno.EACCES),
    "create": (errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EIO, errno.ENAMETOOLONG),
    "read": (errno.EIO, errno.ESTALE),
    "write": (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG),
    "fsync": (errno.EIO, errno.ENOSPC),
    "close": (errno.EIO, errno.ENOSPC, errno.EDQUOT),
    "rename": (errno.EIO, errno.EROFS, errno.ESTALE),
    "unlink": (errno.EIO, errno.EROFS),
    "rmdir": (errno.EIO,),
    "mkdir": (errno.ENOSPC, errno.EROFS),
    "truncate": (errno.ENOSPC, errno.EIO),
    "link": (errno.EPERM, errno.EIO),
    "stat": (errno.EIO, errno.ESTALE),
    "list": (errno.EIO, errno.EMFILE),
    "thread": (errno.EAGAIN,),
}
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_a_fault_is_one_sentence_and_the_same_command_then_succeeds(
    server: Server, place: commands.Place, name: str
) -> None:
    words, work, problems = place.words(name), server.root / "work", []
    done = server.run(place.copy(work), words, kind="open", call=-1, errno=0, kinds=list(ERRORS))
    assert done["code"] == 0, done["stderr"]
    counts = done["count"]
    expected = commands.made(work, name)
    draw = random.Random(f"{SEED} {name}")
    for _ in range(FAULTS // len(commands.COMMANDS)):
        kind = draw.choice([kind for kind, count in counts.items() if count > 0])
        fault = {"kind": kind, "call": draw.randrange(counts[kind]), "errno": draw.choice(ERRORS[kind])}
        first = server.run(place.copy(work), words, **fault)
        what = f"{name}: {kind} call {fault['call']} of {counts[kind]}: {errno.errorcode[fault['errno']]}"
        said = first["stderr"].strip()
        if first["code"] not in (0, 1, 2) or "Traceback" in said or "unexpected " in said:
            problems.append(f"{what}: code {first['code']}: {said[-300:]}")
        elif first["code"] and "error: " not in said:
            problems.append(f"{what}: nothing was said")
        if first["code"] == 0:
            # `fid` prints its numbers, and says so where it could not keep them.
            if commands.made(work, name) != expected and "is not kept" not in said:
                problems.append(f"{what}: another product, in silence: {said[-300:]}")
            continue
        if problem := problem_after_again(server, name, words, expected):
            problems.append(f"{what}: said {said[-200:]!r}; {problem}")
    assert not problems, "\n".join(problems)
