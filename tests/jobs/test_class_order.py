"""A warning when a cache has ImageNet's classes in another order than the released generators."""

import json
from pathlib import Path

import pytest
from caches import write_cache

from titokctl.data.sources.imagenet import say_class_order
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.sample.inputs import Given, settings_for
from titokctl.jobs.train.generator_recipe import resolve_recipe
from titokctl.progress import SilentProgress
from titokctl.weights.known import BY_NAME
from titokctl.weights.store import Weights

SORTED = tuple(f"n{c:08d}" for c in range(1000))
SWAPPED = (*SORTED[:7], SORTED[8], SORTED[7], *SORTED[9:])
MODEL = BY_NAME["maskgit-vit-l-32"].config


class Talk(SilentProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def said(names: tuple[str, ...], model=MODEL) -> str:
    talk = Talk()
    say_class_order(names, model, talk.say)
    return "".join(talk.said)


def test_the_first_class_that_differs_is_named():
    assert "class 7 is n00000008, that of the released maskgit-vit-l-32 is n00000007" in said(SWAPPED)


@pytest.mark.parametrize("names", [SORTED, (), SWAPPED[:500], tuple(f"class {c}" for c in range(1000))])
def test_no_warning_without_a_known_difference(names):
    assert said(names) == ""


def test_no_warning_for_other_generators():
    assert said(SWAPPED, MODEL.model_copy(update={"width": 512})) == ""


@pytest.mark.parametrize(("names", "warned"), [(SWAPPED, True), (SORTED, False)])
def test_training_a_published_recipe_warns(tmp_path: Path, names, warned):
    path = write_cache(tmp_path / "t.h5", 2100, codes=4096, tokens=32, classes=1000, class_names=names)
    talk = Talk()
    resolve_recipe(TokenCache.open(path), path, "maskgit-vit-l-32", ("image_size=64",), talk)
    assert any("maskgit-vit-l-32" in line and "warning" in line for line in talk.said) == warned


def test_sampling_such_a_generator_warns():
    inputs = json.dumps({"class_names": SWAPPED})
    talk = Talk()
    settings_for(Given("g", Path("g"), Weights("generator", MODEL, {}, {"inputs": inputs})), {}, talk.say)
    assert any("class 7 is n00000008" in line for line in talk.said)
