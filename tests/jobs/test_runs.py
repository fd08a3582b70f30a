"""Runs are listed, found by name, traced back to their images, and shown on one page."""

import csv
import json
import os
import platform
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from caches import write_cache
from command_line import ROOT
from trained import both, generator_run, tokenizer_run

from titokctl.cli.app import run as command
from titokctl.context import Context
from titokctl.errors import UserError
from titokctl.formats.checkout import commit_of
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.picture import save_png
from titokctl.formats.run_folder import RunFolder
from titokctl.jobs.machine.report import Report
from titokctl.jobs.machine.runs import ListRuns, ShowRun, find_run
from titokctl.jobs.train.generator import TrainGenerator


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Return a runs folder with a generator that has a log and a picture."""
    root = both(tmp_path / "runs")
    folder = root / "generator" / "gen"
    for step, loss in ((1, 6.0), (2, 5.0), (3, float("nan"))):
        MetricsLog(folder / "metrics.jsonl").append(step, {"loss": loss, "learning_rate": 0.1})
    save_png(folder / "samples-00000003.png", np.zeros((8, 8, 3), np.uint8))
    return root


def test_runs_are_listed_by_kind_with_their_steps(trained: Path, run_cli) -> None:
    tokenizer_run(trained, "second", seed=1)
    (trained / "tokenizer" / "damaged").mkdir()
    (trained / "tokenizer" / "damaged" / "run.json").write_text("{")
    found = [(run.kind, run.name, run.step) for run in ListRuns().run(Context(trained))]
    assert found[:3] == [("tokenizer", "second", None), ("tokenizer", "tok", None), ("generator", "gen", 3)]
    assert found[3:] == [("tokenizer", "damaged", None)]
    listed = run_cli("runs", "ls", "--runs-dir", trained, "--json", code=0).json
    assert [run["name"] for run in listed] == ["second", "tok", "gen", "damaged"]
    assert [run["status"] for run in listed] == ["finished", "finished", "finished", "damaged"]


def test_unfinished_runs_come_last_with_the_step_that_is_saved(trained: Path, capsys) -> None:
    run = RunFolder(path=trained / "tokenizer" / "cut", kind="tokenizer")
    run.save()
    (run.path / "checkpoints" / "step-00000008").mkdir(parents=True)
    MetricsLog(run.path / "metrics.jsonl").append(9, {"loss": 1.0})
    with folder_lock(run.path):
        assert [(r.name, r.status, r.step) for r in ListRuns().run(Context(trained))][:2] == [
            ("tok", "finished", None),
            ("cut", "running", 9),
        ]
    assert [(r.status, r.step) for r in ListRuns().run(Context(trained))][1] == ("stopped", 8)
    assert ShowRun("cut").run(Context(trained)).record["step"] == 8
    assert command(["runs", "ls", "--runs-dir", str(trained / "none")]) == 0
    assert capsys.readouterr() == ("", f"no runs in {trained / 'none'}\n")


def test_a_run_is_found_by_folder_kind_and_name(trained: Path) -> None:
    folder = trained / "generator" / "gen"
    assert {find_run(given, trained).path for given in (str(folder), "generator/gen", "gen")} == {folder}
    with pytest.raises(UserError, match="no run named nothing"):
        find_run("nothing", trained)
    generator_run(trained, tokenizer_run(trained, "gen"), "other")
    with pytest.raises(UserError, match="2 runs are named gen") as caught:
        find_run("gen", trained)
    assert "tokenizer/gen" in caught.value.hint


def test_the_lineage_follows_the_hashes(trained: Path) -> None:
    links = ShowRun("gen").run(Context(trained)).lineage
    assert [link.what for link in links] == ["generator", "token cache", "tokenizer (encoder)", "images"]
    assert links[2].where == str(trained / "tokenizer" / "tok")
    (trained / "tokenizer" / "tok" / "weights.safetensors").unlink()
    assert ShowRun("gen").run(Context(trained)).lineage[2].where == "not in this runs folder"


def test_the_page_is_self_contained(trained: Path, tmp_path: Path, run_cli) -> None:
    run_cli("sample", "-n", "4", "--generator", trained / "generator" / "gen", "--runs-dir", trained, code=0)
    page = tmp_path / "report.html"
    made = json.loads(run_cli("report", "gen", "-o", page, "--runs-dir", trained, "--json", code=0).stdout)
    assert (made["pictures"], made["plots"]) == (2, 2)
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 2
    order = ("data:image", "Samples: ", "Training</h2>", "Lineage", "Settings")
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    assert text.count("data:image/png;base64,") == 2
    assert not re.search(r"<script|https?://|src=\"(?!data:)|href=", text)


def test_a_page_is_finished_until_its_run_changes(trained: Path, tmp_path: Path, run_cli) -> None:
    words = ("report", "gen", "-o", "new/page.html", "--runs-dir", trained)
    page = tmp_path / "new" / "page.html"
    run_cli(*words, code=0)
    before = page.read_bytes()
    assert "new/page.html is finished already" in run_cli(*words, code=0).stderr
    assert run_cli(*words, "--dry-run", "--json", code=0).json["replaces"] is False
    other = run_cli("report", "tok", "-o", page, "--runs-dir", trained, code=1).stderr
    assert "run: generator/gen -> tokenizer/tok" in other
    log = MetricsLog(trained / "generator" / "gen" / "metrics.jsonl")
    log.append(log.newest_values().get("step", 0) + 5, {"loss": 0.5})
    refused = run_cli(*words, code=1).stderr
    assert "\n  step: 3 -> 8\n" in refused
    assert page.read_bytes() == before
    run_cli(*words, "--overwrite", code=0)
    assert page.read_bytes() != before
    page.write_text("<!doctype html>mine")
    assert "exists already" in run_cli(*words, code=1).stderr


def test_a_page_sets_numbers_beside_baselines_and_marks_the_phases(tmp_path: Path) -> None:
    """A mark outside the plotted steps, or of a loss that is not used, is left out."""
    settings = {"loss": {"perceptual": {}, "perceptual_start": 6}, "codebook": {"continuous_steps": 4},
                "adversary": {"start": 5000}, "training": {"steps": 10}}  # fmt: skip
    run = RunFolder(path=tmp_path / "tokenizer" / "t", kind="tokenizer", settings=settings)
    run.save()
    log = MetricsLog(run.path / "metrics.jsonl")
    for step in (2, 10):
        log.append(step, {"psnr": 20.0 + step, "val_psnr": 19.5 + step, "val_psnr_mean_colour": 16.25})
    page = Report("t").run(Context(tmp_path)).report.read_text(encoding="utf-8")
    assert page.index("29.5 dB") < page.index("16.25 dB") < page.index("<svg")
    assert page.count(">quantized<") == 1
    assert "perceptual loss<" not in page
    assert "discriminator<" not in page


_READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"'


def _can_mount(folder: Path) -> bool:
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _READ_ONLY, "sh", str(folder)]
    return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True).returncode == 0


def test_a_page_on_a_read_only_disk_is_refused_in_one_sentence(trained: Path, tmp_path: Path) -> None:
    if not _can_mount(trained):
        pytest.skip("this system lets nobody but its administrator mount anything")
    work = f'{_READ_ONLY} && shift && exec "$@"'
    words = [sys.executable, "-m", "titokctl", "report", "gen", "--runs-dir", str(trained)]
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", work, "sh", str(trained)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*alone, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    page = trained / "generator" / "gen" / "report.html"
    said = f"error: the file system of {page} is read-only\nhint: choose another output with -o\n"
    assert done.stderr == said
    elsewhere = ["-o", str(tmp_path / "report.html")]  # what the hint says
    assert subprocess.run([*alone, *words, *elsewhere], capture_output=True, env=environment).returncode == 0


def test_doctor_measures_and_advises(run_cli) -> None:
    found = run_cli("doctor", "--json", code=0).json
    names = {finding["name"]: finding for finding in found["findings"]}
    assert found["num_problems"] == 0
    assert all(speed > 0 for speed in found["speeds"].values())
    assert "with titok-l-32 about" in names["tokenizing ImageNet"]["found"]


def test_runs_are_a_table_of_what_differs(trained: Path, run_cli) -> None:
    """Differing settings, scores and sizes; sorted, as CSV, and whole names in a narrow terminal."""
    long = "a-name-of-a-run-that-is-much-longer-than-half-of-the-line-of-a-usual-terminal"
    for name, rate, loss in (("fast", 0.2, 3.5), (long, 0.1, 2.5)):
        settings = {"optimizer": {"learning_rate": rate}, "training": {"steps": 10}}
        RunFolder(path=trained / "proxy" / name, kind="proxy", settings=settings).save()
        MetricsLog(trained / "proxy" / name / "metrics.jsonl").append(9, {"loss": 9.0, "held_out_loss": loss})
    (trained / "proxy" / "half").mkdir()
    (trained / "proxy" / "half" / "recipe.yaml").write_text("seed: 1")

    listed = {run.name: run for run in ListRuns("held_out_loss").run(Context(trained))}
    assert list(listed)[:2] == [long, "fast"]
    assert listed["fast"].settings == {"optimizer.learning_rate": 0.2}
    assert listed["fast"].scores == {"held_out_loss": 3.5}
    files = [path for path in (trained / "proxy" / "fast").iterdir() if path.is_file()]
    assert listed["fast"].num_bytes == sum(path.stat().st_size for path in files)
    assert listed["half"].status == "no run.json"
    assert [run.name for run in ListRuns("-held_out_loss").run(Context(trained))][:2] == ["fast", long]
    with pytest.raises(UserError, match="no run has held_out_los"):
        ListRuns("held_out_los").run(Context(trained))

    narrow = run_cli("runs", "ls", "--runs-dir", trained, code=0, env={"COLUMNS": "80"}).stdout
    assert f"proxy/{long}" in narrow
    rows = list(csv.DictReader(run_cli("runs", "ls", "--runs-dir", trained, "--csv", code=0).stdout.splitlines()))
    assert {row["name"]: row["optimizer.learning_rate"] for row in rows}["fast"] == "0.2"
    differing = run_cli("runs", "diff", "fast", f"proxy/{long}", "--runs-dir", trained, "--json", code=0).json
    assert differing == [
        {"field": "settings.optimizer.learning_rate", "first": 0.2, "second": 0.1},
        {"field": "scores.held_out_loss", "first": 3.5, "second": 2.5},
    ]


TWO_STEPS = """
kind: generator
model: {architecture: vit, num_latent_tokens: 8, codebook_size: 16, num_classes: 3, width: 16, num_layers: 1,
        num_heads: 2, mlp_width: 32}
optimizer: {learning_rate: 1e-3}
schedule: {warmup_steps: 1}
training: {steps: 2, global_batch_size: 16}
"""


def test_a_run_records_its_starts(tmp_path: Path, runs: Path, run_cli, capsys) -> None:
    """Command line, host, device, processes and the state of the code are in run.json, once per start that works."""
    cache, recipe = write_cache(tmp_path / "tokens.h5", 64), tmp_path / "two.yaml"
    recipe.write_text(TWO_STEPS)
    words = ["train-gen", cache, "--recipe", recipe, "--name", "a", "--device", "cpu", "-q"]
    run_cli(*words, code=0)
    TrainGenerator(cache, str(recipe), name="a").run(Context(runs))  # finished already
    (launch,) = json.loads((runs / "generator" / "a" / "run.json").read_text())["launches"]
    assert launch["command"] == ["titokctl", *map(str, words)]
    assert launch["hosts"] == [platform.node()]
    assert launch["processes"] == 1
    assert "usable core" in launch["devices"][0]
    assert "driver" not in launch, "of GPUs only"
    assert launch.get("commit") == commit_of(ROOT)
    assert command(["runs", "show", "a", "--runs-dir", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert "latest of 1 launch" in shown
    assert "--name a" in shown
    Report("a", tmp_path / "a.html").run(Context(runs))
    assert platform.node() not in (tmp_path / "a.html").read_text()


def test_bare_runs_is_the_table(trained: Path, capsys) -> None:
    there = ["--runs-dir", str(trained)]
    assert command(["runs", *there]) == 0
    alone = capsys.readouterr().out
    assert command(["runs", "ls", *there]) == 0
    assert capsys.readouterr().out == alone != ""
    assert command(["runs", "--csv", "show", "gen", *there]) == 2
    assert "has no effect" in capsys.readouterr().err
    (trained / "tokenizer" / "cut").mkdir()
    (trained / "tokenizer" / "cut" / "recipe.yaml").write_text("seed: 1")
    assert command(["runs", "show", "cut", *there]) == 1
    assert "cut can't be read as a run: no run.json" in capsys.readouterr().err


def test_names_are_whole_in_a_terminal_of_80_columns(trained: Path, python: str) -> None:
    """Every line of the table fits the terminal, or is a name alone."""
    long = "vit-of-640-channels-" * 4
    for name, rate in (("fast", 0.2), (long, 0.1)):
        settings = {"optimizer": {"learning_rate": rate, "a_setting_with_a_long_name": rate}}
        RunFolder(path=trained / "proxy" / name, kind="proxy", settings=settings).save()
    commands = [["runs"], ["runs", "show", long], ["runs", "diff", "fast", long]]
    lines = in_terminal(python, [[*words, "--runs-dir", str(trained)] for words in commands])
    assert len([line for line in lines if long in line]) >= len(commands)
    assert not [line for line in lines if len(line) > 80 and len(line.split()) > 2]


def in_terminal(python: str, commands: list[list[str]]) -> list[str]:
    """Return the lines that the commands print in a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    program = f"from titokctl.cli.app import run; raise SystemExit(max(run(words) for words in {commands}))"
    with subprocess.Popen([python, "-c", program], stdout=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # the terminal was closed
            pass
    os.close(ours)
    assert process.returncode == 0
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in shown.decode().splitlines()]
