"""Faults of the machine in every command: one sentence, nothing half-written, and the same command then succeeds.

A shim (`shim.c`) is preloaded into the process and lets one system call on a file fail. The calls are chosen by the
seed below; TITOKCTL_FAULTS changes how many, in all commands together.
"""

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import commands
import pytest
import toy_features
from command_line import ROOT

HERE = Path(__file__).parent
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


class Server:
    """Runs commands in forks of one warm process, see `server.py`."""

    def __init__(self, root: Path, shim: Path | None) -> None:
        self.root = root
        where = dict(toy_features.install(root / "package"))
        where["PYTHONPATH"] += os.pathsep + str(ROOT / "tests")
        preload = {} if shim is None else {"LD_PRELOAD": str(shim)}
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py")],
            env={**os.environ, **where, **preload, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(root / "cache")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, cwd: Path, words: list[str], **fault: object) -> dict:
        """Run a command; returns its code, stderr, and the number of calls of the kind that may fail."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"cwd": str(cwd), "words": words} | fault) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer | {"stderr": (cwd.parent / "stderr").read_text(errors="replace")}

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("faults")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", root / "shim.so", HERE / "shim.c", "-ldl"], check=True)
    found = Server(root, root / "shim.so")
    yield found
    found.close()


@pytest.fixture(scope="module")
def place(server: Server) -> commands.Place:
    made = commands.inputs(server.root / "inputs")
    made.copy(server.root / "work")
    words = ["tokenize", "images", "-o", "t.h5", "--tokenizer", "tok.safetensors"]
    assert server.run(server.root / "work", words)["code"] == 0
    shutil.copy(server.root / "work" / "t.h5", made.root / "t.h5")
    return made


def leftovers(work: Path) -> list[str]:
    """Return temporary files and folders of unfinished work."""
    marks = (".tmp-", ".unfinished", ".parts", ".replaced", "-replaced")
    return [str(p.relative_to(work)) for p in work.rglob("*") if any(mark in p.name for mark in marks)]


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
        again = server.run(work, words)
        is_there = "exists already" in again["stderr"]  # the fault came after the product was complete
        if again["code"] and not is_there:
            problems.append(f"{what}: said {said[-200:]!r}; again: {again['stderr'][-300:]}")
        elif commands.made(work, name) != expected:
            found = commands.made(work, name)
            differ = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
            problems.append(f"{what}: another product after the same command: {differ[:5]}")
        elif leftovers(work) and not is_there:
            problems.append(f"{what}: left {leftovers(work)[:3]}")
    assert not problems, "\n".join(problems)
