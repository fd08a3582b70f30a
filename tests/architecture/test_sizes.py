"""Sizes of files, functions and parameter lists; names of files."""

import ast

from package_source import PACKAGE, modules

MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 500
FORBIDDEN = {"utils", "util", "common", "misc", "helper", "helpers", "tools"}


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def test_files_and_functions_are_short():
    found = []
    for module in modules():
        if (count := len(module.text.splitlines())) > MAX_FILE_LINES:
            found.append(f"{module}: {count} lines")
        for node in functions(module.tree):
            # A command's parameters are the table of its options, not code.
            first = node.body[0].lineno if module.layer == "cli" else node.lineno
            if (count := (node.end_lineno or first) - first) >= MAX_FUNCTION_LINES:
                found.append(f"{module}:{node.lineno} {node.name}: {count} lines")
    assert not found


def test_names_say_what_it_is_about():
    assert not [str(path) for path in PACKAGE.rglob("*") if path.stem in FORBIDDEN]


def test_every_module_says_what_it_is():
    assert not [str(module) for module in modules() if not ast.get_docstring(module.tree)]
