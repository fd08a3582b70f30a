"""--overwrite: a product of the same kind is replaced as a whole or not at all, and nothing else is ever deleted."""

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import tiny
import toy_features
import trained

from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.jobs.tokenize.request import Tokenize

PHOTO = b"\xff\xd8\xff\xe0 a photo"


class Place:
    """A folder with a tokenizer, images and their cache, and the commands that write from them."""

    def __init__(self, root: Path) -> None:
        self.root, self.runs = root, root / "runs"
        self.tokenizer = self.runs / "tok.safetensors"
        self.runs.mkdir()
        tiny.tokenizer(self.tokenizer)
        self.images = tiny.class_folder(root / "in", per_class=4)
        Tokenize([self.images], root / "t.h5", str(self.tokenizer)).run(Context(self.runs))

    def words(self, name: str, output: Path) -> list[str]:
        tokens, made = str(self.root / "t.h5"), str(self.tokenizer)
        return {
            "decode npz": ["decode", tokens, "--tokenizer", made, "-o", output],
            "decode png": ["decode", tokens, "--tokenizer", made, "-o", output, "--format", "png"],
            "decode wds": ["decode", tokens, "--tokenizer", made, "-o", output, "--format", "wds"],
            "export jsonl": ["export", tokens, "--to", "jsonl", "-o", output],
            "export npy": ["export", tokens, "--to", "npy", "-o", output],
            "export safetensors": ["export", tokens, "--to", "safetensors", "-o", output],
            "export wds": ["export", tokens, "--to", "wds", "-o", output],
            "merge": ["merge", tokens, tokens, "-o", output],
            "preview": ["preview", tokens, "--tokenizer", made, "-o", output],
            "shard": ["shard", self.images, "-o", output],
            "tokenize": ["tokenize", self.images, "--tokenizer", made, "-o", output],
            "tokenize parts": ["tokenize", self.images, "--tokenizer", made, "-o", f"{output}/"],
            "convert": ["convert", made, "-o", output],
            "reconstruct": ["reconstruct", self.images, "--tokenizer", made, "-o", output, "--features", "none"],
            "recipes cp": ["recipes", "cp", "tokenizer/tiny", output],
        }[name]  # fmt: skip

    def run(self, name: str, output: Path, *more: str) -> int:
        words = [str(word) for word in (*self.words(name, output), *more)]
        where = ["--runs-dir", str(self.runs)] if words[0] in ("decode", "preview", "tokenize", "reconstruct") else []
        return run([*words, *where, "--quiet"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


def everything(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and ".titokctl-index" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


FILES = {
    "decode npz": "o.npz", "export jsonl": "o.jsonl", "export npy": "o.npy", "export safetensors": "o.safetensors",
    "merge": "o.h5", "preview": "o.png", "tokenize": "o.h5", "convert": "o.safetensors", "recipes cp": "o.yaml",
}  # fmt: skip
FOLDERS = ("decode png", "decode wds", "export wds", "shard")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_pictures_is_not_replaced(place: Place, name: str, tmp_path: Path, capsys) -> None:
    pictures = tmp_path / "Pictures"
    (pictures / "2019").mkdir(parents=True)
    (pictures / "thesis.tex").write_text("thesis")
    for i in range(3):
        (pictures / "2019" / f"{i:06d}.png").write_bytes(PHOTO)
    before = everything(pictures)
    assert place.run(name, pictures, "--overwrite") == 1
    assert "Pictures" in capsys.readouterr().err
    assert everything(tmp_path) == {f"Pictures/{name}": data for name, data in before.items()}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_product_is_replaced_unless_it_holds_other_files(place: Place, name: str, tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    assert place.run(name, output) == 0
    made = everything(output)
    assert place.run(name, output) == 0
    assert place.run(name, output, "--overwrite") == 0
    assert everything(output) == made
    (output / "holiday.png").write_bytes(PHOTO)
    assert place.run(name, output, "--overwrite") == 1
    assert "holiday.png" in capsys.readouterr().err
    assert everything(output) == made | {"holiday.png": PHOTO}
    (output / "holiday.png").unlink()
    changed = next(n for n in sorted(made) if n.endswith((".png", ".tar")))
    (output / changed).write_bytes(PHOTO)
    assert place.run(name, output, "--overwrite") == 1
    assert changed in capsys.readouterr().err
    assert (output / changed).read_bytes() == PHOTO
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_not_replaced(place: Place, name: str, tmp_path: Path, capsys) -> None:
    output = tmp_path / FILES[name]
    output.write_bytes(b"%PDF-1.7\n\0 a thesis")
    assert place.run(name, output, "--overwrite") == 1
    assert "--overwrite does not replace it" in capsys.readouterr().err
    assert everything(tmp_path) == {FILES[name]: b"%PDF-1.7\n\0 a thesis"}
    output.unlink()
    assert place.run(name, output) == 0
    made = everything(tmp_path)
    assert place.run(name, output, "--overwrite") == 0
    assert everything(tmp_path).keys() == made.keys()


@pytest.mark.parametrize("name", [*FILES, *FOLDERS, "reconstruct"])
def test_links_pipes_and_folders_in_the_way_are_refused(place: Place, name: str, tmp_path: Path, capsys) -> None:
    target, output = tmp_path / "target", tmp_path / FILES.get(name, "out")
    target.write_bytes(PHOTO)
    inner = output / "reconstruction.json" if name == "reconstruct" else output
    inner.parent.mkdir(exist_ok=True)
    for make in (lambda: inner.symlink_to(target), lambda: inner.symlink_to("nothing"), lambda: os.mkfifo(inner)):
        make()
        assert place.run(name, output, "--overwrite") in (1, 2)
        assert inner.is_symlink() or inner.is_fifo()
        assert target.read_bytes() == PHOTO
        inner.unlink()
    assert "never replaced" in capsys.readouterr().err or name == "shard"


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
@pytest.mark.parametrize("output", [".", "..", "x" * 230])
def test_impossible_names_are_refused_before_the_work(
    place: Place, name: str, output: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if name == "recipes cp" and output[0] == ".":
        pytest.skip("copies into a folder")
    ending = Path(FILES.get(name, "")).suffix if output[0] == "x" else ""
    assert place.run(name, Path(output + ending)) in (1, 2)
    assert "error:" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_dry_run_lists_what_would_go(place: Place, tmp_path: Path, capsys) -> None:
    assert place.run("decode png", tmp_path / "out") == 0
    capsys.readouterr()
    assert place.run("decode png", tmp_path / "out", "--overwrite", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["replaces"]
    assert {Path(path).name for path in plan["removes"]} == {*(f"{i:06d}.png" for i in range(8)), ".titokctl.json"}


def test_a_folder_of_parts_is_kept_until_the_new_one_is_complete(place: Place, tmp_path: Path) -> None:
    output = tmp_path / "kept"
    assert place.run("tokenize parts", output) == 0
    (output / "notes.txt").write_text("mine")
    made = everything(output)
    (place.images / "cat" / "0001.jpg").rename(tmp_path / "away.jpg")
    (place.images / "cat" / "0001.jpg").write_bytes(b"broken")
    try:
        assert place.run("tokenize parts", output, "--overwrite", "--max-rejected", "0") == 1
        aside = everything(tmp_path / ".kept.replaced")
        assert aside == {name: data for name, data in made.items() if name not in ("notes.txt", ".lock")}
        assert place.run("tokenize parts", output, "--max-rejected", "0.5") == 0
    finally:
        shutil.move(tmp_path / "away.jpg", place.images / "cat" / "0001.jpg")
    assert not (tmp_path / ".kept.replaced").exists()
    assert (output / "notes.txt").read_text() == "mine"


def test_a_damaged_product_can_be_replaced(place: Place, tmp_path: Path) -> None:
    assert place.run("merge", tmp_path / "o.h5") == 0
    with h5py.File(tmp_path / "o.h5", "r+") as file:
        del file["labels"]
    assert place.run("merge", tmp_path / "o.h5", "--overwrite") == 0
    (tmp_path / "o.npy").touch()
    assert place.run("export npy", tmp_path / "o.npy", "--overwrite") == 0
    assert np.load(tmp_path / "o.npy").shape == (8, tiny.TOKENS)


def test_a_judged_sample_set_is_drawn_again_and_other_files_stay(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "package")
    toy_features.install(tmp_path / "package")
    trained.both(tmp_path / "runs")
    sample = ["sample", "-n", "6", "-o", "set", "--device", "cpu", "-q"]
    np.savez("ref.npz", arr_0=np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8))
    assert run(sample) == 0
    assert run(["fid", "set", "--ref", "ref.npz", "--features", "toy", "--save-features", "-q"]) == 0
    (tmp_path / "set" / "notes.txt").write_text("mine")
    made = everything(tmp_path / "set")
    assert {"evaluation-toy.json", "evaluation-toy.npz"} < made.keys()
    capsys.readouterr()
    assert run([*sample, "--overwrite", "--dry-run", "--json"]) == 0
    gone = {Path(path).name for path in json.loads(capsys.readouterr().out)["removes"]}
    assert gone == made.keys() - {"notes.txt", ".lock"}
    for _ in range(2):
        assert run([*sample, "--overwrite"]) == 0
        again = everything(tmp_path / "set")
        assert again["ids.h5"] == made["ids.h5"]
        assert again["notes.txt"] == b"mine"
        assert not [name for name in again if "evaluation" in name or "unfinished" in name]
