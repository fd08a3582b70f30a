"""The fields of a generator's recipe; those of tokenizers are in `tokenizer_recipe`.

One YAML file is one run. `recipe_files` finds, reads and overrides recipes.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from titokctl.config.base import Config, Fraction, NonNegativeFloat, PositiveInt
from titokctl.config.models import MASKGIT, GeneratorConfig, GeneratorSizes
from titokctl.config.registry import find
from titokctl.config.sampling import GuidanceConfig, SamplingConfig
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


def recipe_model(model: Any, error: type[UserError] = UserError) -> type[GeneratorRecipe]:
    """Return the class of recipes for the kind of generator that `model`, an unchecked configuration, names.

    Raises UserError, or the given kind of it, when no installed package has that kind.
    """
    kind = str(model.get("kind", MASKGIT)) if isinstance(model, Mapping) else MASKGIT
    if kind == MASKGIT:
        return MaskGitRecipe
    found: type[GeneratorRecipe] = find("generator kind", kind, {MASKGIT: None}, KIND_ENTRY_POINTS, error).recipe
    return found


def model_config(model: Any) -> type[GeneratorSizes]:
    """Return the class of configurations for the kind that `model` names. Raises as `recipe_model`."""
    annotation: Any = recipe_model(model).model_fields["model"].annotation
    return annotation
