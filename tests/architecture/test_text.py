"""What the repository's text says, and does not say."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
from package_source import ROOT, modules

import titokctl

# In pieces, so that this file does not hold what it looks for.
A_MACHINE = re.compile(r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me/\w+|Us" + r"ers/\w+)/")
LEFT_OPEN = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")


def tracked() -> list[Path]:
    """Text files under version control; empty outside a checkout."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        return []
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_no_file_names_a_machine_or_leaves_things_open():
    files = tracked()
    if not files:
        pytest.skip("not a checkout")
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # pictures, caches
        for number, line in enumerate(lines, start=1):
            where = f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
            assert not A_MACHINE.search(line), where
            assert not LEFT_OPEN.search(line), where


def test_public_functions_and_classes_are_described():
    assert not [
        f"{module}:{node.lineno} {node.name}"
        for module in modules()
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]


def test_the_public_api_is_described():
    found = []
    for name in (name for name in titokctl.__all__ if not name.startswith("_")):
        thing = getattr(titokctl, name)
        if not thing.__doc__ or not thing.__module__.startswith("titokctl."):
            found.append(name)
        for method, value in vars(thing).items() if isinstance(thing, type) else ():
            if callable(value) and not method.startswith("_") and not isinstance(value, type) and not value.__doc__:
                found.append(f"{name}.{method}")
    assert not found
