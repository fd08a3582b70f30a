"""Ids that are given stay, whatever the rule of decoding; the others are drawn, each image by itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
import trained
from caches import write_cache

from titokctl.config.sampling import SamplingConfig
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.formats.sample_set import SampleSet
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.sample.request import Sample
from titokctl.sampling.decoding import sample_ids
from titokctl.weights.load import load_generator

K, V = trained.TOKENS, trained.CODES


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return trained.both(tmp_path_factory.mktemp("known"))


@pytest.fixture(scope="module")
def generator(runs):
    return load_generator(runs / "generator" / "gen")


@pytest.mark.parametrize("unmasking", ["confidence", "random-order", "remasking"])
@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.filterwarnings("ignore:20 steps")
def test_given_ids_stay_and_others_are_drawn(generator, unmasking, steps):
    settings = SamplingConfig(num_steps=steps, guidance_scale=1.0, unmasking=unmasking, choice_temperature=4.0)
    given = torch.randint(V, (6, K), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(6, K, dtype=torch.bool)
    for row in range(6):
        mask[row, torch.randperm(K, generator=torch.Generator().manual_seed(row))[:3]] = True
    labels = torch.arange(6) % 3
    drawn = sample_ids(generator, labels, settings, known=given, known_mask=mask)
    assert torch.equal(drawn[mask], given[mask])
    assert ((drawn >= 0) & (drawn < V)).all()
    other = sample_ids(generator, labels, settings.model_copy(update={"seed": 1}), known=given, known_mask=mask)
    assert torch.equal(other[mask], given[mask])
    assert steps == 1 or not torch.equal(other, drawn), "the last step takes the most likely codes"
    one = sample_ids(
        generator, labels[4:5], settings, torch.tensor([4]), known=given[4:5].to(torch.uint16), known_mask=mask[4:5]
    )
    assert torch.equal(one, drawn[4:5]), "an image depends on its own ids alone"


def test_given_ids_decide_about_the_others(generator):
    settings, labels = SamplingConfig(num_steps=4, choice_temperature=0.0), torch.zeros(1, dtype=torch.int64)
    first = torch.arange(K) < K // 2
    drawn = [
        sample_ids(generator, labels, settings, known=torch.full((1, K), code), known_mask=first)[0, K // 2 :]
        for code in (0, 1, 2)
    ]
    assert len({tuple(ids.tolist()) for ids in drawn}) > 1


def test_none_given_is_sampling_and_all_given_is_nothing(generator):
    settings, labels = SamplingConfig(num_steps=4), torch.tensor([0, 1])
    ids = torch.zeros(2, K, dtype=torch.int64)
    nothing = sample_ids(generator, labels, settings, known=ids, known_mask=torch.zeros(K, dtype=torch.bool))
    assert torch.equal(nothing, sample_ids(generator, labels, settings))
    assert torch.equal(sample_ids(generator, None, settings, known=ids, known_mask=torch.ones(K).bool()), ids)


@pytest.mark.parametrize(
    ("known", "mask", "message"),
    [
        (torch.zeros(2, K).long(), None, "expected both, or neither"),
        (torch.zeros(2, K - 1).long(), torch.ones(K).bool(), "known: expected integers of shape"),
        (torch.zeros(2, K), torch.ones(K).bool(), "known: expected a tensor of integers"),
        (torch.zeros(2, K).long(), torch.ones(K), "known_mask: expected a bool tensor"),
        (torch.zeros(2, K).long(), torch.eye(K).bool(), "known_mask: expected a bool tensor"),
        (torch.zeros(2, K).long(), torch.arange(2 * K).view(2, K) < 3, "equally many in each row, not 0 to 3"),
        (torch.full((2, K), V), torch.arange(K) < 2, f"values in 0..{V - 1}, not {V}..{V}"),
        (torch.zeros(3, K).long(), torch.arange(K) < 2, "expected ids of 2 images, not of 3"),
    ],
)
def test_wrong_ids_are_refused(generator, known, mask, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(".", r"\.")):
        sample_ids(generator, torch.tensor([0, 1]), SamplingConfig(num_steps=2), known=known, known_mask=mask)


def test_a_sample_set_keeps_the_ids_of_another(runs, run_cli, tmp_path):
    words = ("sample", "--runs-dir", runs, "--device", "cpu", "--precision", "float32", "--format", "none", "--json")
    first = TokenCache.open(SampleSet.open(Path(run_cli(*words, "-n", 20, code=0).json["samples"])).ids)
    again = run_cli(*words, "--keep", first.path, "--keep-tokens", "0-2,6", "--seed", 5, code=0).json
    kept = TokenCache.open(SampleSet.open(Path(again["samples"])).ids)
    assert len(kept) == 20, "an image a row"
    assert np.array_equal(kept.labels, first.labels)
    assert np.array_equal(kept.ids[:, [0, 1, 2, 6]], first.ids[:, [0, 1, 2, 6]])
    assert not np.array_equal(kept.ids[:, 3:6], first.ids[:, 3:6])
    same = Sample(keep=first.path, keep_tokens=(6, 0, 1, 2), settings={"seed": 5}, num_images=23, classes=[1])
    more = TokenCache.open(SampleSet.open(same.run(Context(runs)).samples).ids)
    assert np.array_equal(more.ids[20:, [0, 1, 2, 6]], first.ids[:3, [0, 1, 2, 6]]), "rows in turn"
    assert set(more.labels.tolist()) == {1}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--keep-tokens", "0-3"), "belong together"),
        (("--keep", "CACHE"), "belong together"),
        (("--keep", "CACHE", "--keep-tokens", "3-1"), "not a list of positions"),
        (("--keep", "CACHE", "--keep-tokens", "0-7"), "nothing is left to draw"),
        (("--keep", "CACHE", "--keep-tokens", "8"), "an image has the tokens 0 to 7"),
        (("--keep", "CACHE", "--keep-tokens", "0"), "made by another tokenizer"),
    ],
)
def test_what_can_not_be_kept(runs, run_cli, tmp_path, words, message):
    cache = write_cache(tmp_path / "c.h5", 5, codes=V, tokens=K)
    refused = run_cli("sample", "--runs-dir", runs, "--dry-run", *(cache if w == "CACHE" else w for w in words))
    assert refused.code in (1, 2)
    assert message in " ".join(refused.stderr.split())
    assert "hint:" in refused.stderr


def test_other_sizes_and_labels_are_refused(runs, tmp_path):
    with pytest.raises(UserError, match="tokens an image: 8 and 4; codes: 32 and 16"):
        Sample(keep=write_cache(tmp_path / "a.h5", 5, tokens=4), keep_tokens=(0,)).plan(Context(runs))
    unlabelled = write_cache(tmp_path / "b.h5", 5, codes=V, tokens=K, classes=0)
    with pytest.raises(UsageError, match=r"5 rows of .* with no label"):
        Sample(keep=unlabelled, keep_tokens=(0,)).plan(Context(runs))
