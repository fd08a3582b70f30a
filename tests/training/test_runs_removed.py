"""runs finish, rm and prune: stopped runs get a product; what others refer to stays, the rest says what it frees."""

import os
import signal

import pytest
import tiny
from stages import Leave
from stages import train as train_tokenizer

from titokctl.context import Context
from titokctl.errors import Stopped, UserError
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.run_folder import finished_runs, open_run
from titokctl.jobs.machine.removal import Prune, RemoveRun
from titokctl.jobs.machine.runs import ListRuns
from titokctl.jobs.train.finish import FinishRun
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_tokenizer

SHORT = "training.steps=4"


class Made:
    def __init__(self, folder):
        self.folder, self.runs = folder, folder / "runs"
        self.context = Context(self.runs)
        self.pictures = tiny.class_folder(folder / "pictures", per_class=6)

    def train(self, stage, name, *overrides, **options):
        return train_tokenizer(self.pictures, stage, self.runs, self.folder, *overrides, name=name, **options)

    def stopped(self, name):
        with pytest.raises(Stopped):
            self.train("single", name, "training.checkpoint_every=2", progress=Leave(5, _terminate))
        return self.runs / "tokenizer" / name


def _terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


def test_a_stopped_run_is_finished_with_a_checkpoint(made, run_cli):
    folder = made.stopped("a")
    found = FinishRun("a@4").run(made.context)
    assert (found.step, found.steps) == (4, 20)
    assert (
        found.weights_sha256
        == weights_sha256(load_tokenizer(f"{folder}@4:ema"))
        == weights_sha256(load_tokenizer(folder))
    )
    run = open_run(folder)
    assert (run.is_finished, run.step, run.hashes.keys()) == (True, 4, {"encoder_sha256", "weights_sha256"})
    again = made.train("single", "a", "training.checkpoint_every=2")
    assert again.weights_sha256 == found.weights_sha256
    with pytest.raises(UserError, match="finished already"):
        FinishRun("a").run(made.context)
    made.stopped("b")
    done = run_cli("runs", "finish", "tokenizer/b", "--runs-dir", made.runs, "--json", code=0).json
    assert done["step"] > 4


def test_what_cannot_be_finished_is_refused(made):
    folder = made.stopped("a")
    with pytest.raises(UserError, match="does not keep @3"):
        FinishRun("a@3").run(made.context)
    with folder_lock(folder), pytest.raises(UserError, match="at work"):
        FinishRun("a").run(made.context)
    with pytest.raises(UserError, match="no run named b"):
        FinishRun("b").run(made.context)


def test_runs_that_others_start_from_are_not_removed(made, run_cli):
    vqgan = made.train("vqgan", "v", SHORT)
    made.train("proxy", "p", SHORT)
    with pytest.raises(UserError, match="v is in use: tokenizer/p refers to it") as refused:
        RemoveRun("v").plan(made.context)
    assert refused.value.hint == "remove it first: titokctl runs rm tokenizer/p"
    with folder_lock(made.runs / "tokenizer" / "p"), pytest.raises(UserError, match="at work"):
        RemoveRun("p").plan(made.context)
    planned = run_cli("runs", "rm", "p", "--dry-run", "--runs-dir", made.runs, "--json", code=0).json
    assert planned["freed_bytes"] > 1000
    assert (made.runs / "tokenizer" / "p").exists()
    assert run_cli("runs", "rm", "p", "--runs-dir", made.runs, "--json", code=0).json | {"dry_run": True} == planned
    RemoveRun("proxy/v").run(made.context)
    assert not vqgan.run.exists()
    assert not finished_runs(made.runs, "tokenizer")


def test_earlier_products_go_one_by_one_or_all_that_nothing_refers_to(made):
    first = made.train("single", "t", SHORT)
    for steps in (5, 6):
        last = made.train("single", "t", f"training.steps={steps}")
    listed = [(run.name, run.status, run.step) for run in ListRuns().run(made.context)]
    middle = open_run(last.run).products[1]
    assert listed[0][:2] == ("t", "finished")
    assert listed[1:] == [
        (f"t@{middle.hashes['weights_sha256'][:12]}", "earlier", 5), (f"t@{first.weights_sha256[:12]}", "earlier", 4),
    ]  # fmt: skip
    removed = RemoveRun(f"t@{first.weights_sha256[:8]}").run(made.context)
    assert removed[0].num_bytes > 0
    assert not first.weights.exists()
    (last.run / "weights-0123456789ab.safetensors").write_bytes(b"left by a kill")
    planned = Prune().plan(made.context)
    assert {one.reference for one in planned} == {
        middle.reference, str(last.run / "weights-0123456789ab.safetensors"),
    }  # fmt: skip
    assert Prune().run(made.context) == planned
    assert Prune().plan(made.context) == []
    assert [product.step for product in open_run(last.run).products] == [6]
    assert weights_sha256(load_tokenizer(last.run)) == last.weights_sha256


def test_pruning_keeps_what_is_referred_to_and_unfinished_runs_unless_asked(made):
    vqgan = made.train("vqgan", "v", SHORT)
    made.train("proxy", "p", SHORT)
    made.train("vqgan", "v", "training.steps=6")
    stopped = made.stopped("cut")
    assert Prune().plan(made.context) == []
    assert [one.reference for one in Prune(unfinished=True).run(made.context)] == [str(stopped)]
    assert vqgan.weights.exists()
    assert not stopped.exists()
