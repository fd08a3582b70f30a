"""titokctl nll: its numbers, the rows it scores, and what it refuses."""

import json
import math

import numpy as np
import pytest
import torch
import trained
from caches import write_cache

from titokctl.cli.app import run
from titokctl.context import Context
from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.evaluate.nll import Nll
from titokctl.jobs.train.generator import TrainGenerator
from titokctl.weights.load import load_generator

AUTOREGRESSIVE = """
kind: generator
model: {kind: autoregressive, num_latent_tokens: 8, codebook_size: 16, num_classes: 3, width: 32, num_layers: 2,
        num_heads: 2, mlp_width: 64}
optimizer: {learning_rate: 1e-3}
schedule: {warmup_steps: 2}
training: {steps: 6, global_batch_size: 16, ema_decay: 0.9, log_every: 3, evaluate_every: 6, checkpoint_every: 6}
"""


@pytest.fixture
def networks(tmp_path):
    """One tokenizer, a generator of each kind, and a cache that fits them."""
    runs = tmp_path / "runs"
    hashes = trained.tokenizer_run(runs)
    trained.generator_run(runs, hashes, "masked")
    trained.generator_run(runs, hashes, "ar", kind="autoregressive")
    write_cache(tmp_path / "tokens.h5", 150, codes=trained.CODES, tokens=trained.TOKENS, **hashes)
    return tmp_path


def score(folder, generator, cache="tokens.h5", **options):
    return Nll(folder / cache, f"generator/{generator}", **options).run(Context(folder / "runs"))


def test_exact_numbers_and_a_bound_have_names_of_their_own(networks, capsys):
    words = ["nll", networks / "tokens.h5", "--runs-dir", networks / "runs", "--device", "cpu", "--json", "--generator"]

    def printed(*more):
        assert run([str(word) for word in (*words, *more)]) == 0
        return json.loads(capsys.readouterr().out)

    exact = printed("ar")
    assert (exact["likelihood"], exact["passes"], exact["images"]) == ("exact", 1, 150)
    numbers = exact["numbers"]
    assert numbers["uniform_bits_per_id"] == 5
    assert numbers["bits_per_image"] == pytest.approx(trained.TOKENS * numbers["bits_per_id"])
    classes = exact["by_class"]
    assert classes.keys() == {"ant", "bee", "cat"}
    mean = sum(c["images"] * c["bits_per_id"] for c in classes.values()) / 150
    assert mean == pytest.approx(numbers["bits_per_id"])

    bound = printed("masked", "--passes", "4")
    assert "bound" in bound["likelihood"]
    assert {name for name in bound["numbers"] if not name.endswith("_bound")} == {"uniform_bits_per_id"}
    assert all(name == "images" or name.endswith("_bound") for c in bound["by_class"].values() for name in c)


def test_without_a_name_the_newest_generator_that_fits_the_cache_is_taken(networks, capsys):
    other = trained.tokenizer_run(networks / "runs", "other", seed=3)
    trained.generator_run(networks / "runs", other, "newer")
    words = ["nll", networks / "tokens.h5", "--runs-dir", networks / "runs", "--device", "cpu"]
    assert run([str(word) for word in words]) == 0
    assert "generator/ar (the newest in" in capsys.readouterr().err


def test_the_standard_error_is_that_of_the_mean_over_images(networks):
    """Against the same images scored one by one."""
    cache = networks / "tokens.h5"
    whole = score(networks, "ar").numbers
    model = trained_network(networks, "ar")
    bits = bits_one_by_one(model, cache)
    assert whole["bits_per_image"] == pytest.approx(bits.mean(), rel=1e-5)
    assert whole["standard_error_per_image"] == pytest.approx(bits.std(ddof=1) / math.sqrt(len(bits)), rel=1e-4)


def trained_network(folder, name):
    return load_generator(folder / "runs" / "generator" / name)


def bits_one_by_one(model, path):
    cache, found = TokenCache.open(path), []
    with torch.inference_mode():
        for ids, label in zip(cache.ids.astype(np.int64), cache.labels, strict=True):
            logits = model(torch.from_numpy(ids)[None], torch.tensor([int(label)]))[0].double().numpy()
            logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            found.append(-logs[np.arange(len(ids)), ids].sum() / math.log(2))
    return np.array(found)


def test_images_without_labels_are_scored_with_the_null_label(networks):
    head = json.loads((networks / "runs/tokenizer/tok/run.json").read_text())["hashes"]
    write_cache(networks / "plain.h5", 20, codes=trained.CODES, tokens=trained.TOKENS, classes=0, **head)
    found = score(networks, "ar", "plain.h5")
    assert found.by_class.keys() == {"-1"}
    assert found.by_class["-1"]["bits_per_id"] == pytest.approx(found.numbers["bits_per_id"])


def test_one_image_of_a_class_has_no_standard_error(networks, capsys):
    head = json.loads((networks / "runs/tokenizer/tok/run.json").read_text())["hashes"]
    write_cache(networks / "one.h5", 1, codes=trained.CODES, tokens=trained.TOKENS, **head)
    words = ["nll", networks / "one.h5", "--runs-dir", networks / "runs", "--generator", "ar", "--device", "cpu"]
    assert run([*map(str, words), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["numbers"]
    assert numbers["standard_error_per_id"] is None


def test_rows_that_training_held_out(tmp_path):
    """Of its own training cache only they are scored; a generator that held out nothing gets a warning."""
    (tmp_path / "ar.yaml").write_text(AUTOREGRESSIVE)
    cache = write_cache(tmp_path / "tokens.h5", 200)
    other = write_cache(tmp_path / "other.h5", 30, seed=9)
    for name, share in (("some", 0.25), ("none", 0)):
        TrainGenerator(cache, str(tmp_path / "ar.yaml"), [f"val_fraction={share}"], name=name).run(
            Context(tmp_path / "runs")
        )
    some, none = score(tmp_path, "some"), score(tmp_path, "none")
    assert 20 < some.images < 80
    assert "held out" in some.rows
    assert none.images == 200
    assert "trained on" in none.rows
    assert score(tmp_path, "some", "other.h5").images == len(range(30)), other


def test_refusals(networks, tmp_path):
    def message(generator: str, cache: str, **options: int) -> str:
        with pytest.raises(UserError) as caught:
            score(networks, generator, cache, **options)
        assert caught.value.hint
        return caught.value.message

    write_cache(networks / "foreign.h5", 20, codes=trained.CODES, tokens=trained.TOKENS)
    assert "another tokenizer" in message("ar", "foreign.h5")
    head = json.loads((networks / "runs/tokenizer/tok/run.json").read_text())["hashes"]
    write_cache(networks / "short.h5", 20, codes=trained.CODES, tokens=4, **head)
    assert "tokens an image: 8 and 4" in message("masked", "short.h5")
    write_cache(networks / "latents.h5", 20, codes=0, **head)
    assert "latents" in message("ar", "latents.h5")
    write_cache(networks / "many.h5", 90, codes=trained.CODES, tokens=trained.TOKENS, classes=7, **head)
    assert "has the classes 0 to 2" in message("ar", "many.h5")
    assert run(["nll", str(networks / "tokens.h5"), "--passes", "0"]) == 2
