"""Sizes of files, functions and parameter lists; names of files."""

import ast
import re

from package_source import PACKAGE, modules

MAX_FUNCTION_LINES = 80
MAX_FILE_LINES = 500
MAX_PARAMETERS = 8
FORBIDDEN = {"utils", "util", "common", "misc", "helper", "helpers", "tools"}
# First words that describe a function as if somebody had asked for it.
A_QUESTION = re.compile(r"(What|How|Whether|Who)\b")


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


def test_functions_have_few_parameters():
    """A Typer command has a parameter for each of its options, a GPU kernel one for each array and size."""
    found = []
    for module in modules():
        for node in functions(module.tree):
            is_kernel = any(ast.unparse(each) == "triton.jit" for each in node.decorator_list)
            is_command = is_kernel or (module.layer == "cli" and node.decorator_list)
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            count = len([name for name in names if name not in ("self", "cls")])
            if count > MAX_PARAMETERS and not is_command:
                found.append(f"{module}:{node.lineno} {node.name}: {count} parameters")
    assert not found


def test_names_say_what_it_is_about():
    assert not [str(path) for path in PACKAGE.rglob("*") if path.stem in FORBIDDEN]


def test_every_module_says_what_it_is():
    assert not [str(module) for module in modules() if not ast.get_docstring(module.tree)]


def test_summaries_are_no_questions():
    found = []
    for module in modules():
        for node in [module.tree, *ast.walk(module.tree)]:
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                if A_QUESTION.match(text):
                    found.append(f"{module}:{getattr(node, 'lineno', 1)} {text.splitlines()[0]}")
    assert not found
