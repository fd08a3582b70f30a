"""Run folders: what they record, which are found, which are passed over."""

import json

import pytest
from command_line import ROOT

from titokctl.errors import UserError
from titokctl.formats.checkout import commit_of
from titokctl.formats.run_folder import RunFolder, finished_runs, newest_run, open_run, runs_root


def finished(root, name, kind="tokenizer", **settings):
    run = RunFolder(path=root / kind / name, kind=kind, settings=settings)
    run.save()
    (run.path / "weights").write_bytes(b"1")
    run.finish("weights", {"weights_sha256": name})
    return run


def change(run, **fields):
    path = run.path / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_run_comes_back_as_it_was(tmp_path):
    run = finished(tmp_path, "a", steps=3)
    again = open_run(run.path)
    assert again == run
    assert again.is_finished
    assert again.product_path.read_bytes() == b"1"
    assert again.versions["titokctl"]
    assert again.versions.get("commit") == commit_of(ROOT)
    change(run, versions={"titokctl": "0.1.0"})  # as runs were before the commit stood there
    assert open_run(run.path).versions == {"titokctl": "0.1.0"}
    assert again.created < str(again.finished)


def test_only_finished_runs_with_their_product_count(tmp_path):
    kept = finished(tmp_path, "kept")
    RunFolder(path=tmp_path / "tokenizer" / "running", kind="tokenizer").save()
    (finished(tmp_path, "gone").path / "weights").unlink()
    finished(tmp_path, "other", kind="generator")
    change(finished(tmp_path, "broken"), settings="text")
    (tmp_path / "tokenizer" / "empty").mkdir()
    assert [run.name for run in finished_runs(tmp_path, "tokenizer")] == [kept.name]


def test_the_newest_that_fits_is_taken(tmp_path):
    for name in ("first", "second", "third"):
        finished(tmp_path, name, size=len(name))
    assert newest_run(tmp_path, "tokenizer").name == "third"
    assert newest_run(tmp_path, "tokenizer", lambda run: run.settings["size"] == 6).name == "second"
    assert newest_run(tmp_path, "tokenizer", lambda run: False) is None
    assert newest_run(tmp_path / "nowhere", "tokenizer") is None


def test_two_equally_new_runs_are_refused(tmp_path):
    moment = finished(tmp_path, "a").finished
    change(finished(tmp_path, "b"), finished=moment)
    with pytest.raises(UserError, match="2 tokenizer runs fit equally well") as caught:
        newest_run(tmp_path, "tokenizer")
    assert "a" in caught.value.message
    assert "b" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "is not a titokctl run"),
        ({"kind": ["tokenizer"]}, "is not a titokctl run"),
        ({"format_version": 2}, "newer titokctl"),
        ({"settings": [1]}, "damaged: settings"),
        ({"status": None, "hashes": 3}, "damaged: status, hashes"),
        ({"product": "../../elsewhere"}, "damaged: product"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, fields, message):
    run = finished(tmp_path, "a")
    change(run, **fields)
    with pytest.raises(UserError, match=message):
        open_run(run.path)


def test_a_folder_without_a_record_is_no_run(tmp_path):
    with pytest.raises(UserError, match=r"run\.json"):
        open_run(tmp_path)


def test_the_runs_folder_is_given_or_set_or_the_default(tmp_path, monkeypatch):
    assert str(runs_root()) == "runs"
    monkeypatch.setenv("TITOKCTL_RUNS", str(tmp_path))
    assert runs_root() == tmp_path
    assert runs_root(tmp_path / "given") == tmp_path / "given"
