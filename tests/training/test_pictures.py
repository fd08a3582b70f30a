"""Samples as pictures while a generator trains: only with the tokenizer that made the tokens."""

import pytest
import trained
from caches import write_cache

from titokctl.errors import UserError

FITTING = (f"model.codebook_size={trained.CODES}", "sampling.num_steps=2")


@pytest.fixture
def own_cache(runs, tmp_path):
    hashes = trained.tokenizer_run(runs)
    return write_cache(tmp_path / "own.h5", 50, codes=trained.CODES, tokens=trained.TOKENS, **hashes)


def test_pictures_are_drawn_with_the_tokenizer_that_is_found_by_its_hash(train, runs, own_cache):
    result, talk = train(*FITTING, cache=own_cache)
    assert "recorded by its hash" in talk
    pictures = sorted(path.name for path in result.run.glob("samples-*.png"))
    assert pictures == ["samples-00000010.png", "samples-00000020.png"]


def test_without_the_tokenizer_there_are_none_and_it_trains_all_the_same(train):
    result, talk = train("training.steps=2")
    assert "no previews" in talk
    assert not list(result.run.glob("*.png"))


def test_another_tokenizer_than_the_named_one_is_refused(train, runs, own_cache):
    trained.tokenizer_run(runs, "other", seed=5)
    with pytest.raises(UserError, match=r"was made by another tokenizer than .*other: encoder [0-9a-f]{12}, not") as no:
        train(*FITTING, cache=own_cache, tokenizer=str(runs / "tokenizer" / "other"))
    assert "--tokenizer" in no.value.hint
    assert not (runs / "generator").exists()


def test_pictures_change_nothing_of_the_training(train, own_cache, cache):
    with_pictures, _ = train(*FITTING, cache=own_cache)
    plain = write_cache(own_cache.with_name("plain.h5"), 50, codes=trained.CODES, tokens=trained.TOKENS)
    without, _ = train(*FITTING, cache=plain)
    assert with_pictures.weights_sha256 == without.weights_sha256
