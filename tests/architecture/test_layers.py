"""Who may import whom, and who may know of files, processes and pixels."""

import ast

from package_source import PACKAGE, Import, Module, imports_of, modules

# High to low; what stands in one row are siblings. Lower never imports higher, siblings never each other.
LAYERS = (
    ("__main__",),
    ("cli", "ray"),
    ("jobs",),
    ("training", "sampling", "evaluation"),
    ("data",),
    ("weights",),
    ("context",),
    ("models", "formats", "distributed"),
    ("config",),
    ("errors", "progress"),
    ("readable",),
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


NAMES = {module.name for module in ALL}


def target_of(item: Import) -> str | None:
    """Return the imported module of ours; None for names inside modules, packages and what isn't ours."""
    return item.module if item.module in NAMES else None


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other, each sorted (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in edges.get(name, ()):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in edges:
        if name not in order:
            visit(name)
    return found


def test_every_file_has_a_layer():
    assert {m.layer for m in ALL} <= HEIGHT.keys()


def test_imports_only_what_is_lower():
    assert not [
        f"{module}:{item.line} imports {item.module}"
        for module in ALL
        for item in module.imports
        if (layer := layer_of(item.module)) is not None and not is_allowed(module.layer, layer)
    ]


def test_no_module_imports_itself_through_others():
    """Circles of any length, also through imports inside functions; those for type checkers alone don't count."""
    edges = {module.name: {target for item in module.imports if not item.is_typing if (target := target_of(item))}
             for module in ALL}  # fmt: skip
    assert not circles(edges)


def test_circles_are_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == [["b", "c"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})


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


def test_models_touch_no_files_and_no_ranks():
    banned = ("io", "pathlib", "shutil", "tempfile", "glob", "torch.distributed")
    calls = {"torch.distributed", "torch.load", "torch.save"}
    found = []
    for module in ALL:
        if module.layer != "models":
            continue
        for item in module.imports:
            if any(item.module == name or item.module.startswith(f"{name}.") for name in banned):
                found.append(f"{module}:{item.line} imports {item.module}")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "open":
                found.append(f"{module}:{node.lineno} opens a file")
            if isinstance(node, ast.Attribute):
                touches = ast.unparse(node.value) == "os" and node.attr != "environ"
                if touches or ast.unparse(node) in calls:
                    found.append(f"{module}:{node.lineno} {ast.unparse(node)}")
    assert not found


def test_only_distributed_reads_ranks():
    assert not [
        f"{module}:{node.lineno} {node.value}"
        for module in ALL
        if module.layer != "distributed"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Constant) and node.value in ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    ]


# data/images.py decides pixel values; the two others make and read back pictures that are finished already.
HANDLES_PICTURES = {"data/images.py", "formats/picture.py", "formats/image_output.py"}


def test_only_images_decides_pixels():
    assert not [
        f"{module}:{item.line} imports {item.module}"
        for module in ALL
        if module.place not in HANDLES_PICTURES
        for item in module.imports
        if item.module.startswith("PIL.Image")
    ]


def test_finished_pictures_are_not_resized():
    changes = {"resize", "thumbnail", "crop", "rotate", "transpose", "reduce", "draft"}
    assert not [
        f"{place}:{node.lineno} .{node.attr}"
        for place in HANDLES_PICTURES - {"data/images.py"}
        for node in ast.walk(Module(PACKAGE / place).tree)
        if isinstance(node, ast.Attribute) and node.attr in changes
    ]
