"""Proxy codes kept for recorded crops: nothing of the training changes, and the VQGAN's encoder runs no more."""

import os
import signal

import numpy as np
import pytest
import stages
import tiny
import torch
from shard_server import Server
from torch.nn.modules.module import register_module_forward_hook

from titokctl.config import recipe_files
from titokctl.context import Context
from titokctl.data.sources import open_source
from titokctl.errors import Stopped, UserError
from titokctl.formats import checkpoint, proxy_codes
from titokctl.formats.proxy_codes import ProxyCodes
from titokctl.models.vqgan.vqgan import VqganEncoder
from titokctl.training.step_images import StepImages

IMAGES, BATCH = 36, 8
STEPS_OF_TWO_EPOCHS = 2 * IMAGES // BATCH


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Pictures, and a VQGAN that was trained a little."""
    folder = tmp_path_factory.mktemp("kept")
    pictures = tiny.class_folder(folder / "pictures", per_class=12, names=("cat", "cow", "dog"))
    assert len(list(pictures.rglob("*.jpg"))) == IMAGES
    stages.train(pictures, "vqgan", folder / "runs", folder, "training.steps=5", name="vqgan")
    return folder


@pytest.fixture
def encoded():
    """One entry for each time that a VQGAN's encoder ran."""
    seen = []
    hook = register_module_forward_hook(lambda module, *_: seen.append(1) if isinstance(module, VqganEncoder) else None)
    yield seen
    hook.remove()


def train(chain, runs, name, *overrides, **options):
    proxy = f"proxy={chain / 'runs' / 'proxy' / 'vqgan'}"
    overrides = (proxy, "cached_crops=2", *overrides)
    return stages.train(chain / "pictures", "proxy", runs, chain, *overrides, name=name, **options).run


def state(run):
    return checkpoint.load_newest(run / "checkpoints", print).tensors


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class Forget(stages.Leave):
    """Empties the file of codes after every step, so that all of them are computed anew."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def advance(self, count=1, note=""):
        np.load(self.path, mmap_mode="r+")[:] = 0


def test_from_the_third_epoch_on_no_image_is_encoded_and_all_is_as_with_codes_computed_anew(chain, runs, encoded):
    kept = train(chain, runs, "kept")
    assert len(encoded) == STEPS_OF_TWO_EPOCHS
    anew = train(chain, runs, "anew", progress=Forget(runs / "tokenizer" / "anew" / proxy_codes.NAME))
    assert len(encoded) == STEPS_OF_TWO_EPOCHS + 20
    assert_same(state(kept), state(anew))
    stored = np.load(kept / proxy_codes.NAME)
    assert stored.shape == (2 * IMAGES, 16)
    assert stored.min() > 0
    assert not np.array_equal(stored[:IMAGES], stored[IMAGES:]), "the second crop is another one"


def test_a_stopped_run_goes_on_bit_for_bit_with_the_codes_it_has(chain, runs, encoded):
    whole = train(chain, runs, "whole", "training.micro_batch_size=4")
    del encoded[:]
    with pytest.raises(Stopped):
        train(chain, runs, "cut", "training.micro_batch_size=4",
              progress=stages.Leave(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))  # fmt: skip
    with pytest.raises(ZeroDivisionError):
        train(chain, runs, "cut", "training.micro_batch_size=4", progress=stages.Leave(9, lambda: 1 / 0))
    cut = train(chain, runs, "cut", "training.micro_batch_size=4")
    assert_same(state(whole), state(cut))
    assert len(encoded) == 2 * STEPS_OF_TWO_EPOCHS, "what was computed before the crash was not computed again"


@pytest.mark.slow
def test_two_processes_fill_one_file(chain, runs, run_cli):
    alone = train(chain, runs, "alone")
    run_cli("train-tokenizer", chain / "pictures", "--recipe", stages.write_recipe(chain, "proxy"), "--procs", "2",
            "--proxy", chain / "runs" / "proxy" / "vqgan", "--set", "cached_crops=2", "--runs-dir", runs,
            "--name", "two", code=0)  # fmt: skip
    both = np.load(alone.with_name("two") / proxy_codes.NAME)
    assert both.min() > 0
    assert (both == np.load(alone / proxy_codes.NAME)).mean() > 0.99  # halves of a batch may round otherwise


def test_a_row_counts_only_when_all_of_it_is_known(tmp_path):
    path = tmp_path / "codes.npy"
    proxy_codes.create(path, (6, 3))
    assert path.stat().st_blocks * 512 >= 6 * 3 * 2, "its room on the disk is its own"
    file, rows = ProxyCodes(path, (6, 3), 50), np.array([4, 1])
    codes = np.array([[0, 49, 7], [1, 2, 3]])
    assert file.read(rows) is None
    file.write(rows, codes)
    also = ProxyCodes(path, (6, 3), 50)
    assert np.array_equal(also.read(rows), codes)
    assert also.read(np.array([1, 2])) is None
    for value in (0, 51, 65_535):  # a write that was cut off, and codes that the VQGAN doesn't have
        np.load(path, mmap_mode="r+")[4, 2] = value
        assert also.read(rows) is None


def test_a_damaged_file_is_one_sentence_and_a_hint(tmp_path):
    path = tmp_path / "codes.npy"
    proxy_codes.create(path, (6, 3))
    with pytest.raises(UserError, match=r"holds uint16 \(6, 3\) where uint16 \(8, 3\)") as refused:
        ProxyCodes(path, (8, 3), 50)
    assert f"rm {path}" in refused.value.hint
    whole = path.read_bytes()
    for damaged in (b"", whole[:20], whole[:-4], bytes(50), b"\x80\x04K\x01."):  # the last is a pickle
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            ProxyCodes(path, (6, 3), 50)


def test_codes_that_do_not_fit_into_16_bits_are_refused(chain):
    path = stages.write_recipe(chain, "proxy")
    with pytest.raises(UserError, match="at most 65,535 codes"):
        recipe_files.load(str(path), "tokenizer", ["cached_crops=1", "model.proxy.codebook_size=65536"])


def test_shards_that_are_only_read_from_front_to_end_are_refused(chain, runs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server = Server()
    server.files = {path.name: path.read_bytes() for path in tiny.shards(tmp_path / "shards", 1, 8).iterdir()}
    recipe = recipe_files.load(str(stages.write_recipe(chain, "proxy")), "tokenizer", ["cached_crops=2"])
    try:
        source = open_source([f"{server.url}/000.tar"])
        with pytest.raises(UserError, match="can be read in any order") as refused:
            StepImages(source, recipe, Context())
    finally:
        server.close()
    assert "cached_crops=null" in refused.value.hint
