"""The notebook in docs/ runs from top to bottom, and is stored without outputs."""

import json
from pathlib import Path

import pytest
from command_line import ROOT
from PIL import Image

NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_the_cells_run_one_after_the_other(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    names: dict = {}
    for number, cell in enumerate(code):
        assert cell["outputs"] == []
        exec(compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec"), names)
    assert (names["ids"][0] == names["ids"][1]).all()  # a file, an image and an array of one picture
    assert (names["ids"][0] == names["ids"][2]).all()
    for name in ("again-0.png", "mixed/000004.png", "drawn/000003.png"):
        assert Image.open(name).size == (64, 64)


def test_there_is_one() -> None:
    assert NOTEBOOKS
