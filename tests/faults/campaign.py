"""What the campaigns share: a server that runs commands, its inputs, and the check after the same command again."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import commands
import pytest
import toy_features
from command_line import ROOT

HERE = Path(__file__).parent


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


def compiled_shim(folder: Path) -> Path:
    """Return the shim as a library in `folder`. Skips the test without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    library = folder / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, HERE / "shim.c", "-ldl"], check=True)
    return library


def with_shim(root: Path) -> Server:
    """Return a server whose commands can be given faults. Skips the test without a C compiler."""
    return Server(root, compiled_shim(root))


def inputs(server: Server) -> commands.Place:
    """Make the inputs of all commands."""
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


def problem_after_again(server: Server, name: str, words: list[str], expected: dict[str, str], **how: object) -> str:
    """Run the same command again; return what is wrong with it, or with what there is then, or ""."""
    work = server.root / "work"
    again = server.run(work, words, **how)
    is_there = "is finished already" in again["stderr"]  # the product was complete
    if again["code"] and not is_there:
        return f"again: code {again['code']}: {again['stderr'][-300:]}"
    found = commands.made(work, name)
    if found != expected:
        differ = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
        return f"another product after the same command: {differ[:5]}"
    return f"left {leftovers(work)[:3]}" if leftovers(work) and not is_there else ""
