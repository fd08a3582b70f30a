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


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"gpu_check"}))
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


def test_the_acceptance_run_writes_a_page_and_says_what_fails(tmp_path: Path, monkeypatch, capsys) -> None:
    words = ["--quick", "--device", "cpu", "--only", "env,kernels,nccl", "--out", tmp_path / "found"]
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", ["gpu_check", *map(str, words)])
    code = importlib.import_module("benchmarks.gpu_check").main()
    found = json.loads((tmp_path / "found" / "gpu_check.json").read_text())
    held = {check["name"]: check["ok"] for check in found["checks"]}
    assert held["collectives"]
    assert code == (0 if all(held.values()) else 1)
    page = (tmp_path / "found" / "gpu_check.md").read_text()
    assert all(name in page for name in held)
    assert not found["left_out"]


def test_a_failed_part_of_an_acceptance_run_is_told_and_the_next_one_runs(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(ROOT)
    records = importlib.import_module("benchmarks.gpu.record")
    record = records.Record(tmp_path, tmp_path, "cpu", True)
    with record.part("breaks"):
        raise RuntimeError("no kernel image is available")
    with record.part("ends"):
        sys.exit(3)
    with record.part("works"):
        record.check("works", True)
    record.write()
    assert record.failed == ["breaks", "ends"]
    page = (tmp_path / "gpu_check.md").read_text()
    assert "no kernel image is available" in page
    assert "| works | yes |" in page


def test_the_page_sets_measured_speeds_beside_the_goals(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(ROOT)
    record = importlib.import_module("benchmarks.gpu.record").Record(tmp_path, tmp_path, "cuda", False)
    record.speed("encode titok-l-32 fp16", of_peak=0.61)
    record.speed("50,000 images by proportion", seconds=81.0)
    record.write()
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| at least 60.0% | 61.0% | met |" in page
    assert "| at most 80.0 s | 81.0 s | **not met** |" in page
    assert "| not measured |" in page


@pytest.mark.slow
def test_a_whole_acceptance_run_on_a_cpu(tmp_path: Path, monkeypatch, capsys) -> None:
    """Nothing is left out; sections that compare with a GPU compare the CPU with itself."""
    words = ["--quick", "--device", "cpu", "--budget", 3600, "--out", tmp_path / "found"]
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", ["gpu_check", *map(str, words)])
    importlib.import_module("benchmarks.gpu_check").main()
    found = json.loads((tmp_path / "found" / "gpu_check.json").read_text())
    assert [check for check in found["checks"] if not check["ok"] and not check["name"].startswith("Triton")] == []
    assert not found["left_out"]
    assert found["speeds"]["tiles"]["cost"] > -1


@pytest.mark.slow
def test_a_forecast_estimates_what_can_be_counted(tmp_path: Path, monkeypatch, capsys) -> None:
    run(monkeypatch, "forecast", "--quick", "--json", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0.3 < found["encode titok-l-32 fp16"] < 1
    assert found["Inception, tf32"] < found["Inception, float32"]


def test_an_acceptance_run_leaves_out_what_no_longer_fits(tmp_path: Path, monkeypatch, capsys) -> None:
    words = ["--quick", "--device", "cpu", "--only", "stages,train", "--budget", 11, "--out", tmp_path]
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(sys, "argv", ["gpu_check", *map(str, words)])
    assert importlib.import_module("benchmarks.gpu_check").main() == 0
    assert json.loads((tmp_path / "gpu_check.json").read_text())["left_out"] == ["stages", "train"]
    assert "left out: stages" in capsys.readouterr().out
