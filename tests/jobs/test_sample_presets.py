"""Released generators are sampled with their published settings, unless a generator brings its own."""

from pathlib import Path

import pytest

from titokctl.config.sampling import SamplingConfig
from titokctl.errors import UserError
from titokctl.jobs.sample.inputs import Given, find_tokenizer, released_as, settings_for
from titokctl.weights.known import BY_NAME, of_kind
from titokctl.weights.store import Weights

FIELDS = (
    "num_steps",
    "guidance_scale",
    "guidance_schedule",
    "guidance_power",
    "choice_temperature",
    "softmax_annealing",
)
PUBLISHED = {  # steps, scale in the s-form, schedule, power, choice temperature, annealing
    "maskgit-vit-l-32": ("titok-l-32", (8, 4.5, "linear", 3.0, 9.5, True)),
    "maskgit-vit-b-64": ("titok-b-64", (8, 3.0, "linear", 3.0, 11.0, True)),
    "maskgit-uvit-s-128": ("titok-s-128", (64, 5.9, "power-cosine", 3.0, 2.8, True)),
}


def given(name: str, **extra: str) -> Given:
    """Return a released generator's configuration without tensors."""
    return Given(name, Path(name), Weights("generator", BY_NAME[name].config, {}, extra))


def settings(generator: Given, changes: dict | None = None) -> SamplingConfig:
    return settings_for(generator, changes or {}, lambda text: None)


def test_every_released_generator_has_a_preset():
    assert {known.name for known in of_kind("generator") if not known.is_bundled} == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_used(name):
    tokenizer, values = PUBLISHED[name]
    assert released_as(BY_NAME[name].config) == tokenizer
    assert tokenizer in BY_NAME
    found = settings(given(name))
    assert tuple(getattr(found, name) for name in FIELDS) == values
    assert found.guidance_interval == (0, 1)
    assert settings(given(name), {"seed": 4}) == found.model_copy(update={"seed": 4})


def test_the_generators_own_settings_come_first():
    own = SamplingConfig(num_steps=3, guidance_scale=0.5)
    assert settings(given("maskgit-vit-l-32", sampling=own.model_dump_json())) == own


def test_a_released_generator_wants_the_tokenizer_it_was_released_with(tmp_path):
    """The tokenizer is not on this machine; the message names it."""
    with pytest.raises(UserError, match="titok-s-128"):
        find_tokenizer(None, given("maskgit-uvit-s-128"), tmp_path, lambda text: None)


def test_another_generator_that_records_nothing_needs_a_named_tokenizer(tmp_path):
    config = BY_NAME["maskgit-vit-l-32"].config.model_copy(update={"width": 512})
    unknown = Given("mine", Path("mine"), Weights("generator", config, {}))
    assert settings(unknown) == SamplingConfig()
    with pytest.raises(UserError, match="does not record which tokenizer"):
        find_tokenizer(None, unknown, tmp_path, lambda text: None)
