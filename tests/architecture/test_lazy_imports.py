"""Asking for help must not wait for torch."""

import ast
import json
import subprocess
import sys

from command_line import PATIENCE_S
from package_source import modules

# pydantic is not among them: newer versions of typer import it themselves to read an option.
HEAVY = {"torch", "numpy", "h5py", "webdataset", "safetensors", "PIL", "yaml", "fsspec"}

ASK_FOR_ALL_HELP = """
import contextlib, io, json, sys
from titokctl.cli import app as cli
import typer

def paths(command, words):
    yield words
    for name, inner in getattr(command, "commands", {}).items():
        yield from paths(inner, [*words, name])

cli.register_commands()
asked = []
with contextlib.redirect_stdout(io.StringIO()) as out:
    for words in paths(typer.main.get_command(cli.app), []):
        code = cli.run([*words, "--help"])
        asked.append([" ".join(words), code, out.getvalue()])
        out.truncate(0)
        out.seek(0)
print(json.dumps({"asked": asked, "modules": sorted(sys.modules)}))
"""


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    loaded = set(json.loads(python("import titokctl, json, sys; print(json.dumps(sorted(sys.modules)))")))
    assert "titokctl" in loaded
    assert not loaded & HEAVY


def test_help_of_every_command_imports_nothing_heavy_and_fits():
    found = json.loads(python(ASK_FOR_ALL_HELP))
    asked = {words: (code, text) for words, code, text in found["asked"]}
    assert {"", "recipes", "recipes check"} <= asked.keys()
    assert not set(found["modules"]) & HEAVY
    for words, (code, text) in asked.items():
        assert code == 0, words
        assert "Usage: titokctl" in text, words
        assert max(map(len, text.splitlines())) <= 80, words


def test_the_command_line_imports_late():
    light = {*sys.stdlib_module_names, "typer", "titokctl"}
    ours = (
        "titokctl.cli",
        "titokctl.errors",
        "titokctl.progress",
        "titokctl.readable",
        "titokctl.distributed.stop",
    )
    found = []
    for module in modules():
        if module.layer not in {"cli", "__main__", "__init__"}:
            continue
        for item in module.imports:
            is_ours = item.module.startswith("titokctl.") and item.module != "titokctl.__version__"
            is_light = item.module.split(".")[0] in light and (not is_ours or item.module.startswith(ours))
            if not (item.is_late or item.is_typing or is_light):
                found.append(f"{module}:{item.line} imports {item.module}")
    assert not found


def test_public_names_are_loaded_on_first_use():
    public = json.loads(python("import titokctl, json; print(json.dumps(titokctl._PUBLIC))"))
    face = next(m for m in modules() if m.layer == "__init__")
    typed = {
        alias.name
        for node in ast.walk(face.tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("titokctl.")
        for alias in node.names
    }
    assert typed == public.keys()
    code = "import titokctl; print(all(getattr(titokctl, name) is not None for name in titokctl.__all__))"
    assert python(code).strip() == "True"
