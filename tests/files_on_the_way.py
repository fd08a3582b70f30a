"""Which files of the package a job passes through, from its entry to its end, on whatever data it is given.

    python tests/files_on_the_way.py --root CHECKOUT tokenize photos/ -o tokens.h5 --device cpu

runs `titokctl tokenize ...` of that checkout (by default this one) in this process, and prints in which files functions
were called while one of titokctl/jobs was at work, and how many they are. Threads count, and so do the processes that
decode images; what runs while a module is imported does not count. --procs is of no use here: the job must be in this
process. `tests/fingerprints.py --keep FOLDER` makes data and models for all commands.
"""

import argparse
import atexit
import contextlib
import os
import runpy
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

LISTS, PACKAGE = "FILES_ON_THE_WAY_LISTS", "FILES_ON_THE_WAY_PACKAGE"
# What a process that is started meanwhile runs first: Python imports a module of this name by itself.
CUSTOMIZE = (
    f"import sys; sys.path.append({str(Path(__file__).parent)!r}); import files_on_the_way as f; f.watch_child()"
)
IMPORT = "<frozen importlib._bootstrap>"


class Watch:
    """Notes the files of `package` in which functions are called, in this thread and in those that start later.

    Args:
        lists: an empty folder, for processes that start meanwhile; None in such a process, where everything counts, not
            only what is called while a function of jobs is at work.
    """

    def __init__(self, package: Path, lists: Path | None = None) -> None:
        self._package, self._lists = f"{package}{os.sep}", lists
        self._entry: FrameType | None = None  # the function of jobs that others called
        self._seen: set[CodeType] = set()
        self.files: set[str] = set()
        threading.setprofile(self._look)
        sys.setprofile(self._look)

    def _look(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "return" and frame is self._entry:
            self._entry = None
            os.environ.pop(LISTS, None)
        if event != "call" or code in self._seen or not code.co_filename.startswith(self._package):
            return
        name = code.co_filename.removeprefix(self._package)
        is_entry = self._lists is not None and self._entry is None and name.startswith(f"jobs{os.sep}")
        if not (is_entry or self._entry or self._lists is None) or _is_importing(frame):
            return
        if is_entry:
            self._entry = frame
            os.environ[LISTS] = str(self._lists)
        self._seen.add(code)
        self.files.add(name)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == IMPORT:
            return True
        frame = frame.f_back
    return False


def watch_child() -> None:
    """Watch this process if a job started it, and leave the list when it ends."""
    if LISTS in os.environ:
        watch, place = Watch(Path(os.environ[PACKAGE])), Path(os.environ[LISTS], f"{os.getpid()}.txt")
        atexit.register(lambda: place.write_text("\n".join(watch.files)))


def files_on_the_way(root: Path, words: list[str]) -> set[str]:
    """Run `titokctl WORDS` of the checkout `root`; the files, as paths in its package."""
    with tempfile.TemporaryDirectory() as lists, tempfile.TemporaryDirectory() as first:
        Path(first, "sitecustomize.py").write_text(CUSTOMIZE)
        sys.path.insert(0, str(root))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (first, str(root), os.environ.get("PYTHONPATH"))))
        os.environ[PACKAGE] = str(root / "titokctl")
        sys.argv = ["titokctl", *words]
        watch = Watch(root / "titokctl", Path(lists))
        try:
            with contextlib.redirect_stdout(sys.stderr):
                runpy.run_module("titokctl", run_name="__main__")
        except SystemExit as ended:
            if ended.code:
                raise
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        return watch.files.union(*(path.read_text().split() for path in Path(lists).glob("*.txt")))


def main() -> None:
    """Print the sorted files and their number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...", help="the command line behind `titokctl`")
    given = parser.parse_args()
    files = sorted(files_on_the_way(given.root.resolve(), given.words))
    if not files:
        sys.exit("error: no job ran in this process")
    print("\n".join((*files, f"{len(files)} files")))


if __name__ == "__main__":
    main()
