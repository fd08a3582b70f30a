"""Every benchmark has the common flags and stands in the table; quick ones run and write what they found."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from command_line import ROOT

SHARED = {"baselines", "counting", "measuring"}
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in SHARED)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    """The script as `python -m benchmarks.<name>` runs it."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    importlib.import_module(f"benchmarks.{name}").main()


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_has_the_common_flags(name: str, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, name, "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"python -m benchmarks.{name}" in shown
    for flag in ("--device {cpu,cuda}", "--quick", "--json FILE"):
        assert flag in shown


def test_the_table_lists_every_benchmark() -> None:
    table = [line for line in (ROOT / "benchmarks" / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert sorted(line.split("`")[1] for line in table[1:]) == NAMES


@pytest.mark.parametrize(("name", "words"), [("checkpoint", ["--gib", 0.02]), ("sample_writing", ["-n", 64])])
def test_a_quick_run_compares_with_the_baseline_and_the_peaks(
    name: str, words: list[object], tmp_path: Path, monkeypatch, capsys
) -> None:
    out = tmp_path / "out.json"
    run(monkeypatch, name, "--quick", "--device", "cpu", "--folder", tmp_path, "--json", out, *words)
    found = json.loads(out.read_text())
    assert {"command", "device", "cores", "threads", "torch", "peak_memory_mib"} <= found["facts"].keys()
    figures = found["figures"]
    assert {"baseline", "ours", "peak float32", "peak copy"} <= figures.keys()
    assert figures["ours"]["times_as_fast"] == pytest.approx(
        figures["baseline"]["seconds"] / figures["ours"]["seconds"]
    )
    assert figures["baseline"]["times_as_fast"] is None
    assert figures["ours"]["gbyte"] == figures["baseline"]["gbyte"] > 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in table[3:5]] == ["baseline", "ours"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
