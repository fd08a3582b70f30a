"""The git commit that is checked out in a folder, read from git's files without starting git, and changes since then.

Specification: `.git` is a folder, or in a further worktree a file "gitdir: <folder>". HEAD in it holds the commit, or
"ref: <name>"; then the commit is in the file of that name, or on the line "<commit> <name>" of packed-refs, both in the
folder that the file commondir names, if there is one. Source: gitrepository-layout(5) of git.
"""

import os
import re
import subprocess
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_LONGEST_S = 10  # git reads the state of every tracked file, which a slow disk can delay
# Programs that a checkout's own configuration could make git start; no lock that an editor's git would meet.
_STATUS = ("git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "status")


def commit_of(root: Path) -> str | None:
    """Return the commit, 40 or 64 hex digits; None if `root` is not a checkout or has no commit."""
    try:
        found = _commit_of(root)
    except (OSError, UnicodeDecodeError):
        return None
    return found if _COMMIT.fullmatch(found) else None


def is_changed(root: Path) -> bool | None:
    """Return True if tracked files of the checkout `root` differ from its commit.

    None if `root` is not a checkout, git is missing or refuses to read it, or git needs too long.
    """
    if commit_of(root) is None:
        return None
    words = [*_STATUS, "--porcelain", "--untracked-files=no", "--ignore-submodules=all"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        found = subprocess.run(
            words, cwd=root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LONGEST_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return bool(found.stdout) if found.returncode == 0 else None


def _commit_of(root: Path) -> str:
    git = root / ".git"
    if git.is_file():
        git = root / _line(git).removeprefix("gitdir: ")
    head = _line(git / "HEAD")
    if not head.startswith("ref: "):
        return head
    name = head.removeprefix("ref: ")
    common = git / _line(git / "commondir") if (git / "commondir").is_file() else git
    if (common / name).is_file():
        return _line(common / name)
    packed = (common / "packed-refs").read_text(encoding="utf-8").splitlines()
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")


def _line(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()
