"""A long file is a sign of a concern that wants its own name."""

import ast

import pytest
from package_source import PACKAGE, Module, modules

MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 500
# Deliberate exceptions, each with its reason.
LONG_FILES: dict[str, str] = {}
FORBIDDEN = {"utils", "util", "common", "misc", "helper", "helpers", "tools"}


@pytest.mark.parametrize("module", modules(), ids=str)
def test_files_and_functions_are_short(module: Module):
    if module.place not in LONG_FILES:
        assert len(module.text.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            # A command's parameters are the table of its options, not code.
            first = node.body[0].lineno if module.layer == "cli" else node.lineno
            assert node.end_lineno - first < MAX_FUNCTION_LINES, f"{module}:{node.lineno} {node.name}"


def test_exceptions_are_still_needed():
    for place in LONG_FILES:
        assert len((PACKAGE / place).read_text(encoding="utf-8").splitlines()) > MAX_FILE_LINES, place


def test_names_say_what_it_is_about():
    for path in PACKAGE.rglob("*"):
        assert path.stem not in FORBIDDEN, path


def test_every_module_says_what_it_is():
    for module in modules():
        assert ast.get_docstring(module.tree), module
