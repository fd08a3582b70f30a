"""The package's source as the tests of the architecture read it: modules, their syntax trees, what they import."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import titokctl

PACKAGE = Path(titokctl.__file__).resolve().parent
ROOT = PACKAGE.parent
_MODULE_NAME = re.compile(r"titokctl(\.[a-z_0-9]+)+")


@dataclass(frozen=True)
class Import:
    """One imported module; `is_late` inside a function, `is_typing` under `if TYPE_CHECKING`."""

    module: str
    line: int
    is_late: bool = False
    is_typing: bool = False


@dataclass(frozen=True)
class Module:
    """One source file of the package."""

    path: Path

    def __str__(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def place(self) -> str:
        """The path inside the package, e.g. models/titok/tokenizer.py."""
        return self.path.relative_to(PACKAGE).as_posix()

    @property
    def name(self) -> str:
        """The name under which it is imported, e.g. titokctl.models.titok.tokenizer."""
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def layer(self) -> str:
        """The folder of the package it stands in, or the name of a module at the top (errors, progress)."""
        return self.place.split("/")[0].removesuffix(".py")

    @property
    def text(self) -> str:
        """The source."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, str(self.path))

    @cached_property
    def imports(self) -> list[Import]:
        """Everything imported anywhere in the file, by statement or by a module name in a string."""
        return list(imports_of(self.tree, self._package()))

    def _package(self) -> list[str]:
        return [PACKAGE.name, *self.path.relative_to(PACKAGE).parent.parts]


@cache
def modules() -> tuple[Module, ...]:
    """All source files of the package."""
    return tuple(Module(path) for path in sorted(PACKAGE.rglob("*.py")))


def imports_of(node: ast.AST, package: list[str], is_late: bool = False, is_typing: bool = False) -> Iterator[Import]:
    """Imports below `node` in a module of `package` (its names from the top, for relative imports)."""
    for child in ast.iter_child_nodes(node):
        late = is_late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = is_typing or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        names: list[str] = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            # `from a import b` may import the module a.b: both are named, and a name that is no module does no harm.
            base = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
            start = ".".join(part for part in (base, child.module) if part)
            names = [start, *(f"{start}.{alias.name}" for alias in child.names)]
        elif isinstance(child, ast.Constant) and isinstance(child.value, str) and _MODULE_NAME.fullmatch(child.value):
            names, late = [child.value], True
        yield from (Import(name, getattr(child, "lineno", 0), late, typing) for name in names)
        yield from imports_of(child, package, late, typing)
