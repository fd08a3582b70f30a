"""`titokctl tune`: settings that `sample --settings` takes, resumed to the same result, and inputs that don't fit."""

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import toy_features
import trained
import yaml
from process_tree import signalled

from titokctl.cli.app import run
from titokctl.config.sampling import GuidanceConfig, SamplingConfig
from titokctl.context import Context
from titokctl.errors import UsageError
from titokctl.formats.sample_set import SampleSet
from titokctl.jobs.tune.challengers import challengers, difference_in_words
from titokctl.jobs.tune.request import Tune

EDGE = 24  # of the toy network
IMAGES = 900
MAKER = {"kind": "folder", "paths": ["/seen"], "fingerprint": "f" * 16}


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    trained.generator_run(runs, trained.tokenizer_run(runs, image_size=EDGE), source=MAKER)
    rng = np.random.default_rng(1)
    np.savez(runs / "ref.npz", rng.integers(0, 256, (64, EDGE, EDGE, 3), np.uint8))
    np.savez(runs / "few.npz", rng.integers(0, 256, (20, EDGE, EDGE, 3), np.uint8))
    return runs


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Install the toy network for this process; returns the environment for others."""
    monkeypatch.syspath_prepend(tmp_path / "package")
    return toy_features.install(tmp_path / "package")


def words(networks: Path, output: Path, *more: object) -> list[str]:
    given = ["tune", "--ref", networks / "ref.npz", "--features", "toy", "--candidates", 5, "-o", output, *more]
    return [*map(str, given), "--runs-dir", str(networks), "--device", "cpu", "--quiet"]


def outcome(folder: Path) -> dict:
    """The result without times."""
    found = json.loads((folder / "tuning.json").read_text())
    tried = [{name: value for name, value in each.items() if name != "seconds_per_image"} for each in found["tried"]]
    return {name: found[name] for name in ("proposed", "is_better", "finalists", "images")} | {"tried": tried}


@pytest.fixture(scope="module")
def tuned(networks, tmp_path_factory) -> Path:
    """The folder of a finished race."""
    folder = tmp_path_factory.mktemp("tuned")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "package")
        toy_features.install(folder / "package")
        assert run([*words(networks, folder / "found", "--images", IMAGES), "--json"]) == 0
    return folder / "found"


def test_the_folder_holds_settings_record_and_report(tuned):
    found = json.loads((tuned / "tuning.json").read_text())
    assert {p.name for p in tuned.iterdir()} == {"settings.yaml", "tuning.json", "report.html", ".titokctl.json"}
    assert not list(tuned.parent.glob(".found*"))
    proposed = yaml.safe_load((tuned / "settings.yaml").read_text())
    chosen = found["tried"][found["proposed"]]["sampling"]
    assert chosen.items() >= proposed.items()
    assert chosen.keys() - proposed.keys() <= {"seed", "remasking_cap"}
    assert found["tried"][0]["sampling"] == trained.OWN.model_dump(mode="json")
    assert len(found["tried"]) == 5
    assert 0.8 * IMAGES < found["images"] <= IMAGES
    assert found["is_better"] == (found["proposed"] != 0)
    page = (tuned / "report.html").read_text()
    assert "<svg" in page
    assert "corrected for" in page
    assert ("so the preset is proposed" in page) == (not found["is_better"])
    assert ("is better than the preset: kid (toy)" in page) == found["is_better"]


def test_sample_takes_the_settings_and_options_override_them(tuned, networks, tmp_path):
    chosen = yaml.safe_load((tuned / "settings.yaml").read_text())
    here = ["--runs-dir", str(networks), "--device", "cpu", "--quiet", "--settings", str(tuned / "settings.yaml")]
    assert run(["sample", "-n", "3", "-o", str(tmp_path / "set"), *here]) == 0
    used = SampleSet.open(tmp_path / "set").manifest["settings"]["sampling"]
    assert used == {"remasking_cap": 0.1, **chosen, "seed": 0}
    assert run(["sample", "-n", "3", "-o", str(tmp_path / "other"), *here, "--steps", "2", "--seed", "9"]) == 0
    used = SampleSet.open(tmp_path / "other").manifest["settings"]["sampling"]
    assert used == {"remasking_cap": 0.1, **chosen, "num_steps": 2, "seed": 9}


def test_sample_takes_a_shipped_preset_by_its_name(networks, tmp_path):
    here = ["--runs-dir", str(networks), "--device", "cpu", "--quiet"]
    assert run(["sample", "-n", "3", "-o", str(tmp_path / "set"), *here, "--settings", "titok-l-32"]) == 0
    used = SampleSet.open(tmp_path / "set").manifest["settings"]["sampling"]
    assert (used["num_steps"], used["guidance_scale"], used["choice_temperature"]) == (8, 4.5, 9.5)


def test_a_file_with_an_unknown_field_is_refused(networks, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("num_steps: 4\ntemprature: 2\n")
    assert run(["sample", "-n", "3", "--runs-dir", str(networks), "--settings", str(tmp_path / "mine.yaml")]) == 2
    assert "has no setting temprature" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_race_is_resumed_to_the_same_result(tuned, networks, toy, python, tmp_path, capsys, number):
    output = tmp_path / "again"
    command = words(networks, output, "--images", IMAGES)
    done = signalled(python, command, number, tmp_path / ".again.unfinished", "features-*.npz", 6, toy["PYTHONPATH"])
    assert done.returncode == (130 if number == signal.SIGINT else -number), done.stderr
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / ".again.unfinished").glob("features-*.npz")}
    assert len(kept) >= 6
    assert not output.exists()
    assert run(words(networks, output, "--images", IMAGES + 500)) == 1
    assert f"budget.images: {IMAGES} -> {IMAGES + 500}" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert run([*command, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["kept_images"] > 0
    assert run(command) == 0
    assert outcome(output) == outcome(tuned)


def test_a_budget_in_minutes_ends_with_a_proposal(networks, toy, tmp_path):
    for minutes in (0.05, 0.3, 2.0):  # on a busy machine, few minutes are refused as too few for three settings
        code = run(words(networks, tmp_path / "found", "--minutes", str(minutes), "--candidates", "3"))
        if code == 0:
            break
        assert code == 2
    assert code == 0
    found = json.loads((tmp_path / "found" / "tuning.json").read_text())
    assert found["made_with"]["budget"] == {"images": None, "minutes": minutes}
    assert found["finalists"]


def test_the_same_race_again_is_finished_and_another_one_is_refused(networks, toy, tmp_path, capsys):
    output = tmp_path / "found"
    command = words(networks, output, "--images", 400, "--metric", "fid", "--candidates", 3)
    assert run([*command, "--json"]) == 0
    first, before = capsys.readouterr().out, {p: p.read_bytes() for p in output.iterdir()}
    assert run([word for word in [*command, "--json"] if word != "--quiet"]) == 0
    again, said = capsys.readouterr()
    assert f"{output} is finished already" in said
    assert json.loads(again) == json.loads(first)
    assert run([*command, "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["done"], plan["replaces"]) == (plan["count"], False)
    assert run([*command, "--seed", "1"]) == 1
    assert "made with other settings" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in output.iterdir()} == before
    assert run([*command, "--overwrite", "--seed", "1"]) == 0
    assert run([*command, "--seed", "1"]) == 0
    (output / "tuning.json").write_text((output / "tuning.json").read_text().replace('"proposed"', '"prop0sed"'))
    assert run([*command, "--seed", "1"]) == 1
    assert "is damaged: proposed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--minutes", "1", "--images", "100"], 2, "mutually exclusive"),
        (["--minutes", "0"], 2, "--minutes must be above 0"),
        (["--minutes", "nan"], 2, "--minutes must be above 0"),
        (["--images", "0"], 2, "--images must be at least 1"),
        (["--candidates", "1"], 2, "--candidates must be from 2 to 1,000"),
        (["--metric", "is"], 2, "one of: kid, fid"),
        (["--images", "500"], 2, "500 images are too few to compare 5 settings by kid"),
        (["--candidates", "4000"], 2, "--candidates must be from 2 to 1,000"),
        (["--ref", "few.npz"], 1, "the reference has 20 images, at least 48 are needed"),
        (["--ref", "nowhere"], 1, "nowhere"),
        (["--generator", "nobody"], 1, "nobody"),
    ],
)
def test_requests_that_cannot_end_well_are_refused(networks, toy, tmp_path, capsys, monkeypatch, more, code, said):
    monkeypatch.chdir(networks)
    assert run([*words(networks, tmp_path / "found"), *more]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "hint: " in error
    assert not list(tmp_path.glob("*found*"))


def test_too_few_minutes_leave_nothing_behind(networks, toy, tmp_path, capsys):
    assert run(words(networks, tmp_path / "found", "--minutes", "0.0001")) == 2
    assert "0.0001 minutes are too few to compare 5 settings" in capsys.readouterr().err
    assert not list(tmp_path.glob("*found*"))


def test_the_hint_about_the_budget_suffices(networks, toy, tmp_path, capsys):
    assert run(words(networks, tmp_path / "found", "--images", 500)) == 2
    enough = capsys.readouterr().err.split("give --images ")[1].split(",")[0]
    assert run(words(networks, tmp_path / "found", "--images", enough)) == 0
    assert run(words(networks, tmp_path / "other", "--images", int(enough) - 1)) == 2


def test_without_held_out_images_nothing_is_tuned(networks, toy, tmp_path, capsys):
    assert run(["tune", "-o", str(tmp_path / "found"), "--runs-dir", str(networks)]) == 2
    assert "add --ref HELDOUT" in capsys.readouterr().err


def test_images_of_the_training_are_no_reference(networks, toy, tmp_path):
    rows = np.random.default_rng(0).normal(size=(100, 9))
    about = {"format": "titokctl/statistics", "format_version": 1, "features": "toy", "source": MAKER}
    np.savez(tmp_path / "seen.npz", mu=rows.mean(0), sigma=np.cov(rows.T), features=rows.astype(np.float32),
             count=np.int64(100), about=np.array(json.dumps(about)))  # fmt: skip
    from titokctl.evaluation.extractors import FeatureNetwork

    request = Tune(tmp_path / "seen.npz", tmp_path / "found", network=FeatureNetwork("toy"))
    with pytest.raises(UsageError, match="holds the images that"):
        request.run(Context(networks))


@pytest.mark.parametrize("preset", [trained.OWN, SamplingConfig(guidance_scale=0.0, choice_temperature=0.0)])
def test_challengers_differ_from_the_preset_and_from_each_other(preset):
    found = challengers(preset, 32, 23, seed=0)
    assert len({each.model_dump_json() for each in [preset, *found]}) == 24
    assert found == challengers(preset, 32, 23, seed=0)
    assert found != challengers(preset, 32, 23, seed=1)
    assert all(1 <= each.num_steps <= 32 and each.seed == preset.seed for each in found)
    assert all(SamplingConfig.model_validate(each.model_dump()) == each for each in found)
    assert all("the preset" not in difference_in_words(each, preset) for each in found)


def test_challengers_of_an_autoregressive_generator_change_its_own_settings():
    preset = trained.OWN_AUTOREGRESSIVE
    found = challengers(preset, 32, 23, seed=0)
    assert len({each.model_dump_json() for each in [preset, *found]}) == 24
    assert all(type(each).model_validate(each.model_dump()) == each for each in found)
    for name in ("temperature", "top_k", "top_p", "guidance_interval"):
        assert any(getattr(each, name) != getattr(preset, name) for each in found)


def test_remasking_is_tried_with_several_caps():
    caps = {each.remasking_cap for each in challengers(trained.OWN, 32, 60, seed=0) if each.unmasking == "remasking"}
    assert len(caps) > 1


def test_challengers_of_a_kind_with_other_settings_change_what_it_has():
    found = challengers(GuidanceConfig(guidance_scale=2.0), 32, 8, seed=0)
    assert all(type(each) is GuidanceConfig for each in found)
    assert len({each.model_dump_json() for each in found}) == 8


def test_more_challengers_than_there_are_settings_are_refused():
    with pytest.raises(UsageError, match=r"only \d+ settings to try") as caught:
        challengers(GuidanceConfig(guidance_scale=2.0), 32, 999, seed=0)
    enough = int(caught.value.hint.split("--candidates ")[1]) - 1
    assert len(challengers(GuidanceConfig(guidance_scale=2.0), 32, enough, seed=0)) == enough
