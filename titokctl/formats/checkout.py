"""The git commit that is checked out in a folder, read from git's files without starting git.

Specification: `.git` is a folder, or in a further worktree a file "gitdir: <folder>". HEAD in it holds the commit, or
"ref: <name>"; then the commit is in the file of that name, or on the line "<commit> <name>" of packed-refs, both in the
folder that the file commondir names, if there is one. Source: gitrepository-layout(5) of git.
"""

import re
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")


def commit_of(root: Path) -> str | None:
    """Return the commit, 40 or 64 hex digits; None if `root` is not a checkout or has no commit."""
    try:
        found = _commit_of(root)
    except (OSError, UnicodeDecodeError):
        return None
    return found if _COMMIT.fullmatch(found) else None


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
