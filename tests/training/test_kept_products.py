"""Products that others refer to stay: through lengthening, --overwrite, a stop, and a kill."""

import os
import signal

import pytest
import tiny
import torch
from remarks import Remarks
from safetensors.torch import load_file
from stages import Leave
from stages import train as train_tokenizer

from titokctl.context import Context
from titokctl.errors import Stopped, UserError
from titokctl.formats.run_folder import finished_runs, open_run
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.tokenize.request import Tokenize
from titokctl.weights.chain import tokenizer_with
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_generator, load_tokenizer


class Cached:
    """A finished tokenizer of 6 steps, and a cache by it."""

    def __init__(self, folder):
        self.folder, self.runs = folder, folder / "runs"
        self.pictures = tiny.class_folder(folder / "pictures", per_class=8)
        self.first = self.train(6)
        Tokenize([self.pictures], folder / "t.h5", str(self.first.run)).run(Context(self.runs))
        self.header = TokenCache.open(folder / "t.h5").header

    def train(self, steps, *overrides, **options):
        return train_tokenizer(
            self.pictures, "single", self.runs, self.folder, f"training.steps={steps}", *overrides, name="t", **options
        )

    def check(self):
        """The tokenizer that made the cache is found, and has its weights."""
        remarks = Remarks()
        found = tokenizer_with(self.header.encoder_sha256, self.header.weights_sha256, None, self.runs, remarks.say)
        assert weights_sha256(load_tokenizer(found)) == self.header.weights_sha256
        return found


@pytest.fixture
def cached(tmp_path):
    return Cached(tmp_path)


def test_a_longer_run_keeps_the_product_of_the_shorter_one(cached):
    before = cached.first.weights.read_bytes()
    longer = cached.train(9)
    assert longer.weights_sha256 != cached.first.weights_sha256
    assert longer.weights != cached.first.weights
    assert cached.first.weights.read_bytes() == before
    assert cached.check() == f"{cached.first.run}@{cached.first.weights_sha256[:12]}"
    run = open_run(longer.run)
    assert [(product.step, product.reference) for product in run.products] == [(9, str(run.path)), (6, cached.check())]
    assert [product.settings["training"]["steps"] for product in run.products] == [9, 6]
    whole = cached.train(9, runs=cached.folder / "other") if False else longer
    assert weights_sha256(load_tokenizer(whole.run)) == longer.weights_sha256
    assert cached.train(9).weights_sha256 == longer.weights_sha256  # and asking again changes nothing
    assert cached.check()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stop_and_a_kill_on_the_way_leave_the_product_usable(cached, overwrite):
    change = {"overwrite": overwrite}
    with pytest.raises(Stopped):
        cached.train(12, progress=Leave(2, lambda: os.kill(os.getpid(), signal.SIGTERM)), **change)
    assert open_run(cached.first.run).status == "stopped"
    assert cached.check()
    assert weights_sha256(load_tokenizer(cached.first.run)) == cached.header.weights_sha256
    with pytest.raises(ZeroDivisionError):
        cached.train(12, progress=Leave(1, lambda: 1 / 0))
    assert cached.check()
    cached.train(12)
    assert cached.check().endswith(f"@{cached.first.weights_sha256[:12]}")


def test_starting_over_keeps_what_was_finished_and_equal_weights_once(cached):
    other = cached.train(6, "training.seed=1", overwrite=True)
    assert other.weights_sha256 != cached.first.weights_sha256
    assert cached.check()
    again = cached.train(6, overwrite=True)
    assert again.weights_sha256 == cached.first.weights_sha256
    assert [p.hashes["weights_sha256"] for p in finished_runs(cached.runs, "tokenizer")] == [
        again.weights_sha256, other.weights_sha256,
    ]  # fmt: skip
    assert cached.check() == str(cached.first.run)
    assert len(list(cached.first.run.glob("weights*.safetensors"))) == 2


def test_generators_keep_theirs(train, cache):
    constant = ("schedule.kind=constant", "training.ema_decay=0.5")
    first, _ = train(*constant, "training.steps=5", name="g")
    longer, _ = train(*constant, "training.steps=8", name="g")
    assert first.weights != longer.weights
    assert weights_sha256(load_generator(f"{first.run}@5")) == first.weights_sha256
    assert weights_sha256(load_generator(f"{first.run}@{first.weights_sha256[:8]}")) == first.weights_sha256
    assert weights_sha256(load_generator(first.run)) == longer.weights_sha256
    with pytest.raises(UserError, match="does not keep @7"):
        load_generator(f"{first.run}@7")


def test_a_damaged_list_of_earlier_products_is_refused(cached):
    text = (cached.first.run / "run.json").read_text()
    (cached.first.run / "run.json").write_text(text.replace("{", '{"earlier": [{"product": "../x"}],', 1))
    with pytest.raises(UserError, match=r"run\.json is damaged: earlier"):
        open_run(cached.first.run)


def test_tensors_of_a_checkpoint_are_weights(cached):
    """An unfinished run stands for its newest checkpoint; @STEP for another one, averaged or raw."""
    with pytest.raises(Stopped):
        train_tokenizer(
            cached.pictures, "single", cached.runs, cached.folder, "training.checkpoint_every=2", name="u",
            progress=Leave(5, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        )  # fmt: skip
    run = cached.runs / "tokenizer" / "u"
    state = load_file(run / "checkpoints" / "step-00000004" / "tensors-0.safetensors")
    for reference, part in ((f"{run}@4", "ema"), (f"{run}@4:raw", "module"), (f"{run}@4:ema", "ema")):
        found = load_tokenizer(reference).state_dict()
        assert all(torch.equal(found[name], state[f"tokenizer.{part}.{name}"]) for name in found), reference
    newest = max((run / "checkpoints").iterdir(), key=lambda path: path.name)
    assert newest.name > "step-00000004"
    hashes = {weights_sha256(load_tokenizer(given)) for given in (run, f"{run}@latest", newest)}
    assert len(hashes) == 1
    with pytest.raises(UserError, match="does not keep @3") as refused:
        load_tokenizer(f"{run}@3")
    assert f"{run}@4" in refused.value.hint
