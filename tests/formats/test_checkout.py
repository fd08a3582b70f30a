"""The commit of a checkout, in every form that git itself leaves it in."""

import shutil
import subprocess
from pathlib import Path

import pytest

from titokctl.formats.checkout import commit_of, is_changed


def git(folder: Path, *words: object) -> str:
    who = ["-c", "user.name=tests", "-c", "user.email=tests@example.org"]
    done = subprocess.run(["git", *who, *map(str, words)], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path) -> Path:
    if shutil.which("git") is None:
        pytest.skip("needs git")
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet")
    return folder


def test_the_commit_of_a_checkout(checkout, tmp_path):
    assert commit_of(checkout) is None, "nothing was committed yet"
    git(checkout, "commit", "--allow-empty", "--quiet", "-m", "one")
    first = git(checkout, "rev-parse", "HEAD")
    assert commit_of(checkout) == first
    git(checkout, "pack-refs", "--all")
    assert commit_of(checkout) == first, "the name stands in packed-refs"
    git(checkout, "commit", "--allow-empty", "--quiet", "-m", "two")
    second = git(checkout, "rev-parse", "HEAD")
    assert commit_of(checkout) == second != first, "a newer file goes before packed-refs"
    git(checkout, "checkout", "--quiet", "--detach", first)
    assert commit_of(checkout) == first
    git(checkout, "worktree", "add", "--quiet", "-b", "other", tmp_path / "other", second)
    assert commit_of(tmp_path / "other") == second


def test_what_is_no_checkout(tmp_path):
    assert commit_of(tmp_path) is None
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_bytes(b"\xff\xfe")
    assert commit_of(tmp_path) is None
    (tmp_path / ".git" / "HEAD").write_text("ref: ../../somewhere")
    assert commit_of(tmp_path) is None


def test_changes_since_the_commit(checkout, monkeypatch):
    """Changed, staged and deleted files count, those that git does not track don't; nothing of it runs a hook."""
    (checkout / "code.py").write_text("1")
    git(checkout, "add", "code.py")
    git(checkout, "commit", "--quiet", "-m", "one")
    (checkout / "notes.txt").write_text("untracked")
    assert is_changed(checkout) is False
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert is_changed(checkout) is False, "another checkout that the environment names"
    (checkout / "code.py").write_text("2")
    assert is_changed(checkout) is True
    git_free = {"PATH": "/nowhere"}
    monkeypatch.setattr("os.environ", git_free)
    assert is_changed(checkout) is None, "without git"


def test_changes_of_what_is_no_checkout(tmp_path):
    assert is_changed(tmp_path) is None
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("0" * 40)
    assert is_changed(tmp_path) is None, "git refuses it"
