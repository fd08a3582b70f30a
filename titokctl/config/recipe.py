"""The fields of a generator's recipe; those of tokenizers are in `tokenizer_recipe`.

One YAML file is one run. `recipe_files` finds, reads and overrides recipes.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from titokctl.config.base import Config, Fraction, NonNegativeFloat, PositiveFloat, PositiveInt
from titokctl.config.models import (
    AUTOREGRESSIVE,
    FLOW,
    MASKGIT,
    AutoregressiveConfig,
    FlowConfig,
    GeneratorConfig,
    GeneratorSizes,
)
from titokctl.config.registry import find
from titokctl.config.sampling import AutoregressiveSampling, FlowSampling, GuidanceConfig, SamplingConfig
from titokctl.config.tokenizer_recipe import Initialization
from titokctl.config.training import OptimizerConfig, ScheduleConfig, TrainingConfig
from titokctl.errors import UserError

KIND_ENTRY_POINTS = "titokctl.generator_kinds"
MaskScheduleName = Literal["arccos", "cosine", "linear", "root"]


class MaskedLossConfig(Config):
    """The loss of MaskGIT: cross-entropy with label smoothing; ids that are not masked weigh `unmasked_weight`."""

    label_smoothing: Fraction = 0.1
    unmasked_weight: NonNegativeFloat = 0.1
    mask_schedule: MaskScheduleName = "arccos"
    label_dropout: Fraction = 0.1


class GeneratorRecipe(Config):
    """A run of train-gen. Each kind of generator has a subclass with its own `model`, `loss` and `sampling`.

    `views` names the datasets that rows are drawn from; "plain" is /tokens. `val_fraction` of the rows, chosen by a
    hash of their key, is held out. `image_size` is the edge in pixels of the images that the tokens encode (null: any):
    caches of another size are refused, and recipes are found by it.
    """

    kind: Literal["generator"]
    image_size: PositiveInt | None = None
    model: GeneratorSizes
    initialization: Initialization = "published"
    loss: Config = Config()
    views: Annotated[tuple[str, ...], Field(min_length=1)] = ("plain",)
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    sampling: GuidanceConfig = GuidanceConfig()

    @model_validator(mode="after")
    def _views_differ(self) -> "GeneratorRecipe":
        if len(set(self.views)) != len(self.views):
            raise ValueError(f"views repeat: {', '.join(self.views)}")
        return self


class MaskGitRecipe(GeneratorRecipe):
    """A run of train-gen that trains a MaskGIT."""

    model: GeneratorConfig
    loss: MaskedLossConfig = MaskedLossConfig()
    sampling: SamplingConfig = SamplingConfig()


class AutoregressiveLossConfig(Config):
    """The loss of an autoregressive generator: the cross-entropy of all ids, in an order drawn for each image.

    Until `random_until` every order is a random permutation; from there to `annealed_until` the share of random orders
    falls linearly to 0, and the rest are the order of the cache (arXiv 2411.00776). Both are shares of the run's steps
    up to 1, and numbers of steps above 1; 0 and 0 is the fixed order from the start.
    """

    label_smoothing: Fraction = 0.0
    label_dropout: Fraction = 0.1
    random_until: NonNegativeFloat = 0.5
    annealed_until: NonNegativeFloat = 0.75


class AutoregressiveRecipe(GeneratorRecipe):
    """A run of train-gen that trains an autoregressive generator."""

    model: AutoregressiveConfig
    loss: AutoregressiveLossConfig = AutoregressiveLossConfig()
    sampling: AutoregressiveSampling = AutoregressiveSampling()

    @model_validator(mode="after")
    def _orders_become_fixed(self) -> "AutoregressiveRecipe":
        steps, loss = self.training.steps, self.loss
        full, none = (steps_of(span, steps) for span in (loss.random_until, loss.annealed_until))
        if none < full:
            raise ValueError(
                f"loss.annealed_until {loss.annealed_until:g} (step {none:g}) is before loss.random_until "
                f"{loss.random_until:g} (step {full:g})"
            )
        if none > steps:
            raise ValueError(
                f"loss.annealed_until {loss.annealed_until:g} is after the last of {steps} steps: images are drawn in "
                "the order of the cache, which training must end with"
            )
        return self


def steps_of(span: float, total: int) -> float:
    """Return a span of training as a number of steps; up to 1 it is a share of all steps."""
    return span * total if span <= 1 else span


class FlowLossConfig(Config):
    """The loss of a flow: the squared error of velocities at a time that is the sigmoid of a normal number.

    `time_mean` and `time_deviation` are those of the normal number (arXiv 2403.03206, section 3.1).
    """

    label_dropout: Fraction = 0.1
    time_mean: float = 0.0
    time_deviation: PositiveFloat = 1.0


class FlowRecipe(GeneratorRecipe):
    """A run of train-gen that trains a flow."""

    model: FlowConfig
    loss: FlowLossConfig = FlowLossConfig()
    sampling: FlowSampling = FlowSampling()


_RECIPES: dict[str, type[GeneratorRecipe]] = {
    MASKGIT: MaskGitRecipe,
    AUTOREGRESSIVE: AutoregressiveRecipe,
    FLOW: FlowRecipe,
}


def recipe_model(model: Any, error: type[UserError] = UserError) -> type[GeneratorRecipe]:
    """Return the class of recipes for the kind of generator that `model`, an unchecked configuration, names.

    Raises UserError, or the given kind of it, when no installed package has that kind.
    """
    kind = str(model.get("kind", MASKGIT)) if isinstance(model, Mapping) else MASKGIT
    if kind in _RECIPES:
        return _RECIPES[kind]
    found: type[GeneratorRecipe] = find("generator kind", kind, _RECIPES, KIND_ENTRY_POINTS, error).recipe
    return found


def model_config(model: Any) -> type[GeneratorSizes]:
    """Return the class of configurations for the kind that `model` names. Raises as `recipe_model`."""
    annotation: Any = recipe_model(model).model_fields["model"].annotation
    return annotation
