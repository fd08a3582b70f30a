"""What may stand in the recipe of a generator; those of tokenizers are `tokenizer_recipe`.

One YAML file = one run. Reading, overriding and naming recipes is `recipe_files`.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from titokctl.config.base import Config, Fraction, NonNegativeFloat, PositiveInt
from titokctl.config.models import GeneratorConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.config.tokenizer_recipe import Initialization
from titokctl.config.training import OptimizerConfig, ScheduleConfig, TrainingConfig

MaskScheduleName = Literal["arccos", "cosine", "linear", "root"]


class MaskedLossConfig(Config):
    """The generator's loss: cross-entropy with label smoothing; known tokens weigh `unmasked_weight`."""

    label_smoothing: Fraction = 0.1
    unmasked_weight: NonNegativeFloat = 0.1
    mask_schedule: MaskScheduleName = "arccos"
    label_dropout: Fraction = 0.1


class GeneratorRecipe(Config):
    """A run of train-gen. `views` names the datasets rows are drawn from; "plain" is /tokens.

    `val_fraction` of the rows, chosen by a hash of their key, is never trained on. `image_size` is what the tokens
    stand for, in pixels (null: any): caches of another size are refused, and recipes found by it.
    """

    kind: Literal["generator"]
    image_size: PositiveInt | None = None
    model: GeneratorConfig
    initialization: Initialization = "published"
    loss: MaskedLossConfig = MaskedLossConfig()
    views: Annotated[tuple[str, ...], Field(min_length=1)] = ("plain",)
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig
    sampling: SamplingConfig = SamplingConfig()

    @model_validator(mode="after")
    def _views_differ(self) -> "GeneratorRecipe":
        if len(set(self.views)) != len(self.views):
            raise ValueError(f"views repeat: {', '.join(self.views)}")
        return self
