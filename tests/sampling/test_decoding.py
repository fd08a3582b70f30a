"""Parallel decoding: the rule's mended places, and that an image depends on nothing but its key."""

import math

import pytest
import tiny
import torch

from titokctl.config.models import GeneratorConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.models.guidance import strength
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.noise import KeyedNoise
from titokctl.sampling.decoding import sample_ids

TOKENS, CODES, CLASSES = 16, 32, 5
SETTINGS = SamplingConfig(num_steps=6, guidance_scale=2.0, choice_temperature=4.0)


@pytest.fixture
def generator() -> MaskGit:
    torch.manual_seed(0)
    model = MaskGit(
        GeneratorConfig(num_latent_tokens=TOKENS, codebook_size=CODES, num_classes=CLASSES, width=32, num_layers=2,
                        num_heads=2, mlp_width=64)
    )  # fmt: skip
    return tiny.enlarged(model)


class Watched(KeyedNoise):
    """The usual noise, which keeps the positions it was asked for."""

    def __init__(self, batch: int) -> None:
        super().__init__(0, torch.arange(batch))
        self.asked: list[torch.Tensor] = []
        self.dtypes: set[torch.dtype] = set()

    def choose(self, scores, temperature, step, positions):
        self.asked.append(positions)
        self.dtypes.add(scores.dtype)
        return super().choose(scores, temperature, step, positions)


def rows_seen(generator: MaskGit) -> list[int]:
    """Rows of every forward pass from now on."""
    seen: list[int] = []
    generator.body.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    return seen


def test_ids_are_codes(generator):
    ids = sample_ids(generator, torch.arange(CLASSES), SETTINGS)
    assert ids.shape == (CLASSES, TOKENS)
    assert ids.dtype == torch.int64
    assert 0 <= ids.min() <= ids.max() < CODES
    assert len(ids.unique()) > 4


def test_an_image_depends_on_seed_and_index_alone(generator):
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1])
    whole = sample_ids(generator, labels, SETTINGS)
    for size in (1, 2, 3):
        parts = [
            sample_ids(generator, labels[i : i + size], SETTINGS, torch.arange(i, min(i + size, 7)))
            for i in range(0, 7, size)
        ]
        assert torch.equal(torch.cat(parts), whole)
    order = torch.tensor([6, 2, 0, 5, 1, 4, 3])
    assert torch.equal(sample_ids(generator, labels[order], SETTINGS, order), whole[order])


def test_another_seed_or_index_gives_another_image(generator):
    labels = torch.zeros(4, dtype=torch.int64)
    ids = sample_ids(generator, labels, SETTINGS)
    assert len(ids.unique(dim=0)) == 4
    other = sample_ids(generator, labels, SETTINGS.model_copy(update={"seed": 1}))
    assert (ids != other).any(dim=1).all()


def test_the_label_matters_and_guidance_too(generator):
    def draw(label, scale):
        config = SETTINGS.model_copy(update={"guidance_scale": scale})
        return sample_ids(generator, torch.full((3,), label), config)

    assert not torch.equal(draw(0, 2.0), draw(1, 2.0))
    assert not torch.equal(draw(0, 0.0), draw(0, 6.0))


@pytest.mark.parametrize("temperature", [0.0, 4.0])
def test_every_row_masks_the_same_number_again_even_if_all_scores_tie(generator, temperature):
    torch.nn.init.zeros_(generator.head.weight)
    torch.nn.init.zeros_(generator.head.bias)
    noise = Watched(3)
    config = SETTINGS.model_copy(update={"choice_temperature": temperature})
    ids = sample_ids(generator, torch.zeros(3, dtype=torch.int64), config, noise=noise)
    expected = [TOKENS] + [math.floor(TOKENS * math.acos(k / 6) * 2 / math.pi) for k in range(1, 6)]
    assert [p.shape for p in noise.asked] == [(3, n) for n in expected]
    for positions in noise.asked:
        assert all(len(row.unique()) == len(row) for row in positions)
    for before, after in zip(noise.asked, noise.asked[1:], strict=False):
        assert all(set(b.tolist()) >= set(a.tolist()) for b, a in zip(before, after, strict=True))
    assert ids.max() < CODES


def test_scores_are_float32_in_a_bf16_network(generator):
    noise = Watched(2)
    sample_ids(generator.to(torch.bfloat16), torch.tensor([0, 1]), SETTINGS, noise=noise)
    assert noise.dtypes == {torch.float32}


@pytest.mark.parametrize(
    ("schedule", "scale", "rows"),
    [("linear", 2.0, [3] + 5 * [6]), ("power-cosine", 2.0, [3] + 5 * [6]), ("constant", 2.0, 6 * [6]),
     ("constant", 0.0, 6 * [3])],
)  # fmt: skip
def test_there_is_no_unconditional_pass_where_guidance_is_off(generator, schedule, scale, rows):
    seen = rows_seen(generator)
    config = SETTINGS.model_copy(update={"guidance_schedule": schedule, "guidance_scale": scale})
    sample_ids(generator, torch.arange(3), config)
    assert seen == rows


def test_without_labels_every_row_goes_through_once(generator):
    seen = rows_seen(generator)
    ids = sample_ids(generator, None, SETTINGS, torch.arange(3))
    assert seen == 6 * [3]
    assert torch.equal(ids[1:], sample_ids(generator, None, SETTINGS, torch.tensor([1, 2])))


def test_dropout_is_off_and_the_mode_is_as_before(generator):
    labels = torch.arange(3)
    expected = sample_ids(generator, labels, SETTINGS)
    generator.train()
    assert torch.equal(sample_ids(generator, labels, SETTINGS), expected)
    assert generator.training


def test_more_steps_than_tokens_warns_and_still_draws_every_token(generator):
    config = SETTINGS.model_copy(update={"num_steps": TOKENS + 3})
    with pytest.warns(UserWarning, match="19 steps for 16 tokens"):
        ids = sample_ids(generator, torch.tensor([0, 1]), config)
    assert ids.max() < CODES


@pytest.mark.parametrize(
    ("labels", "indices", "message"),
    [
        (torch.tensor([0, CLASSES]), None, f"labels: expected values in 0..4 .*not 0..{CLASSES}"),
        (torch.tensor([-1]), None, "labels: expected values in 0..4"),
        (torch.tensor([0.0]), None, "labels: expected a tensor of integers, got torch.float32"),
        (torch.tensor([True]), None, "labels: expected a tensor of integers, got torch.bool"),
        (torch.tensor([1j]), None, "labels: expected a tensor of integers, got torch.complex64"),
        ([0], None, "labels: expected a tensor of integers, got list"),
        (torch.tensor([0]).numpy(), None, "labels: expected a tensor of integers, got ndarray"),
        (torch.tensor([0]), [0], "image_indices: expected a tensor of integers, got list"),
        (torch.tensor([0]), torch.tensor([0.0]), "image_indices: expected a tensor of integers"),
        (torch.tensor([[0]]), None, "labels: expected integers of shape \\(B,\\)"),
        (torch.tensor([0, 1]), torch.tensor([0]), "image_indices: expected 2"),
        (torch.tensor([0]), torch.tensor([-1]), "image_indices: expected values from 0"),
        (None, None, "image_indices: expected"),
    ],
)
def test_wrong_arguments(generator, labels, indices, message):
    with pytest.raises(ValueError, match=message):
        sample_ids(generator, labels, SETTINGS, indices)


def test_labels_and_indices_of_an_unsigned_type(generator):
    labels, indices = torch.tensor([0, 3]), torch.tensor([5, 6])
    drawn = sample_ids(generator, labels.to(torch.uint16), SETTINGS, indices.to(torch.uint16))
    assert torch.equal(drawn, sample_ids(generator, labels, SETTINGS, indices))


def test_an_empty_batch(generator):
    none = torch.zeros(0, dtype=torch.int64)
    assert sample_ids(generator, none, SETTINGS).shape == (0, TOKENS)
    assert sample_ids(generator, None, SETTINGS, none).shape == (0, TOKENS)


def test_labels_for_a_generator_without_classes_are_refused():
    model = MaskGit(GeneratorConfig(num_latent_tokens=4, codebook_size=4, num_classes=0, width=8, num_layers=1,
                                    num_heads=1, mlp_width=8))  # fmt: skip
    with pytest.raises(ValueError, match="expected None"):
        sample_ids(model, torch.tensor([0]), SamplingConfig(num_steps=2))


def test_strength_of_guidance():
    def of(schedule, power=3.0):
        config = SamplingConfig(num_steps=4, guidance_scale=2.0, guidance_schedule=schedule, guidance_power=power)
        return [strength(config, step / 4) for step in range(4)]

    assert of("constant") == [2.0] * 4
    assert of("linear") == [0.0, 0.5, 1.0, 1.5]
    assert of("power-cosine") == pytest.approx([1 - math.cos(math.pi * (k / 4) ** 3) for k in range(4)])
    assert of("power-cosine", 1.0) == pytest.approx([0, 1 - math.cos(math.pi / 4), 1, 1 - math.cos(math.pi * 3 / 4)])


def test_strength_is_zero_outside_the_guidance_interval():
    def of(interval, schedule="constant"):
        config = SamplingConfig(guidance_scale=2.0, guidance_schedule=schedule, guidance_interval=interval)
        return [strength(config, step / 8) for step in range(8)]

    assert of((0.25, 0.75)) == [0, 0, 2, 2, 2, 2, 0, 0]
    assert of((0.0, 1.0)) == [2.0] * 8
    assert of((0.3, 0.5)) == [0, 0, 0, 2, 0, 0, 0, 0]
    assert of((0.5, 1.0), "linear") == [0, 0, 0, 0, 1, 1.25, 1.5, 1.75], "the ramp is not stretched"


def test_steps_outside_the_interval_cost_one_pass(generator):
    settings = SETTINGS.model_copy(update={"guidance_interval": (0.5, 0.7), "guidance_schedule": "constant"})
    seen = rows_seen(generator)
    sample_ids(generator, torch.arange(CLASSES), settings)
    assert seen == [CLASSES] * 3 + [2 * CLASSES] * 2 + [CLASSES]


def test_an_interval_of_no_steps_draws_as_without_guidance(generator):
    unguided = SETTINGS.model_copy(update={"guidance_scale": 0.0})
    between = SETTINGS.model_copy(update={"guidance_interval": (0.01, 0.02)})  # no step of 6 lies there
    assert torch.equal(*(sample_ids(generator, torch.arange(CLASSES), s) for s in (unguided, between)))
