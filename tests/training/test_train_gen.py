"""train-gen: it ends with a product, resumes bit for bit, and says what does not fit."""

import importlib.util
import json
import os
import resource
import shutil
import signal
import sys

import h5py
import pytest
import torch
from caches import write_cache
from command_line import ROOT
from process_tree import held, wait_for_files
from remarks import Remarks
from safetensors.torch import load_file

from titokctl.config import recipe_files
from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.run_folder import open_run
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.machine.runs import ListRuns
from titokctl.jobs.train.generator import TrainGenerator


def same(a, b):
    a, b = (load_file(open_run(run).product_path) for run in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(run):
    return {r["step"]: r["loss"] for r in MetricsLog(run / "metrics.jsonl").read() if "loss" in r}


def refusal(train, *overrides, **options):
    with pytest.raises(UserError) as caught:
        train(*overrides, **options)
    assert caught.value.hint
    return caught.value.message


def test_a_run_ends_with_weights_metrics_and_lineage(train, runs, cache):
    result, talk = train(name="one")
    run = open_run(runs / "generator" / "one")
    assert result.run == run.path
    assert run.is_finished
    assert result.weights.is_file()
    assert run.inputs["encoder_sha256"] == "e" * 64
    assert list(losses(run.path)) == [5, 10, 15, 20]
    assert result.metrics["unigram_entropy"] == pytest.approx(2.75, abs=0.03), "nearly uniform over 16 codes"
    before = result.weights.stat().st_mtime_ns
    glossary = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert not [name for name in result.metrics if f"`{name}`" not in glossary and "_at_" not in name]
    again, talk = train(name="one")
    assert "finished already" in talk
    assert again.weights.stat().st_mtime_ns == before


LONGER = ("training.steps=25", "training.log_every=1")


def test_a_stopped_run_goes_on_bit_for_bit(train, start, python, runs, cache, recipe):
    whole, _ = train(*LONGER, name="whole")
    for how in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        run = runs / "generator" / f"cut-{how.name}"
        stop_after_a_checkpoint(start, python, runs, run, how, cache, recipe)
        assert open_run(run).status == "stopped"
        (listed,) = (found for found in ListRuns().run(Context(runs)) if found.name == run.name)
        assert (listed.status, listed.step) == ("stopped", open_run(run).saved_step())
        again, talk = train(*LONGER, name=run.name)
        assert "resuming from step" in talk
        assert same(whole.run, again.run)
        assert losses(again.run) == losses(whole.run), "every step is logged once"


def stop_after_a_checkpoint(start, python, runs, run, how, cache, recipe, *more):
    settings = [word for setting in LONGER for word in ("--set", setting)]
    words = [python, "-m", "titokctl", "train-gen", cache, "--recipe", recipe, *settings, "--name", run.name]
    among = (run / "checkpoints", "step-*", 1)
    child = start([*map(str, words), *more], env={**os.environ, **held(*among), "TITOKCTL_RUNS": str(runs)})
    wait_for_files(child, *among)
    child.send_signal(how)
    talk = child.communicate()[1]
    assert child.returncode == {signal.SIGINT: 130, signal.SIGTERM: 75}.get(how, -how), talk


def test_a_full_disk_keeps_the_checkpoint_before_and_ends_with_1(train, start, runs, cache, recipe):
    constant = ("schedule.kind=constant", "training.checkpoint_every=50")
    first, _ = train(*constant, "training.steps=10", name="full")
    size = max(f.stat().st_size for f in first.run.rglob("tensors-*"))
    settings = [word for setting in (*constant, "training.steps=20") for word in ("--set", setting)]
    words = [sys.executable, "-m", "titokctl", "train-gen", cache, "--recipe", recipe, *settings, "--name", "full"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))  # noqa: E731
    child = start([*map(str, words)], env={**os.environ, "TITOKCTL_RUNS": str(runs)}, preexec_fn=limit)
    said = " ".join(child.communicate()[1].split())
    assert child.returncode == 1
    assert "step-00000020" in said
    assert "hint:" in said
    assert "Traceback" not in said
    assert not open_run(first.run).is_finished
    again, talk = train(*constant, "training.steps=20", name="full")
    assert "resuming from step 10 of 20" in talk
    assert open_run(again.run).is_finished


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(train, run_cli, start, runs, cache, recipe):
    settings = [word for setting in LONGER for word in ("--set", setting)]
    words = ("train-gen", cache, "--recipe", recipe, *settings, "--procs", "2", "--name")
    run_cli(*words, "whole", code=0)
    for how in (signal.SIGTERM, signal.SIGKILL):
        run = runs / "generator" / f"cut-{how.name}"
        stop_after_a_checkpoint(start, sys.executable, runs, run, how, cache, recipe, "--procs", "2")
        assert not open_run(run).is_finished
        while "resuming from step" not in (again := run_cli(*words, run.name)).stderr:
            assert "at work in" in again.stderr, "the workers of a killed launcher save and leave by themselves"
        assert again.code == 0
        assert same(runs / "generator" / "whole", run)


def test_changed_settings_of_a_named_run_are_refused_with_a_list(train):
    train(name="one")
    change = ("optimizer.learning_rate=0.5", "training.steps=30")
    message = refusal(train, *change, name="one")
    assert "optimizer.learning_rate: 0.001 -> 0.5" in message
    assert "training.steps: 20 -> 30" in message, "under a cosine the length decides every rate"
    with pytest.raises(UserError) as refused:
        train(*change, name="one")
    assert "constant or warmup-stable-decay" in refused.value.hint


def test_other_data_for_a_named_run_are_refused_with_both_hashes(train, cache, tmp_path):
    train("training.steps=2", name="one")
    other = write_cache(tmp_path / "other.h5", 50, seed=1)
    old, new = (TokenCache.open(path).sha256[:12] for path in (cache, other))
    assert f"data, or weights to start from: {old} -> {new}" in refusal(
        train, "training.steps=2", cache=other, name="one"
    )


def test_what_only_watches_may_change_on_the_way(train):
    first, _ = train("training.steps=10")
    again, _ = train("training.steps=10", "training.log_every=2", "training.keep_checkpoints=5")
    assert again.run == first.run
    assert open_run(first.run).settings["training"]["log_every"] == 2


@pytest.mark.parametrize(
    "kind", ["constant", "{kind: warmup-stable-decay, warmup_steps: 5, end_fraction: 0.1, decay_steps: 5}"]
)
def test_steps_may_grow_unless_the_rate_depends_on_them(train, kind):
    constant = f"schedule={kind}" if "{" in kind else f"schedule.kind={kind}"
    whole, _ = train(constant, name="whole")
    first, _ = train(constant, "training.steps=10")
    second, talk = train(constant, "training.steps=20")
    assert second.run == first.run
    assert "resuming from step 10 of 20" in talk
    assert same(whole.run, second.run) == (kind == "constant"), "another run decays at another time"
    assert "training.steps: 20 -> 10" in refusal(train, constant, "training.steps=10", name=second.run.name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_latent_tokens=9", "model.num_latent_tokens: the recipe says 9, the cache has 8"),
        ("model.codebook_size=32", "model.codebook_size: the recipe says 32, the cache has 16"),
        ("image_size=256", "image_size: the recipe says 256, the cache has 64"),
        ("model.num_classes=2", "model.num_classes: the recipe says 2, the cache's labels need 3"),
        ("views=[plain, ten]", "the recipe wants ten, the cache has plain, flip"),
        ("training.global_batch_size=500", "fewer than one global batch of 500"),
        ("val_fraction=0.999", "at least 1 must be held out, and one global batch of 16 must remain"),
        ("val_fraction=1e-9", "holds out 0 of the 200 rows"),
        ("model.architecture=foo", "unknown generator architecture 'foo'"),
        ("optimizer.betas=[0.9, 1.5]", "optimizer.betas.1"),
        ("training.precision=fp8", "training.precision: should be"),
    ],
)
def test_what_does_not_fit_is_named(train, runs, override, message):
    assert message in refusal(train, override)
    assert not runs.exists(), "before anything is written"


def test_a_validation_cache_must_fit_too(train, tmp_path):
    wide = write_cache(tmp_path / "wide.h5", 30, classes=5)
    other = write_cache(tmp_path / "other.h5", 30, encoder_sha256="a" * 64)
    assert "the recipe says 3, the labels of" in refusal(train, validation=wide)
    assert "encoder aaaaaaaaaaaa, not eeeeeeeeeeee" in refusal(train, validation=other)
    assert "both name held-out images" in refusal(train, "val_fraction=0.1", validation=wide)
    unlabelled = write_cache(tmp_path / "none.h5", 100, classes=0)
    result, _ = train("training.steps=2", cache=unlabelled, validation=wide)
    assert "held_out_loss" in result.metrics, "without classes all labels are the null label"


def test_latents_are_refused_as_such(train, tmp_path):
    with pytest.raises(UserError, match=r"trains a generator of ids, and .* holds latents"):
        train(cache=write_cache(tmp_path / "latents.h5", 30, codes=0))


def test_a_plan_divides_the_batch_as_the_run_will(cache, recipe, tmp_path):
    with pytest.raises(UserError, match="16 is not a multiple of 3 processes"):
        TrainGenerator(cache, str(recipe), processes=3).plan(Context(tmp_path))


def test_a_cache_that_does_not_fit_is_one_sentence_on_the_command_line(run_cli, cache, recipe):
    refused = run_cli("train-gen", cache, "--recipe", recipe, "--set", "model.codebook_size=32", code=1)
    assert "the recipe says 32, the cache has 16" in " ".join(refused.stderr.split())
    assert "hint:" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_unlabelled_caches_train_unconditionally(train, tmp_path):
    found, talk = train("training.steps=2", cache=write_cache(tmp_path / "none.h5", 100, classes=0))
    assert "no labels" in talk
    assert open_run(found.run).settings["model"]["num_classes"] == 0, "nobody can draw classes that were never seen"


def test_a_recipe_is_found_by_tokens_codes_and_classes(train, tmp_path):
    tiny = recipe_files.load("tiny", "generator").model
    cache = write_cache(tmp_path / "tiny.h5", 300, codes=tiny.codebook_size, tokens=tiny.num_latent_tokens, classes=5)
    small = ("training.steps=1", "model.width=32", "model.num_layers=2", "training.global_batch_size=4")
    found, talk = train(*small, cache=cache, recipe=None)
    assert "recipe: generator/tiny" in talk
    assert open_run(found.run).settings["model"]["num_classes"] == 5


def test_an_id_beyond_the_codebook_is_named(train, cache, tmp_path):
    damaged = tmp_path / "damaged.h5"
    shutil.copyfile(cache, damaged)
    with h5py.File(damaged, "r+") as file:
        file["views/flip"][7, 2] = 16
    assert "row 7 of view 'flip'" in refusal(train, cache=damaged)


def test_no_fitting_recipe_is_one_sentence(train):
    assert "no shipped generator recipe has the 8 tokens and 16 codes" in refusal(train, recipe=None)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("tensorboard", "tensorboard/events.out.tfevents.*"), ("wandb", "wandb/offline-run-*"), ("trackio", "*.db")],
)
def test_other_logs_are_written_offline_and_without_their_package_the_hint_names_the_extra(
    train, name, kept, monkeypatch, tmp_path
):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    if importlib.util.find_spec(name):
        result, _ = train(f"training.log=[{name}]")
        assert list((tmp_path / "trackio" if name == "trackio" else result.run).glob(kept))
    else:
        assert f"needs the package {name}" in refusal(train, f"training.log=[{name}]")


# The part of Trackio's interface that is used; it prints where Trackio prints.
TRACKIO = """
import json, pathlib

class Run:
    def __init__(self, **settings):
        self.lines = [{"init": settings}]
    def log(self, metrics, step=None):
        self.lines.append({"step": step, **metrics})
    def finish(self):
        print("* Run finished.")
        with pathlib.Path("points.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\\n" for line in self.lines)

def init(project, name=None, resume="never", embed=True):
    print("* Trackio project initialized")
    return Run(project=project, name=name, resume=resume, embed=embed)
"""


@pytest.mark.slow
def test_trackio_gets_every_number_of_a_run_that_is_resumed_under_one_name(run_cli, cache, recipe, tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    (package / "trackio.py").write_text(TRACKIO)
    words = ["train-gen", cache, "--recipe", recipe, "--name", "one", "--json", "--set", "schedule.kind=constant"]
    words += ["--set", "training.log=[trackio]", "--set"]
    where = {"PYTHONPATH": os.pathsep.join([str(package), *sys.path])}
    for steps in (10, 20):
        done = run_cli(*words, f"training.steps={steps}", env=where, code=0)
        assert done.json["metrics"]["step"] == steps  # the greeting is not among the results
        assert "Trackio project initialized" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "points.jsonl").read_text().splitlines()]
    first, second = (line["init"] for line in lines if "init" in line)
    assert (first["project"], first["resume"], second["resume"]) == ("titokctl", "never", "allow")
    assert first["name"] == second["name"]
    assert [line["step"] for line in lines if "loss" in line] == [5, 10, 15, 20]
    assert not second["embed"]


def test_the_hint_after_a_loss_that_stays_infinite_names_a_checkpoint_to_start_from(train, runs, tmp_path):
    steps = ("training.steps=20", "schedule={kind: constant, warmup_steps: 0}")
    first, _ = train(*steps, "training.checkpoint_every=5", name="calm")
    text = (first.run / "run.json").read_text().replace('"status": "finished"', '"status": "stopped"')
    (first.run / "run.json").write_text(text.replace("0.001", "1e+30"))  # as if its rate had been too high from here on
    longer = (*steps, "training.steps=60", "training.keep_checkpoints=20", "optimizer.learning_rate=1e30")
    with pytest.raises(UserError, match="not finite in 10 steps in a row") as diverged:
        train(*longer, name="calm")
    hint = diverged.value.hint
    assert f"--init {first.run}@20 --set optimizer.learning_rate=5e+29" in hint
    tuned, talk = train(*steps, "training.steps=2", "optimizer.learning_rate=1e-4", init=f"{first.run}@20")
    assert tuned.run != first.run
    assert "init: " in talk


def test_a_run_that_failed_before_its_first_checkpoint_leaves_its_name_to_a_corrected_one(train, runs):
    wild = ("optimizer.learning_rate=1e30", "schedule={kind: constant, warmup_steps: 0}", "training.steps=60")
    message = refusal(train, *wild, "training.checkpoint_every=1000", name="one")
    assert "not finite" in message
    assert open_run(runs / "generator" / "one").status == "failed"
    corrected, _ = train("training.steps=5", name="one")
    assert open_run(corrected.run).is_finished


def test_a_loss_that_stays_infinite_ends_the_run(train, runs):
    wild = ("optimizer.learning_rate=1e30", "schedule={kind: constant, warmup_steps: 0}", "training.steps=60")
    assert "not finite in 10 steps in a row" in refusal(train, *wild, name="wild")
    assert open_run(runs / "generator" / "wild").status == "failed"


def test_a_dry_run_prints_a_recipe_and_what_it_takes(run_cli, runs, cache, recipe, tmp_path):
    said = run_cli("train-gen", cache, "--recipe", recipe, "--measure", "--gpus", "1", "--device", "cpu", code=2)
    assert "usable GPUs" in said.stderr
    said = run_cli("train-gen", cache, "--recipe", recipe, "--measure", code=0)
    assert "sees 320 images (2,560 tokens), which is 1.6 epochs" in said.stdout
    assert "images/s measured" in said.stdout
    assert f"# run: {runs / 'generator'}" in said.stdout
    assert "# dry run: nothing was written" in said.stdout
    (tmp_path / "printed.yaml").write_text(said.stdout)
    assert recipe_files.load(str(tmp_path / "printed.yaml"), "generator").training.steps == 20
    assert not runs.exists(), "nothing is written"


def test_a_plan_names_the_run_and_is_refused_as_the_run_is(train, cache, recipe, runs):
    def planned(*overrides, **options):
        request = TrainGenerator(cache, str(recipe), overrides, **({"name": "one"} | options))
        return request.plan(Context(runs)).run

    folder, longer = runs / "generator" / "one", ("training.steps=30", "schedule={kind: constant, warmup_steps: 5}")
    assert (planned().output, planned().state) == (folder, "new")
    assert not runs.exists()
    result, _ = train(longer[1], name="one")
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    assert planned(longer[1]).state == "finished"
    assert planned(*longer).in_words() == f"run: {folder}, would resume from step 20 of 30"
    assert planned(overwrite=True).replaces
    with pytest.raises(UserError, match="was begun with other settings"):
        planned("training.seed=1")
    with folder_lock(folder), pytest.raises(UserError, match="another titokctl is at work"):
        planned(longer[1])
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
    assert planned(longer[1], name=None).output != result.run


def test_a_place_where_nothing_can_be_made_is_refused_first(cache, recipe, tmp_path):
    (tmp_path / "file").touch()
    talk = Remarks()
    with pytest.raises(UserError, match="cannot make the folder"), StopRequest() as stop:
        TrainGenerator(cache, str(recipe)).run(Context(tmp_path / "file", progress=talk, stop=stop))
    assert not talk.said


def test_a_cache_with_a_changed_id_is_refused(train, cache, runs, tmp_path):
    data = bytearray(cache.read_bytes())
    ids = TokenCache.open(cache).ids
    place = data.find(ids.tobytes())
    data[place + 2] ^= 1
    (tmp_path / "changed.h5").write_bytes(data)
    assert "/tokens: rows 0 to 199 changed" in refusal(train, cache=tmp_path / "changed.h5")
    assert not runs.exists()


def test_classes_without_rows_are_told(train, cache, tmp_path):
    assert "warning: no rows in" not in train("training.steps=1", name="all")[1]
    _, talk = train("training.steps=1", "model.num_classes=5", name="more")
    assert "for 2 of the 5 classes" in talk
    assert "(3, 4)" in talk
    assert "--set model.num_classes=3 leaves out those above" in talk
