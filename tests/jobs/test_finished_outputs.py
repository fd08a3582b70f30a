"""Every command that writes: again with the same settings it finds its output finished, and refuses other settings."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import toy_features
import trained
from PIL import Image

from titokctl.cli.app import run

Words = tuple[str, ...]

# For each command: its words without the output, the output, and the words that change its settings.
COMMANDS: dict[str, tuple[Words, str, Words]] = {
    "tokenize": (("photos", "--tokenizer", "tok.safetensors"), "made.h5", ("--views", "none")),
    "tokenize into a folder": (("photos", "--tokenizer", "tok.safetensors"), "made/", ("--views", "none")),
    "preview": (("tokens.h5", "--tokenizer", "tok.safetensors"), "made.png", ("-n", "3")),
    "reconstruct": (
        ("photos", "--tokenizer", "tok.safetensors", "--features", "none", "--no-lpips"),
        "made",
        ("-n", "3"),
    ),
    "decode": (("tokens.h5", "--tokenizer", "tok.safetensors"), "made.npz", ("--view", "flip")),
    "decode to files": (("tokens.h5", "--tokenizer", "tok.safetensors"), "made", ("--view", "flip")),
    "shard": (("photos",), "made", ("--seed", "1")),
    "export": (("tokens.h5", "--to", "jsonl"), "made.jsonl", ("--view", "flip")),
    "decode to shards": (
        ("tokens.h5", "--tokenizer", "tok.safetensors", "--format", "wds"),
        "made",
        ("--view", "flip"),
    ),
    "export to shards": (("tokens.h5", "--to", "wds"), "made", ("--view", "flip")),
    "merge": (("tokens.h5", "tokens.h5"), "made.h5", ("--compress",)),
    "convert": (("tok.safetensors",), "made.safetensors", ("--dtype", "bf16")),
    "sample": (("-n", "3", "--generator", "gen", "--format", "png"), "made", ("--seed", "1")),
    "stats": (("squares", "--features", "toy"), "made.npz", ("--size", "12")),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, a tokenizer, a token cache, and a runs folder with a generator."""
    root = tmp_path_factory.mktemp("made")
    tiny.tokenizer(root / "tok.safetensors")
    tiny.class_folder(root / "photos", 3)
    (root / "squares").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (40 * i, 10, 10)).save(root / "squares" / f"{i}.png")
    trained.both(root / "runs")
    os.environ["TITOKCTL_RUNS"] = str(root / "runs")
    words = ("--tokenizer", str(root / "tok.safetensors"), "--device", "cpu", "-q")
    assert run(["tokenize", str(root / "photos"), "-o", str(root / "tokens.h5"), *words]) == 0
    toy_features.install(root / "package")
    yield root
    del os.environ["TITOKCTL_RUNS"]


@pytest.fixture
def call(made: Path, tmp_path: Path, capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Run a command of COMMANDS in a folder of its own, with further words."""
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TITOKCTL_RUNS", "runs")
    monkeypatch.syspath_prepend(tmp_path / "here" / "package")

    def go(name: str, *more: str) -> tuple[int, str, str]:
        words, output, _ = COMMANDS[name]
        device = () if name.split()[0] in ("shard", "export", "merge", "convert") else ("--device", "cpu")
        code = run([name.split()[0], *words, "-o", output, *device, *more])
        return code, *capsys.readouterr()

    return go


def contents(output: str) -> dict[str, bytes]:
    """The files of an output, without locks."""
    path = Path(output)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file): file.read_bytes() for file in files if file.name != ".lock"}


SLOW = (
    "tokenize into a folder",
    "preview",
    "reconstruct",
    "decode to files",
    "decode to shards",
    "shard",
    "export to shards",
    "merge",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in COMMANDS]
)
def test_the_same_command_again_finds_its_output_and_another_one_is_refused(call, name, tmp_path):
    _, output, other = COMMANDS[name]
    code, first, said = call(name, "--json")
    assert code == 0, said
    before = contents(output)
    code, again, said = call(name, "--json")
    assert code == 0
    assert f"{output.rstrip('/')} is finished already" in said
    assert _lasting(again) == _lasting(first)
    code, planned, _ = call(name, "--dry-run", "--json")
    plan = json.loads(planned)
    assert (code, plan["done"], plan["replaces"]) == (0, plan["count"], False)
    code, _, said = call(name, *other)
    assert code == 1
    assert "made with other settings" in said
    assert " -> " in said
    assert "--overwrite" in said
    assert contents(output) == before  # until here nothing was written
    assert call(name, *other, "--overwrite")[0] == 0  # what the hint says
    assert call(name, *other)[0] == 0
    assert contents(output) != before
    assert not list(Path().glob(".*unfinished")) + list(Path().glob("*.parts"))


def _lasting(printed: str) -> dict[str, object]:
    """What a result says of the output, and not of the work that one call of the command did."""
    own = ("seconds", "images_per_second", "units_reused", "rejected_by_kind")
    return {name: value for name, value in json.loads(printed).items() if name not in own}


@pytest.mark.parametrize("name", ["export", "convert"])
def test_a_file_that_changed_since_counts_as_a_foreign_one(call, name):
    output = Path(COMMANDS[name][1])
    assert call(name)[0] == 0
    output.write_bytes(output.read_bytes() + b"\n")
    code, _, said = call(name)
    assert (code, "exists already" in said) == (1, True)
    os.remove(output)
    assert call(name)[0] == 0


def test_a_command_does_not_take_the_output_of_another_one_for_its_own(call):
    assert call("decode to files")[0] == 0
    shutil.copytree("made", "kept")
    code, _, said = call("export to shards")
    assert code == 1
    assert "command: decode -> export" in said
    assert contents("made").keys() == {name.replace("kept", "made", 1) for name in contents("kept")}
