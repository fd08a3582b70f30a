"""A run folder that is damaged, of whatever kind, stops no command that doesn't need it, and is listed as damaged."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import tiny
import trained

from titokctl.cli.app import run

RECORD = {"format": "titokctl/run", "format_version": 1, "kind": "generator", "status": "finished", "product": "w"}
BROKEN_RECORDS = {
    "empty": b"",
    "cut": b'{"format": "titokctl/run", "kind": "gen',
    "not UTF-8": json.dumps(RECORD).encode().replace(b"finished", b"fini\xff\xfe"),
    "bytes": bytes(range(256)),
    "a list": b"[]",
    "a number": b"1e400",
    "deep": b"[" * 100_000,
    "a large number": b'{"format_version": ' + b"9" * 5000 + b"}",
    "fields missing": json.dumps(RECORD).encode(),
    "of a newer version": json.dumps(RECORD | {"format_version": 99}).encode(),
}
LINES = b'{"step": 1, "loss": 2.5, "val_loss": 2.0}\n'
BROKEN_METRICS = {
    "not UTF-8": LINES + b"\xff\xfe" + LINES,
    "cut": LINES + b'{"step": 2, "lo',
    "text for a step": LINES + b'{"step": "2", "loss": 1.0}\n',
    "null for a step": LINES + b'{"step": null, "loss": 1.0}\n',
    "no objects": LINES + b'[1]\n"x"\n7\nnull\n',
    "deep": LINES + b"[" * 100_000 + b"\n",
    "zeros": LINES + bytes(4096),
    "numbers that are none": LINES + b'{"step": 2, "loss": NaN, "val_loss": "low"}\n',
}
LISTS = ("runs ls", "runs show tok")
OTHERS = (
    "runs ls --json", "runs", "runs diff tok tok", "weights ls", "sample -n 2 --device cpu --dry-run",
    "tokenize images -o t.h5 --dry-run",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    trained.both(root / "runs")
    tiny.class_folder(root / "images", per_class=2)
    return root


@pytest.fixture
def place(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made / "runs"


def with_run(runs: Path, kind: str, record: bytes) -> Path:
    folder = runs / kind / "broken"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_bytes(record)
    return folder


def check(commands: Iterable[str], capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands:
        assert run(words.split()) == 0, capsys.readouterr().err
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "kind", ["generator", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("tokenizer", "samples"))]
)
def test_a_broken_record_stops_no_other_command(place: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, data in BROKEN_RECORDS.items():
        folder = with_run(place, kind, data)
        check(LISTS + OTHERS if name == "deep" else LISTS, capsys)
        assert run(["runs", "ls", "--json"]) == 0
        listed = {one["name"]: one["status"] for one in json.loads(capsys.readouterr().out)}
        assert listed["broken"] == "damaged", name
        assert run(["runs", "show", f"{kind}/broken"]) == 1
        assert "error: " in capsys.readouterr().err
        (folder / "run.json").unlink()
        folder.rmdir()


def test_what_is_no_file_in_its_place_stops_no_other_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "generator" / "broken"
    (folder / "run.json").mkdir(parents=True)
    (place / "proxy").write_bytes(b"a file")
    check(LISTS + OTHERS, capsys)
    (folder / "run.json").rmdir()
    (folder / "run.json").symlink_to("nowhere")
    check(LISTS + OTHERS, capsys)
    (folder / "run.json").unlink()
    folder.rmdir()
    (place / "proxy").unlink()
    (place / "generator" / "gen" / "metrics.jsonl").mkdir()
    check(LISTS + OTHERS, capsys)
    (place / "generator" / "gen" / "metrics.jsonl").rmdir()


@pytest.mark.parametrize("name", BROKEN_METRICS)
def test_broken_metrics_stop_no_command(place: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = place / "generator" / "gen" / "metrics.jsonl"
    metrics.write_bytes(BROKEN_METRICS[name])
    try:
        check(LISTS, capsys)
        assert run(["runs", "show", "gen", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["metrics"]["step"] in (1, 2)
        assert run(["report", "gen", "-o", "page.html", "--overwrite"]) == 0, capsys.readouterr().err
    finally:
        metrics.unlink()
