"""One picture, or a few: ids on the terminal and back, names that are kept, and the same from Python."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

import titokctl
from titokctl.cli.app import run
from titokctl.data.sources import open_source, reopen_source
from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.models.titok.tokenizer import TiTok

Call = Callable[..., str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, two albums of pictures, and one picture."""
    root = tmp_path_factory.mktemp("made")
    tiny.tokenizer(root / "tok.safetensors")
    tiny.class_folder(root, 3, ("holiday", "home"))
    (root / "one.jpg").write_bytes(tiny.jpeg(7))
    return root


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TITOKCTL_RUNS", "runs")
    return tmp_path / "here"


@pytest.fixture
def call(here: Path, capsys) -> Call:
    """Run a command; returns stdout, or stderr where it is to fail with `code`."""

    def go(command: str, *words: object, code: int = 0) -> str:
        device = () if command == "export" else ("--tokenizer", "tok.safetensors", "--device", "cpu")
        assert run([command, *map(str, words), *device]) == code, capsys.readouterr().err
        out, err = capsys.readouterr()
        return out if code == 0 else err

    return go


@pytest.fixture
def tokenizer(made: Path) -> TiTok:
    return titokctl.load_tokenizer(made / "tok.safetensors")


def pixels(path: Path | str) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_the_ids_of_one_picture_are_those_of_a_cache_and_come_back_as_its_pixels(call, here):
    printed = call("tokenize", "one.jpg")
    assert printed == " ".join(printed.split()) + "\n"
    ids = [int(word) for word in printed.split()]
    call("tokenize", "one.jpg", "-o", "tokens.h5", "-q")
    assert TokenCache.open("tokens.h5").ids[0].tolist() == ids
    (about,) = json.loads(call("tokenize", "one.jpg", "--json"))
    assert about == {"key": "one", "tokens": ids}
    call("detokenize", printed, "-o", "out.png")
    assert pixels("out.png").shape == (tiny.SIZE, tiny.SIZE, 3)
    call("decode", "tokens.h5", "-o", "images", "--precision", "float32")
    assert np.array_equal(pixels("out.png"), pixels("images/000000.png"))


def test_many_pictures_and_folders_are_read_in_the_order_of_the_arguments(call, here):
    lines = call("tokenize", "one.jpg", "home", "holiday").splitlines()
    keys = [line.split("\t")[0] for line in lines]
    assert (keys[0], keys[1].split("/")[0], keys[-1].split("/")[0]) == ("one", "home", "holiday")
    assert len(keys) == len(set(keys)) == 7
    call("tokenize", "home", "holiday", "-o", "tokens.h5", "-q")
    cache = TokenCache.open("tokens.h5")
    assert [cache.key(i) for i in range(6)] == keys[1:]
    assert cache.labels.tolist() == [-1] * 6
    assert len(reopen_source(cache.header.source)) == 6
    files = sorted(Path("home").iterdir())
    assert len(call("tokenize", *files).splitlines()) == 3
    shutil.copytree("home", "backup/home")
    twice = open_source(["home", "backup/home"]).by_position().keys()  # two folders of one name
    assert len(set(twice)) == 6


def test_decode_gives_the_pictures_of_exported_ids_their_names(call, here, capsys):
    call("tokenize", "home", "holiday", "-o", "tokens.h5", "-q")
    call("export", "tokens.h5", "--to", "jsonl")
    call("decode", "tokens.h5", "-o", "numbered", "--precision", "float32")
    call("decode", "tokens.jsonl", "-o", "named", "--precision", "float32")
    cache = TokenCache.open("tokens.h5")
    for i in range(len(cache)):
        assert np.array_equal(pixels(f"named/{cache.key(i)}.png"), pixels(f"numbered/{i:06d}.png"))
    Path("few.json").write_text(call("tokenize", "one.jpg", "--json"))
    call("decode", "few.json", "-o", "few")
    assert [path.name for path in Path("few").glob("*.png")] == ["one.png"]
    call("decode", "tokens.jsonl", "-o", "all.npz")
    with np.load("all.npz") as arrays:
        assert arrays["arr_0"].shape == (6, tiny.SIZE, tiny.SIZE, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"tokens": [1, 2]}', "has 2 ids, but"),
        ('{"tokens": [1, 2, 3, 4, 5, 6, 7, 64]}', "the id 64"),
        ('{"tokens": [1, 2, 3, 4, 5, 6, 7, -1]}', "line 1 of bad.jsonl has no `tokens`"),
        ('{"tokens": [1, 2, 3, 4, 5, 6, 7, 1.5]}', "line 1 of bad.jsonl has no `tokens`"),
        ('{"tokens": "12"}', "line 1 of bad.jsonl has no `tokens`"),
        ("12 5 9", "line 1 of bad.jsonl is not JSON"),
        ("", "no ids in"),
    ],
)
def test_lines_that_are_no_ids_are_refused(call, line, message):
    Path("bad.jsonl").write_text(line + "\n")
    said = call("decode", "bad.jsonl", "-o", "out", code=1)
    assert message in said
    assert not Path("out").exists()


def test_names_that_lead_out_of_the_folder_are_not_used(call, here, capsys):
    ids = {"tokens": [1] * tiny.TOKENS}
    Path("bad.jsonl").write_text("\n".join(json.dumps(ids | {"key": key}) for key in ("../a", "/b", "c")))
    call("decode", "bad.jsonl", "-o", "out")
    assert sorted(path.name for path in Path("out").glob("*.png")) == ["000000.png", "000001.png", "000002.png"]
    assert not (here.parent / "a.png").exists()


def test_what_is_refused(call, here, monkeypatch):
    assert "needs 8 an image" in call("detokenize", "1 2 3", "-o", "out.png", code=1)
    assert "0 to 63" in call("detokenize", "1 2 3 4 5 6 7 64", "-o", "out.png", code=1)
    assert "'x' is not an id" in call("detokenize", "1 x", "-o", "out.png", code=2)
    assert "does not end in .png" in call("detokenize", "1", "-o", "out.jpg", code=2)
    assert "--part is for a token cache" in call("tokenize", "one.jpg", "--part", "1/2", code=2)
    Path("notes.txt").write_text("thesis")
    assert "notes.txt is not an image" in call("tokenize", "one.jpg", "notes.txt", code=1)
    assert "is named twice" in call("tokenize", "one.jpg", "one.jpg", code=1)
    Path("cut.jpg").write_bytes(tiny.jpeg(1)[:300])
    assert "cut (" in call("tokenize", "cut.jpg", code=1)
    assert len(call("tokenize", "cut.jpg", "one.jpg", "home").splitlines()) == 4


def test_the_commands_of_a_hint_make_a_picture(call, here, monkeypatch):
    printed = call("tokenize", "home", "--json")
    numbers = " ".join(str(image["tokens"]) for image in json.loads(printed))
    monkeypatch.setattr("sys.stdin", io.StringIO(numbers))
    call("detokenize", "-", "-o", "out.png")
    assert pixels("out.png").shape[0] > 2 * tiny.SIZE  # three images in a grid
    call("reconstruct", "one.jpg", "--no-lpips", "-o", "one")
    assert json.loads(Path("one/reconstruction.json").read_text())["images"] == 1


def test_python_takes_files_images_and_arrays_alike(here, tokenizer):
    image = Image.open("one.jpg")
    array = np.asarray(image.convert("RGB"))
    images = titokctl.open_images(["one.jpg", Path("one.jpg"), image, array], tokenizer)
    assert images.shape == (4, 3, tiny.SIZE, tiny.SIZE)
    assert (images == images[0]).all()
    assert torch.equal(titokctl.open_images("one.jpg", tokenizer), images[:1])
    assert torch.equal(titokctl.open_images(np.stack([array, array]), tokenizer), images[:2])
    grey = titokctl.open_images(array[..., 0], tokenizer)
    assert torch.equal(grey[:, 0], grey[:, 1])
    for wrong in (array.astype(np.float32), array[None, None], np.zeros((4, 4, 2), np.uint8), []):
        with pytest.raises(ValueError, match="expected"):
            titokctl.open_images(wrong, tokenizer)
    with pytest.raises(UserError, match="No such file"):
        titokctl.open_images("none.jpg", tokenizer)


@pytest.mark.parametrize("kind", ["u1", "<u2", ">u2", "i4", "<u4", "i8"])
def test_ids_of_any_integer_type_are_taken(here, tokenizer, kind):
    ids = tokenizer.tokenize(titokctl.open_images("one.jpg", tokenizer))
    again = tokenizer.detokenize(ids.numpy().astype(kind))
    assert torch.equal(again, tokenizer.detokenize(ids))
    if ">" not in kind:
        assert torch.equal(again, tokenizer.detokenize(torch.from_numpy(ids.numpy().astype(kind))))


def test_images_are_saved_under_the_names_that_are_given(here, tokenizer):
    images = tokenizer.detokenize(np.arange(16).reshape(2, 8))
    assert titokctl.save_images(images, ["a.png", "b.webp"]) == [Path("a.png"), Path("b.webp")]
    assert titokctl.save_images(images, "folder") == [Path("folder/000000.png"), Path("folder/000001.png")]
    assert np.array_equal(pixels("a.png"), pixels("folder/000000.png"))
    assert np.array_equal(pixels("b.webp"), pixels("folder/000001.png"))
    assert titokctl.save_images(images[:1], "one.jpg") == [Path("one.jpg")]
    for paths in ("two.png", ["a.png"], ["a.png", "b.gif"]):
        with pytest.raises(ValueError, match="expected"):
            titokctl.save_images(images, paths)
