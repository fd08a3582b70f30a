"""Runs that are trained again with --overwrite, and names of runs."""

import pytest

from titokctl.cli.app import run as run_words
from titokctl.errors import UserError
from titokctl.formats.run_folder import finished_runs, open_run

WILD = ("optimizer.learning_rate=1e30", "schedule={kind: constant, warmup_steps: 0}", "training.steps=60")


@pytest.mark.parametrize("name", ["../../mine", "/tmp/mine", "a/b", "..", ".hidden", "-x", "", "n" * 101, "a b", "é"])
@pytest.mark.parametrize("command", ["train-gen", "train-tokenizer"])
def test_a_name_is_one_plain_folder(command, name, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    assert run_words([command, str(tmp_path), f"--name={name}", "--overwrite", "--runs-dir", str(tmp_path / "r")]) == 2
    assert "is not a valid run name" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_other_files_in_the_folder_stay(train):
    folder = train(name="one")[0].run
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine")
    _, talk = train(name="one", overwrite=True)
    assert "the finished product is kept as" in talk
    assert open_run(folder).is_finished
    assert (folder / "notes" / "mine.txt").read_text() == "mine"
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


@pytest.mark.parametrize("checkpoint_every", [5, 1000])
def test_a_run_that_fails_leaves_the_one_it_should_replace(train, runs, checkpoint_every):
    folder = train(name="one")[0].run
    weights = (folder / "weights.safetensors").read_bytes()
    with pytest.raises(UserError, match="not finite"):
        train(*WILD, f"training.checkpoint_every={checkpoint_every}", name="one", overwrite=True)
    (kept,) = finished_runs(runs, "generator")
    assert kept.product_path.read_bytes() == weights
    assert train(name="one", overwrite=True)[0].weights.read_bytes() == weights
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


@pytest.mark.parametrize("file", ["weights.safetensors", "metrics.jsonl", "checkpoints/step-00000005/state.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_run_is_refused(train, runs, file, overwrite):
    path = runs / "generator" / "one" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="is not a run"):
        train(name="one", overwrite=overwrite)
    assert path.read_bytes() == b"mine"
