"""Autoregressive generators: any order, the cache, what top-k and top-p allow, and the likelihood."""

import itertools
import math

import numpy as np
import pytest
import tiny
import torch

from titokctl.config.models import AutoregressiveConfig, GeneratorConfig
from titokctl.config.recipe import AutoregressiveLossConfig, MaskedLossConfig
from titokctl.config.sampling import AutoregressiveSampling, SamplingConfig
from titokctl.models.autoregressive.decoding import allowed, decode
from titokctl.models.autoregressive.generator import Autoregressive, random_orders, random_share
from titokctl.models.generator import Generator, Known, TrainingStep
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.noise import KeyedNoise
from titokctl.sampling.decoding import sample_ids

TOKENS, CODES, CLASSES = 12, 32, 3
LABELS = torch.arange(20) % CLASSES
SIZES = {"width": 32, "num_layers": 2, "num_heads": 2, "mlp_width": 64, "num_classes": CLASSES}


def distinct(model: Generator) -> Generator:
    """Weights large enough that probabilities differ visibly."""
    torch.manual_seed(0)
    return tiny.enlarged(model, 8)


def autoregressive(tokens: int = TOKENS, codes: int = CODES, **changes: object) -> Autoregressive:
    fields = SIZES | {"num_latent_tokens": tokens, "codebook_size": codes} | changes
    return distinct(Autoregressive(AutoregressiveConfig(kind="autoregressive", **fields)))


@pytest.fixture(scope="module", params=[True, False], ids=["adaptive norm", "prefix"])
def generator(request) -> Autoregressive:
    return autoregressive(adaptive_norm=request.param)


def noise(count: int = len(LABELS), seed: int = 0) -> KeyedNoise:
    return KeyedNoise(seed, torch.arange(count))


@torch.inference_mode()
def test_in_every_order_a_position_sees_the_earlier_ones_alone(generator):
    draws = torch.Generator().manual_seed(0)
    ids = torch.randint(CODES, (4, TOKENS), generator=draws)
    orders = random_orders(4, TOKENS, 1.0, draws)
    rank = orders.argsort(dim=1)
    before = generator(ids, LABELS[:4], orders)
    for number in (0, 5, TOKENS - 1):
        changed = ids.scatter(
            1, orders[:, number : number + 1], (ids.gather(1, orders[:, number : number + 1]) + 1) % CODES
        )
        differs = (generator(changed, LABELS[:4], orders) - before).abs().amax(-1) > 1e-5
        assert torch.equal(differs, rank > number)


@torch.inference_mode()
def test_the_order_of_the_cache_is_the_default(generator):
    ids = torch.randint(CODES, (4, TOKENS), generator=torch.Generator().manual_seed(0))
    given = generator(ids, LABELS[:4], torch.arange(TOKENS).expand(4, -1))
    torch.testing.assert_close(generator(ids, LABELS[:4]), given)


@pytest.mark.parametrize(
    "settings",
    [
        AutoregressiveSampling(guidance_scale=0.0),
        AutoregressiveSampling(guidance_scale=2.0, guidance_schedule="power-cosine"),
        AutoregressiveSampling(guidance_scale=2.0, guidance_schedule="constant", guidance_interval=(0.3, 0.7)),
        AutoregressiveSampling(guidance_scale=1.0, guidance_interval=(0.9, 1.0), temperature=0.8, top_k=9),
        AutoregressiveSampling(guidance_scale=1.0, top_p=0.7),
        AutoregressiveSampling(temperature=0.0),
    ],
    ids=lambda settings: settings.in_words(),
)
@torch.inference_mode()
def test_with_and_without_a_cache_the_ids_are_equal(generator, settings):
    for labels in (LABELS, None):
        drawn = [decode(generator, labels, settings, noise(), cached=cached) for cached in (True, False)]
        assert torch.equal(*drawn)
        assert len(drawn[0].unique(dim=0)) > (1 if settings.temperature else 0)


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.0, 0.4), (0.6, 1.0)])
@pytest.mark.parametrize("count", [0, 1, 5, TOKENS - 1])
def test_an_image_whose_own_first_ids_are_given_is_drawn_again(generator, interval, count):
    settings = AutoregressiveSampling(guidance_scale=1.5, guidance_schedule="constant", guidance_interval=interval)
    whole, first = sample_ids(generator, LABELS, settings), torch.arange(TOKENS) < count
    given = torch.where(first, whole, 0)
    assert torch.equal(sample_ids(generator, LABELS, settings, known=given, known_mask=first), whole)
    other = sample_ids(generator, LABELS, settings.model_copy(update={"seed": 1}), known=whole, known_mask=first)
    assert torch.equal(other[:, :count], whole[:, :count])
    assert not torch.equal(other, whole)
    foreign = (whole + 1) % CODES
    assert torch.equal(sample_ids(generator, None, settings, known=foreign, known_mask=first)[:, first],
                       foreign[:, first])  # fmt: skip


@torch.inference_mode()
def test_given_ids_are_read_in_one_pass(generator):
    ids = torch.randint(CODES, (20, TOKENS), generator=torch.Generator().manual_seed(0))
    known = Known(ids, (torch.arange(TOKENS) < 5).expand(20, -1), 5)
    settings = AutoregressiveSampling(guidance_scale=2.0, guidance_schedule="constant", guidance_interval=(0.5, 0.8))
    seen: list[tuple[int, ...]] = []
    hook = generator.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:2]))
    drawn = decode(generator, LABELS, settings, noise(), known)
    hook.remove()
    assert [tuple(shape) for shape in seen] == [(20, 6), (20, 6)] + [(40, 1)] * 4 + [(20, 1)] * 2
    assert torch.equal(drawn, decode(generator, LABELS, settings, noise(), known, cached=False))
    assert torch.equal(drawn[:, :5], ids[:, :5])


@pytest.mark.parametrize("positions", [[1], [0, 2], [3, 4, 5], [TOKENS - 1]])
def test_ids_that_are_not_the_first_ones_are_refused(generator, positions):
    mask = torch.zeros(TOKENS, dtype=torch.bool)
    mask[positions] = True
    ids = torch.zeros(len(LABELS), TOKENS, dtype=torch.int64)
    with pytest.raises(ValueError, match="known_mask: expected the first positions of each row"):
        sample_ids(generator, LABELS, AutoregressiveSampling(), known=ids, known_mask=mask)


def test_an_image_depends_on_seed_index_and_label_alone(generator):
    settings = AutoregressiveSampling(guidance_scale=1.5, guidance_interval=(0.2, 1.0), top_p=0.9)
    whole = sample_ids(generator, LABELS, settings)
    for size in (1, 3, 7):
        parts = [sample_ids(generator, LABELS[i : i + size], settings, torch.arange(20)[i : i + size])
                 for i in range(0, 20, size)]  # fmt: skip
        assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(sample_ids(generator, LABELS, settings.model_copy(update={"seed": 1})), whole)
    none = torch.zeros(0, dtype=torch.int64)
    assert sample_ids(generator, none, settings).shape == (0, TOKENS)


def test_steps_outside_the_interval_cost_one_pass(generator):
    """The rows with the null label catch up in one pass when guidance begins."""
    seen: list[tuple[int, int]] = []
    hook = generator.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:2]))
    settings = AutoregressiveSampling(guidance_schedule="constant", guidance_interval=(0.25, 0.5))
    sample_ids(generator, LABELS, settings)
    hook.remove()
    n = len(LABELS)
    assert [tuple(shape) for shape in seen] == [(n, 1)] * 3 + [(n, 3)] + [(2 * n, 1)] * 3 + [(n, 1)] * 6


def test_ids_follow_the_probabilities():
    """The share of each first id over many images, against the softmax of its logits."""
    model = autoregressive(tokens=2, codes=8)
    labels = torch.zeros(20_000, dtype=torch.int64)
    ids = sample_ids(model, labels, AutoregressiveSampling(guidance_scale=0.0, temperature=0.7))
    with torch.inference_mode():
        wanted = (model(ids[:1], labels[:1])[0, 0] / 0.7).softmax(-1)
    found = torch.bincount(ids[:, 0], minlength=8) / len(ids)
    assert (found - wanted).abs().max() < 4 * 0.5 / math.sqrt(len(ids))


def reference_allowed(scores: np.ndarray, settings: AutoregressiveSampling) -> set[int]:
    ranked = sorted(range(len(scores)), key=lambda code: -scores[code])[: settings.top_k]
    shares = np.exp(scores[ranked] / settings.temperature)
    shares, kept, total = shares / shares.sum(), set(), 0.0
    for code, share in zip(ranked, shares, strict=True):
        if total >= settings.top_p:
            break
        kept.add(code)
        total += share
    return kept


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, 1.0), (5, 1.0), (1, 1.0), (50, 0.5), (None, 1e-6), (6, 0.6)])
def test_top_k_and_top_p(temperature, top_k, top_p):
    settings = AutoregressiveSampling(temperature=temperature, top_k=top_k, top_p=top_p)
    scores = torch.randn(30, 20, generator=torch.Generator().manual_seed(0)) * 2
    kept = allowed(scores, settings)
    for row, before in zip(kept, scores, strict=True):
        codes = {int(code) for code in row.isfinite().nonzero()}
        assert codes == reference_allowed(before.double().numpy(), settings)
        assert torch.equal(row[row.isfinite()], before[row.isfinite()])


def test_top_k_1_takes_the_most_likely_code(generator):
    best = sample_ids(generator, LABELS, AutoregressiveSampling(temperature=0.0))
    assert torch.equal(sample_ids(generator, LABELS, AutoregressiveSampling(top_k=1)), best)
    assert torch.equal(sample_ids(generator, LABELS, AutoregressiveSampling(top_p=1e-6)), best)


def test_the_share_of_random_orders():
    def shares(until, annealed, total=100):
        settings = AutoregressiveLossConfig(random_until=until, annealed_until=annealed)
        return [random_share(settings, TrainingStep(step, total)) for step in (0, 10, 19, 20, 30, 40, 99)]

    assert shares(0.2, 0.4) == shares(20, 40) == [1, 1, 1, 1, 0.5, 0, 0]
    assert shares(0, 0) == [0] * 7, "the fixed order"
    assert shares(0.2, 0.2) == [1, 1, 1, 0, 0, 0, 0]
    assert shares(0, 0.4) == pytest.approx([1, 0.75, 0.525, 0.5, 0.25, 0, 0])


def test_orders_are_permutations_in_the_share_asked_for():
    orders = random_orders(4000, 6, 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(orders.sort(dim=1).values, torch.arange(6).expand(4000, -1))
    fixed = (orders == torch.arange(6)).all(dim=1).float().mean()
    assert abs(fixed - 0.75 - 0.25 / math.factorial(6)) < 0.03
    assert len(orders.unique(dim=0)) > 500


def test_a_batch_after_the_annealing_has_no_orders(generator):
    settings = AutoregressiveLossConfig(random_until=0.2, annealed_until=0.4)
    for step, names in ((0, {"order"}), (39, {"order"}), (40, set()), (99, set())):
        drawn = generator.draw(16, settings, torch.Generator().manual_seed(0), TrainingStep(step, 100))
        assert drawn.tensors.keys() == names
        assert drawn.total_weight == 16 * TOKENS


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    logits = logits.double().numpy()
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


@torch.inference_mode()
def test_the_likelihood_is_a_sum_over_prefixes(generator):
    """Each factor comes from a pass of its own, in which all later ids are others."""
    draws = torch.Generator().manual_seed(3)
    ids = torch.randint(CODES, (5, TOKENS), generator=draws)
    wanted = np.zeros(5)
    for k in range(TOKENS):
        prefix = torch.where(torch.arange(TOKENS) < k, ids, torch.randint(CODES, ids.shape, generator=draws))
        wanted -= log_softmax(generator(prefix, LABELS[:5])[:, k])[np.arange(5), ids[:, k]]
    found = generator.nll(ids, LABELS[:5], noise(5), 1)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5)


@torch.inference_mode()
def test_the_probabilities_of_all_images_sum_to_one():
    model = autoregressive(tokens=4, codes=5)
    images = torch.tensor(list(itertools.product(range(5), repeat=4)))
    for label in range(CLASSES + 1):
        labels = torch.full((len(images),), label)
        assert torch.exp(-model.nll(images, labels, noise(len(images)), 1)).sum() == pytest.approx(1, abs=1e-5)


@torch.inference_mode()
def test_the_masked_bound_is_the_mean_over_all_masks():
    """Against the enumeration of all masks, and above the exact value for random orders, from all permutations."""
    tokens = 4
    fields = SIZES | {"num_latent_tokens": tokens, "codebook_size": 6, "architecture": "uvit"}
    model = distinct(MaskGit(GeneratorConfig(**fields)))
    image, label, mask = torch.tensor([[1, 4, 0, 2]]), torch.tensor([1]), 6

    def logs(known: tuple[int, ...]) -> np.ndarray:
        ids = torch.where(torch.tensor([k in known for k in range(tokens)]), image, mask)
        return log_softmax(model(ids, label))[0, np.arange(tokens), image[0]]

    bound = 0.0
    for n in range(1, tokens + 1):
        sets = list(itertools.combinations(range(tokens), tokens - n))
        bound -= np.mean([logs(known)[[k for k in range(tokens) if k not in known]].sum() / n for known in sets])
    orders = list(itertools.permutations(range(tokens)))
    likelihood = np.mean([np.exp(sum(logs(o[:k])[o[k]] for k in range(tokens))) for o in orders])
    assert bound >= -np.log(likelihood)
    many = 400
    estimates = model.nll(image.expand(many, -1), label.expand(many), noise(many), tokens)
    error = float(estimates.std()) / math.sqrt(many)
    assert abs(float(estimates.mean()) - bound) < 4 * error
    assert error < 0.05 * bound


def test_settings_of_another_kind_are_refused(generator):
    with pytest.raises(ValueError, match="AutoregressiveSampling, not SamplingConfig"):
        sample_ids(generator, LABELS, SamplingConfig())
    masked = distinct(MaskGit(GeneratorConfig(**SIZES, num_latent_tokens=4, codebook_size=8)))
    with pytest.raises(ValueError, match="SamplingConfig, not AutoregressiveSampling"):
        sample_ids(masked, LABELS, AutoregressiveSampling())


def test_held_out_numbers_name_what_they_are(generator):
    ids = torch.randint(CODES, (40, TOKENS), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % CLASSES
    draws = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        found = generator.measure(ids, labels, AutoregressiveLossConfig(), draws)
        exact = float(generator.nll(ids, labels, noise(40), 1).mean()) / TOKENS
        masked = distinct(MaskGit(GeneratorConfig(**SIZES, num_latent_tokens=TOKENS, codebook_size=CODES)))
        other = masked.measure(ids, labels, MaskedLossConfig(), draws)
    assert found["loss"] == pytest.approx(exact)
    assert found["bits_per_id"] == pytest.approx(exact / math.log(2))
    assert "bits_per_id" not in other
    assert other["bits_per_id_bound"] > 0


@pytest.mark.parametrize("wrong", ["ids", "labels"])
def test_wrong_shapes_are_named(generator, wrong):
    ids, labels = torch.zeros(2, TOKENS, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    if wrong == "ids":
        ids = ids[:, 1:]
    else:
        labels = labels[:1]
    with pytest.raises(ValueError, match=f"{wrong}: expected"):
        generator(ids, labels)
