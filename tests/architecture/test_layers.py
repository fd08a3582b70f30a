"""Who may import whom, and who may know of files, processes and pixels."""

import ast

import pytest
from package_source import PACKAGE, Module, imports_of, modules

# High to low; what stands in one row are siblings. Lower never imports higher, siblings never each other.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("jobs",),
    ("training", "sampling", "evaluation"),
    ("data",),
    ("weights",),
    ("context",),
    ("models", "formats", "distributed"),
    ("config",),
    ("errors", "progress", "dry_run"),
)
HEIGHT = {layer: len(LAYERS) - i for i, row in enumerate(LAYERS) for layer in row}
# The package's own __init__ offers names of all layers, lazily; anyone may ask it for the version.
FACE = "__init__"

ALL = [module for module in modules() if module.layer != FACE]


def layer_of(imported: str) -> str | None:
    """The layer of an imported name; None for what isn't ours, or comes from the package itself."""
    parts = imported.split(".")
    return parts[1] if parts[0] == PACKAGE.name and len(parts) > 1 and parts[1] in HEIGHT else None


def is_allowed(importer: str, imported: str) -> bool:
    return importer == imported or HEIGHT[imported] < HEIGHT[importer]


def test_every_file_has_a_layer():
    assert {m.layer for m in ALL} <= HEIGHT.keys()


@pytest.mark.parametrize("module", ALL, ids=str)
def test_imports_only_what_is_lower(module: Module):
    for item in module.imports:
        layer = layer_of(item.module)
        if layer is not None:
            assert is_allowed(module.layer, layer), f"{module}:{item.line} imports {item.module}"


def test_the_rule_itself():
    assert is_allowed("jobs", "formats")
    assert not is_allowed("formats", "jobs")
    assert not is_allowed("models", "formats")
    assert not is_allowed("training", "sampling")
    assert layer_of("titokctl.__version__") is None
    assert layer_of("torch.distributed") is None


SCATTERED = """
def f():
    if 1:
        from titokctl.cli import app
    g("titokctl.jobs.evaluate.fid")
import titokctl.data.images
from . import weights
"""


def test_imports_are_seen_wherever_they_stand():
    late = {item.module: item.is_late for item in imports_of(ast.parse(SCATTERED), ["titokctl"])}
    assert late["titokctl.cli.app"]
    assert late["titokctl.jobs.evaluate.fid"]
    assert not late["titokctl.data.images"]
    assert not late["titokctl.weights"]


MODELS = [module for module in ALL if module.layer == "models"]


@pytest.mark.parametrize("module", MODELS, ids=str)
def test_models_touch_no_files_and_no_ranks(module: Module):
    banned = {"io", "pathlib", "shutil", "tempfile", "glob", "torch.distributed"}
    for item in module.imports:
        assert not any(item.module == b or item.module.startswith(f"{b}.") for b in banned), f"{module}:{item.line}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "open", f"{module}:{node.lineno} opens a file"
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node.value) != "os" or node.attr == "environ", f"{module}:{node.lineno} touches files"
            assert ast.unparse(node) not in {"torch.distributed", "torch.load", "torch.save"}, f"{module}:{node.lineno}"


@pytest.mark.parametrize("module", [m for m in ALL if m.layer != "distributed"], ids=str)
def test_only_distributed_knows_its_rank(module: Module):
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant):
            assert node.value not in {"RANK", "LOCAL_RANK", "WORLD_SIZE"}, f"{module}:{node.lineno}"


# data/images.py decides pixel values; the two others make and read back pictures that are finished already.
HANDLES_PICTURES = {"data/images.py", "formats/picture.py", "formats/image_output.py"}


@pytest.mark.parametrize("module", [m for m in ALL if m.place not in HANDLES_PICTURES], ids=str)
def test_only_images_decides_pixels(module: Module):
    for item in module.imports:
        assert not item.module.startswith("PIL.Image"), f"{module}:{item.line} imports {item.module}"


@pytest.mark.parametrize("place", sorted(HANDLES_PICTURES - {"data/images.py"}))
def test_finished_pictures_are_not_resized(place: str):
    changes = {"resize", "thumbnail", "crop", "rotate", "transpose", "reduce", "draft"}
    for node in ast.walk(Module(PACKAGE / place).tree):
        if isinstance(node, ast.Attribute):
            assert node.attr not in changes, f"{place}:{node.lineno} .{node.attr}"
