"""Starting from other weights: each rule by which a tensor is taken, resized or left."""

import pytest
import torch
from networks import tiny_generator, tiny_tokenizer

from titokctl.errors import UserError
from titokctl.models.initialization import initialize
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.adoption import Given, adopt, freeze, planned
from titokctl.weights.store import skeleton

OLD = tiny_tokenizer(1)
GENERATOR = tiny_generator(1)


def tokenizer(**changes) -> TiTok:
    torch.manual_seed(0)
    made = TiTok(OLD.config.model_copy(update=changes))
    initialize(made)
    return made


def generator(**changes) -> MaskGit:
    torch.manual_seed(0)
    made = MaskGit(GENERATOR.config.model_copy(update=changes))
    initialize(made)
    return made


def test_equal_networks_become_equal():
    new = tokenizer()
    found = adopt(new, Given("old", "0", OLD))
    assert (found.resized, found.left) == ([], [])
    assert all(torch.equal(a, b) for a, b in zip(new.state_dict().values(), OLD.state_dict().values(), strict=True))


@pytest.mark.parametrize("size", [8, 32])
def test_positions_are_interpolated_and_keep_the_class_embeddings(size):
    new = tokenizer(image_size=size)
    found = adopt(new, Given("old", "0", OLD))
    assert sorted(found.resized) == ["decoder.positional_embedding", "encoder.positional_embedding"]
    before, after = OLD.encoder.positional_embedding, new.encoder.positional_embedding
    assert torch.equal(after[0], before[0])
    # A bicubic interpolation keeps the mean of a grid that is doubled, but for what it cuts at the border.
    assert torch.nn.functional.cosine_similarity(after[1:].mean(0), before[1:].mean(0), 0) > 0.8
    flat = torch.nn.Parameter(torch.ones_like(before))
    constant = tiny_tokenizer(1)
    constant.encoder.positional_embedding = flat
    adopt(new, Given("flat", "0", constant))
    torch.testing.assert_close(new.encoder.positional_embedding, torch.ones_like(after))


def test_more_latent_tokens_keep_the_first_and_their_first_values():
    new, untouched = tokenizer(num_latent_tokens=6), tokenizer(num_latent_tokens=6)
    adopt(new, Given("old", "0", OLD))
    assert torch.equal(new.latent_tokens[:4], OLD.latent_tokens)
    assert torch.equal(new.latent_tokens[4:], untouched.latent_tokens[4:])


@pytest.mark.parametrize("codes", [7, 25])
def test_a_codebook_of_another_size(codes):
    new = tokenizer(codebook_size=codes)
    found = adopt(new, Given("old", "0", OLD))
    assert found.resized == ["quantizer.codebook"]
    old, made = OLD.quantizer.codebook, new.quantizer.codebook
    assert torch.equal(made[: min(codes, 10)], old[:codes])
    for c in range(10, codes):
        assert 0 < (made[c] - old[c % 10]).abs().max() < 0.01


def rows(network: MaskGit) -> torch.Tensor:
    """The rows of the classes and of the null label."""
    return network.body.token_embedding.weight[network.config.codebook_size + 1 :]


@pytest.mark.parametrize(
    ("count", "names", "old_names", "expected"),
    [
        (3, (), (), [0, 1, 2]),  # equally many: by number
        (2, (), (), [3, 3]),  # unknown: the null label's
        (5, ("a", "b", "c", "d", "e"), (), [3, 3, 3, 3, 3]),
        (4, ("dog", "new", "cat", "owl"), ("cat", "owl", "dog"), [2, 3, 0, 1]),
        (3, ("x", "y", "owl"), ("cat", "owl", "dog"), [3, 3, 1]),
    ],
)
def test_classes_are_matched_by_name_or_number_and_new_ones_begin_as_the_null_label(count, names, old_names, expected):
    new = generator(num_classes=count)
    found = adopt(new, Given("old", "0", GENERATOR, old_names), names)
    assert found.resized == ["body.token_embedding.weight"]
    assert torch.equal(rows(new), rows(GENERATOR)[[*expected, 3]])
    codes = GENERATOR.config.codebook_size + 1
    assert torch.equal(new.body.token_embedding.weight[:codes], GENERATOR.body.token_embedding.weight[:codes])
    assert torch.equal(new.head.weight, GENERATOR.head.weight)


def test_other_codes_leave_table_and_head_but_take_the_body():
    new, untouched = generator(codebook_size=12), generator(codebook_size=12)
    found = adopt(new, Given("old", "0", GENERATOR))
    assert {"body.token_embedding.weight", "head.weight", "head.bias"} == set(found.left)
    assert torch.equal(new.head.weight, untouched.head.weight)
    assert found.taken
    assert "left: " in found.in_words()


def test_what_is_planned_is_what_is_done_and_nothing_in_common_is_refused():
    new = tokenizer(image_size=32, codebook_size=25)
    given = Given("old", "abc", OLD)
    plan = planned(skeleton("tokenizer", new.config), given)
    assert plan == adopt(new, given)
    assert plan.record(given) | {"taken": 0} == {
        "from": "old", "weights_sha256": "abc", "taken": 0, "resized": plan.resized, "left": [],
    }  # fmt: skip
    with pytest.raises(UserError, match="no tensor of old fits"):
        planned(torch.nn.Linear(2, 3), given)


def test_frozen_parts_want_no_gradients_and_unknown_ones_are_refused():
    new = tokenizer()
    freeze(new, ["encoder", "decoder.blocks"])
    wanting = {name.split(".")[0] for name, p in new.named_parameters() if p.requires_grad}
    assert wanting == {"latent_tokens", "quantizer", "decoder"}
    assert not any(p.requires_grad for p in new.decoder.blocks.parameters())
    with pytest.raises(UserError, match="no part 'enc'") as refused:
        freeze(new, ["enc"])
    assert "latent_tokens" in refused.value.hint
    with pytest.raises(UserError, match="nothing to train"):
        freeze(new, ["encoder", "decoder", "quantizer", "latent_tokens"])
