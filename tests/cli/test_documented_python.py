"""The Python examples in the documentation run, page by page."""

import re
from pathlib import Path

import pytest
from image_files import class_folders
from trained import both

from titokctl.cli import app as cli
from titokctl.context import Context
from titokctl.jobs.tokenize.request import Tokenize

ROOT = Path(cli.__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def test_there_are_some() -> None:
    assert sum(len(blocks(page)) for page in PAGES) >= 4


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_one_after_the_other(page: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    both(Path("runs"))
    class_folders(Path("pictures"))
    Tokenize([Path("pictures")], Path("tokens.h5"), "runs/tokenizer/tok").run(Context())
    names: dict = {}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), names)
