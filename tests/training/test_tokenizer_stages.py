"""The stages of the two-stage way, one after the other: what each makes, what it leaves alone, how it goes on."""

import os
import signal
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file
from stages import NAMES, Leave, train, write_recipe

from titokctl.context import Context
from titokctl.data.image_decoder import ImageDecoder
from titokctl.errors import Stopped, UserError
from titokctl.formats import checkpoint
from titokctl.formats.run_folder import open_run
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.caches.inspect import Inspect
from titokctl.jobs.evaluate.reconstruct import Reconstruct
from titokctl.jobs.tokenize.request import Tokenize
from titokctl.weights.chain import pick_tokenizer, tokenizer_with
from titokctl.weights.hashes import encoder_sha256
from titokctl.weights.load import load_proxy, load_tokenizer

QUIET = Leave()


class Chain:
    """Pictures, a runs folder, and the three runs of the two-stage way in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        self.pictures = tiny.class_folder(folder / "pictures", per_class=12)
        self.said: list[str] = []
        self.vqgan, self.proxy, self.decoder = (
            self.train(stage, "training.steps=9") for stage in ("vqgan", "proxy", "decoder")
        )

    def train(self, stage, *overrides, runs=None, **options):
        talk = options.pop("progress", Leave())
        try:
            return train(self.pictures, stage, runs or self.runs, self.folder, *overrides, progress=talk, **options)
        finally:
            self.said += talk.said

    def continued(self, stage, name, *overrides, runs=None):
        """The same run with the networks of the chain, whatever runs are new since."""
        named = {"proxy": [f"proxy={self.vqgan.run}"], "decoder": [f"init={self.proxy.run}"]}.get(stage, [])
        return lambda **options: self.train(stage, *overrides, *named, name=name, runs=runs, **options)


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    return Chain(tmp_path_factory.mktemp("chain"))


def state(run: Path) -> dict[str, torch.Tensor]:
    """Everything in the newest checkpoint."""
    found = checkpoint.load_newest(run / "checkpoints", QUIET.say)
    assert found is not None
    return found.tensors


def test_each_stage_finds_the_one_before_and_says_so(chain):
    assert any(f"proxy tokenizer: {chain.vqgan.run}" in line for line in chain.said)
    assert any(f"init: {chain.proxy.run}" in line for line in chain.said)
    inputs = open_run(chain.decoder.run).inputs
    assert inputs["init"]["weights_sha256"] == chain.proxy.weights_sha256
    assert inputs["proxy"]["weights_sha256"] == chain.vqgan.weights_sha256


def test_a_vqgan_is_no_tokenizer_but_weights_that_load_and_are_told(chain):
    assert chain.vqgan.run.parent.name == "proxy"
    vqgan = load_proxy(chain.vqgan.run)
    assert vqgan.codes(torch.rand(2, 3, 32, 32)).shape == (2, 4, 4)
    assert Inspect(chain.vqgan.weights).run(Context()).what == "proxy weights"
    assert Inspect(chain.vqgan.run).run(Context()).what == "proxy run"
    with pytest.raises(UserError, match=r"a proxy tokenizer .* but a tokenizer") as refused:
        load_tokenizer(chain.vqgan.run)
    assert refused.value.hint


def test_the_decoder_stage_leaves_all_that_decides_ids_as_it_is_to_the_bit(chain):
    before, after = load_file(chain.proxy.weights), load_file(chain.decoder.weights)
    fixed = [name for name in before if not name.startswith("decoder.")]
    assert any(name.startswith("encoder.") for name in fixed)
    assert {"latent_tokens", "quantizer.codebook"} <= set(fixed)
    assert all(torch.equal(before[name], after[name]) for name in fixed)
    assert all(not torch.equal(before[name], after[name]) for name in before if name.startswith("decoder.blocks"))
    vqgan = load_file(chain.vqgan.weights)
    assert not torch.equal(vqgan["codebook"], after["proxy_pixels.codebook"])
    assert not torch.equal(vqgan["decoder.conv_in.weight"], after["proxy_pixels.decoder.conv_in.weight"])
    assert (
        chain.decoder.encoder_sha256 == chain.proxy.encoder_sha256 == encoder_sha256(load_tokenizer(chain.decoder.run))
    )


def test_a_cache_by_the_proxy_run_is_decoded_by_the_decoder_run(chain, tmp_path):
    Tokenize([chain.pictures], tmp_path / "t.h5", str(chain.proxy.run)).run(Context(chain.runs))
    head = TokenCache.open(tmp_path / "t.h5").header
    found = tokenizer_with(head.encoder_sha256, head.weights_sha256, None, chain.runs, QUIET.say)
    assert found == str(chain.decoder.run) == pick_tokenizer(None, chain.runs, QUIET.say, pixels=True)
    with pytest.raises(UserError, match="stage proxy only and does not produce pixels"):
        ImageDecoder(load_tokenizer(chain.proxy.run), "cpu", "float32")
    with pytest.raises(UserError, match="stage proxy only and does not produce pixels"):
        Reconstruct([chain.pictures], str(chain.proxy.run), tmp_path).run(Context(chain.runs))


@pytest.mark.parametrize("stage", NAMES)
def test_a_run_goes_on_bit_for_bit_after_a_signal_and_after_a_crash(chain, stage, tmp_path):
    steps = ("training.steps=12", "training.global_batch_size=4")
    whole = chain.continued(stage, "whole", *steps, runs=tmp_path)()
    cut = chain.continued(stage, "cut", *steps, runs=tmp_path)
    with pytest.raises(Stopped):
        cut(progress=Leave(3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(ZeroDivisionError):
        cut(progress=Leave(5, lambda: 1 / 0))  # at step 8, between the checkpoints of 5 and 10
    result = cut()
    a, b = state(whole.run), state(result.run)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert result.weights_sha256 == whole.weights_sha256


def test_weights_of_another_architecture_are_listed(chain):
    with pytest.raises(UserError, match=r"another architecture .*encoder.width: 32 -> 64") as refused:
        chain.train("decoder", f"init={chain.proxy.run}", "model.encoder.width=64")
    assert "num_latent_tokens" not in refused.value.message
    with pytest.raises(UserError, match=r"has other sizes than the recipe.*codebook_size: 32 -> 16"):
        chain.train("proxy", f"proxy={chain.vqgan.run}", "model.proxy.codebook_size=16")


def test_missing_weights_of_a_perceptual_network_are_one_error_before_training(chain, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="convnext_small") as refused:
        chain.train("vqgan", "loss.perceptual={convnext-s: 0.1}", runs=tmp_path / "runs")
    assert refused.value.hint
    assert not list((tmp_path / "runs").glob("*/*/checkpoints"))


def test_what_is_missing_is_said_before_anything_is_made(chain, tmp_path):
    with pytest.raises(UserError, match="no proxy tokenizer was named") as refused:
        chain.train("proxy", runs=tmp_path / "none")
    assert "--proxy" in refused.value.hint
    with pytest.raises(UserError, match="no run of stage proxy") as refused:
        chain.train("decoder", runs=tmp_path / "none")
    assert "--init" in refused.value.hint
    assert not (tmp_path / "none").exists()


def test_a_decoder_run_can_be_gone_on_with_from_its_own_product(chain):
    again = chain.train("decoder", f"init={chain.decoder.run}", "training.steps=2", "optimizer.learning_rate=1e-9")
    assert open_run(again.run).inputs.keys() >= {"init"}
    assert "proxy" not in open_run(again.run).inputs
    assert again.encoder_sha256 == chain.decoder.encoder_sha256


def test_the_command_line_takes_both_flags(chain, run_cli):
    recipe = write_recipe(chain.folder, "decoder")
    result = run_cli("train-tokenizer", chain.pictures, "--recipe", recipe, "--init", chain.proxy.run,
                     "--proxy", chain.vqgan.run, "--dry-run", code=0)  # fmt: skip
    assert f"init: {chain.proxy.run}" in result.stdout
    assert f"proxy: {chain.vqgan.run}" in result.stdout
    refused = run_cli("train-tokenizer", chain.pictures, "--recipe", "tiny", "--init", "x", "--dry-run", code=1)
    assert "no weights found: x" in refused.stderr
    refused = run_cli("train-tokenizer", chain.pictures, "--recipe", "tiny", "--proxy", "x", "--dry-run", code=2)
    assert "proxy: unknown field" in refused.stderr


def no_stop():
    from titokctl.distributed.stop import StopRequest

    return StopRequest()
