"""Recipes: one YAML file = one run. The models of their contents.

Reading, overriding and naming recipes is `recipe_files`; this file says only what may stand in one.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from titokctl.config.base import Config, Fraction, NonNegativeFloat, NonNegativeInt, PositiveInt
from titokctl.config.models import GeneratorConfig, TokenizerConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.config.training import OptimizerConfig, ScheduleConfig, TrainingConfig

MaskScheduleName = Literal["arccos", "cosine", "linear", "root"]
Initialization = Literal["published", "fan-in"]  # fan-in: for widths far below 512


class AugmentationConfig(Config):
    """What training does to an image after the shorter edge was brought to the model's size."""

    crop: Literal["center", "random"] = "random"
    flip: bool = True


class SingleStageLossConfig(Config):
    """Weights of the single-stage losses (TA-TiTok style): pixels, a perceptual network, the quantizer's own or KL.

    `perceptual` "lite0" compares maps of EfficientNet-Lite0 (the demo extra brings it), from `perceptual_start` on.
    """

    reconstruction: Literal["l2", "l1"] = "l2"
    reconstruction_weight: NonNegativeFloat = 1.0
    perceptual: Literal["none", "lite0"] = "none"
    perceptual_weight: NonNegativeFloat = 0.1
    perceptual_start: NonNegativeInt = 0
    quantizer_weight: NonNegativeFloat = 1.0
    kl_weight: NonNegativeFloat = 1e-6


class CodebookConfig(Config):
    """How the codebook is kept in use. `reseed_decay` null switches re-seeding off (CVQ-VAE, arXiv 2307.15139).

    `continuous_steps` trains that many first steps without quantizing, after which k-means over recent latents gives
    the first codes; 0 quantizes from the start.
    """

    reseed_decay: Fraction | None = 0.99
    continuous_steps: NonNegativeInt = 0


class TokenizerRecipe(Config):
    """A run of train-tokenizer.

    After `encoder_steps` steps the encoder, the latent tokens and the codes stay as they are (at their averages), and
    only the decoder goes on, as in the second stage of the published recipes; null trains all of it to the end.
    """

    kind: Literal["tokenizer"]
    stage: Literal["single"]
    model: TokenizerConfig
    encoder_steps: PositiveInt | None = None
    initialization: Initialization = "published"
    loss: SingleStageLossConfig = SingleStageLossConfig()
    codebook: CodebookConfig = CodebookConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig


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


Recipe = Annotated[TokenizerRecipe | GeneratorRecipe, Field(discriminator="kind")]
