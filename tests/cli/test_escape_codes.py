"""Names in files may hold codes that a terminal obeys: whatever a command prints, they are shown and not sent."""

from pathlib import Path

import pytest
import tiny
from tar_files import write_tar

from titokctl.cli.app import run

RED = "\x1b[31m\x1b]0;title\x07\r\x9b2J"  # colour, the window's title, the start of the line, one in the C1 range
COMMANDS = (
    "inspect SOURCE",
    "tokenize SOURCE -o t.h5 --tokenizer tok.safetensors --max-rejected 0.9",
    "tokenize SOURCE -o u.h5 --tokenizer tok.safetensors --max-rejected 0",
    "tokenize SOURCE -o v.h5 --tokenizer tok.safetensors --max-rejected 0.9 --json",
    "verify t.h5 --source recorded --sample 1 --tokenizer tok.safetensors",
    "inspect t.h5",
    "inspect t.h5 --json",
    "neighbors t.h5",
    "neighbors t.h5 --json",
    "diff t.h5 t.h5",
    "preview t.h5 -o p.png --tokenizer tok.safetensors --source SOURCE",
    "shard SOURCE -o shards",
    "inspect shards",
    "reconstruct SOURCE --tokenizer tok.safetensors -o r --features none",
    "fid SOURCE --ref SOURCE",
    "stats SOURCE -o s.npz",
    "decode t.h5 -o d --format png --tokenizer tok.safetensors",
)


def folder(root: Path) -> Path:
    for name, data in {
        f"{RED}cat/{RED}1.jpg": tiny.jpeg(0),
        f"{RED}cat/{RED}2.jpg": b"broken",
        f"dog/{RED}3.jpg": tiny.jpeg(1),
        f"dog/{RED}4.{RED}": b"x",
    }.items():
        (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "in" / name).write_bytes(data)
    (root / "in" / "dog" / f"{RED}5.jpg").symlink_to(f"{RED}nowhere")
    return root / "in"


def shards(root: Path) -> Path:
    members = [
        (f"{RED}1.jpg", tiny.jpeg(0)), (f"{RED}1.json", f'{{"label": 1, "class_name": "{RED!r}"}}'.encode()),
        (f"{RED}2.jpg", b"broken"), (f"{RED}3.{RED}", b"x"), (f"{RED}4.a.jpg", tiny.jpeg(1)), ("5.jpg", tiny.jpeg(2)),
        (f"{RED}6.jpg", tiny.jpeg(3)), (f"{RED}6.cls", RED.encode()),
    ]  # fmt: skip
    return write_tar(root / "in" / f"{RED}.tar", members).parent


@pytest.mark.parametrize("make", [folder, shards], ids=["folder", "shards"])
def test_no_code_in_a_name_reaches_the_terminal(make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.tokenizer(tmp_path / "tok.safetensors", layers=1)
    source = make(tmp_path)
    worked, everything = 0, ""
    for words in COMMANDS:
        code = run([str(source) if word == "SOURCE" else word for word in words.split()])
        said = capfd.readouterr()
        assert code in (0, 1), words
        assert "Traceback" not in said.err
        shown = said.out + said.err
        assert [c for c in shown if not (c.isprintable() or c == "\n")] == [], (words, shown)
        worked, everything = worked + (code == 0), everything + shown
    assert worked >= 10
    assert r"\x1b[31m" in everything


def test_ids_are_printed_without_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.tokenizer(tmp_path / "tok.safetensors", layers=1)
    for number in range(2):
        (tmp_path / f"{RED}{number}.jpg").write_bytes(tiny.jpeg(number))
    files = sorted(str(path) for path in tmp_path.glob("*.jpg"))
    for words in (["tokenize", *files], ["tokenize", *files, "--json"], ["tokenize", files[0]]):
        assert run([*words, "--tokenizer", "tok.safetensors"]) == 0
        said = capfd.readouterr()
        assert not [c for c in said.out + said.err if not (c.isprintable() or c in "\n\t")]
