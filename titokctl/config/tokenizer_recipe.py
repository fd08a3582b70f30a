"""Recipes of tokenizers: one model for each of the four stages.

`single` trains pixels from the start. The two-stage way of the released S-128, B-64 and L-32: `vqgan` trains the proxy
tokenizer (or one is given), `proxy` a tokenizer that predicts its codes, `decoder` that tokenizer's way to pixels.

`init` names weights to start from (`weights.references` has the forms, `weights.adoption` says what is taken of them);
null starts from random values.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from titokctl.config.base import Config, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from titokctl.config.models import TokenizerConfig, VqganConfig
from titokctl.config.training import OptimizerConfig, ScheduleConfig, TrainingConfig

Initialization = Literal["published", "fan-in"]  # fan-in: for widths far below 512
MAX_CACHED_CODES = 65_535  # they are kept in 16 bits, with one number for "not known"
PerceptualName = Literal["lpips", "convnext-s", "lite0"]
LossPrecision = Literal["float32", "tf32", "bf16"]


class AugmentationConfig(Config):
    """Augmentation in training, after the shorter edge was resized to the model's image size."""

    crop: Literal["center", "random"] = "random"
    flip: bool = True


def _none_is_empty(value: Any) -> Any:
    return {} if value == "none" else value


class PixelLossConfig(Config):
    """Loss between reconstructions and their images.

    `perceptual` is none, or weights by network: `lpips` (VGG16), `convnext-s` (its logits), `lite0` (maps of
    EfficientNet-Lite0, which the demo extra brings). They join at `perceptual_start`.

    `precision` is that of these networks and of the adversary, whatever `training.precision` is: "tf32", as published,
    is TF32 on a GPU and float32 on a CPU. "bf16" changes the gradient on the picture by up to a third
    (docs/experiments.md).
    """

    reconstruction: Literal["l2", "l1"] = "l2"
    reconstruction_weight: NonNegativeFloat = 1.0
    perceptual: Annotated[dict[PerceptualName, PositiveFloat], BeforeValidator(_none_is_empty)] = Field(
        default_factory=dict
    )
    perceptual_start: NonNegativeInt = 0
    precision: LossPrecision = "tf32"


class SingleStageLossConfig(PixelLossConfig):
    """Pixels, and the bottleneck's own: codebook and commitment, or the divergence of a Gaussian one."""

    quantizer_weight: NonNegativeFloat = 1.0
    kl_weight: NonNegativeFloat = 1e-6


class VqganLossConfig(PixelLossConfig):
    """Pixels, and `quantizer_weight` x (codebook + `commitment_cost` x commitment)."""

    quantizer_weight: NonNegativeFloat = 1.0
    commitment_cost: NonNegativeFloat = 0.25


class ProxyLossConfig(Config):
    """Cross-entropy to the proxy codes, and the quantizer's own losses."""

    quantizer_weight: NonNegativeFloat = 1.0


class AdversaryConfig(Config):
    """A discriminator that learns from step `start` on, and what the other side loses by it from then on.

    Its schedule counts from `start`. `channels` is the width of its first convolution, a multiple of 32.
    """

    start: NonNegativeInt
    weight: NonNegativeFloat
    lecam_weight: NonNegativeFloat = 0.001
    lecam_decay: Fraction = 0.999
    channels: Annotated[int, Field(ge=32, multiple_of=32)] = 128
    optimizer: OptimizerConfig
    schedule: ScheduleConfig


class CodebookConfig(Config):
    """Settings that keep the codebook in use. `reseed_decay` null switches re-seeding off (CVQ-VAE, arXiv 2307.15139).

    `continuous_steps` trains that many first steps without quantizing, after which k-means over recent latents gives
    the first codes; 0 quantizes from the start.
    """

    reseed_decay: Fraction | None = 0.99
    continuous_steps: NonNegativeInt = 0


class _OfTiTok(Config):
    model: TokenizerConfig

    @property
    def image_size(self) -> int:
        """Edge of the images in pixels."""
        return self.model.image_size


class SingleRecipe(_OfTiTok):
    """Pixels from the first step (TA-TiTok, arXiv 2501.07730).

    After `encoder_steps` steps the encoder, the latent tokens and the codes stay as they are (at their averages), and
    only the decoder is trained further, as in the second stage of the published recipes; null trains all of it to the
    end.
    """

    kind: Literal["tokenizer"]
    stage: Literal["single"]
    init: str | None = None
    encoder_steps: PositiveInt | None = None
    initialization: Initialization = "published"
    loss: SingleStageLossConfig = SingleStageLossConfig()
    adversary: AdversaryConfig | None = None
    codebook: CodebookConfig = CodebookConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig


class VqganRecipe(Config):
    """A proxy tokenizer, MaskGIT-VQGAN at any size, from images of `image_size` pixels."""

    kind: Literal["tokenizer"]
    stage: Literal["vqgan"]
    init: str | None = None
    image_size: PositiveInt
    model: VqganConfig
    loss: VqganLossConfig = VqganLossConfig()
    adversary: AdversaryConfig | None = None
    codebook: CodebookConfig = CodebookConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _divides(self) -> "VqganRecipe":
        if self.image_size % self.model.downsampling:
            raise ValueError(
                f"image_size {self.image_size} is not a multiple of {self.model.downsampling} pixels a code"
            )
        return self


class ProxyRecipe(_OfTiTok):
    """Stage 1: a tokenizer that predicts the codes that a VQGAN gives the same crop.

    `proxy` is a vqgan run, a file of weights or a known name; null takes the newest vqgan run that fits.
    With `cached_crops` an image comes in that many crops in turn, epoch after epoch, and the VQGAN's encoder runs once
    for each of them: codes are kept in a file beside the run (2 bytes a code: 0.66 GB a crop for ImageNet at 256 px).
    """

    kind: Literal["tokenizer"]
    stage: Literal["proxy"]
    init: str | None = None
    proxy: str | None = None
    cached_crops: PositiveInt | None = None
    initialization: Initialization = "published"
    loss: ProxyLossConfig = ProxyLossConfig()
    codebook: CodebookConfig = CodebookConfig(reseed_decay=None)
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _predicts_codes(self) -> "ProxyRecipe":
        if self.model.head != "proxy" or self.model.pixel_decoder:
            raise ValueError("stage: proxy needs model.head: proxy and model.pixel_decoder: false")
        if not self.model.is_discrete:
            raise ValueError("stage: proxy needs a quantizer with codes, not a gaussian one")
        if self.cached_crops and self.model.proxy and self.model.proxy.codebook_size > MAX_CACHED_CODES:
            raise ValueError(f"cached_crops is for proxy tokenizers of at most {MAX_CACHED_CODES:,} codes")
        return self


class DecoderRecipe(_OfTiTok):
    """Stage 2: everything behind the codes of a stage-1 tokenizer learns to make pixels; the ids stay as they are.

    `init` is a run of stage proxy or a file of weights; null takes the newest run that fits. `proxy` is the VQGAN whose
    codebook and decoder it starts with; null takes the one that the stage-1 tokenizer learnt from.
    """

    kind: Literal["tokenizer"]
    stage: Literal["decoder"]
    init: str | None = None
    proxy: str | None = None
    loss: PixelLossConfig = PixelLossConfig()
    adversary: AdversaryConfig | None = None
    augmentation: AugmentationConfig = AugmentationConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    training: TrainingConfig

    @model_validator(mode="after")
    def _makes_pixels(self) -> "DecoderRecipe":
        if self.model.head != "proxy" or not self.model.pixel_decoder:
            raise ValueError("stage: decoder needs model.head: proxy and model.pixel_decoder: true")
        return self


TokenizerRecipe = SingleRecipe | VqganRecipe | ProxyRecipe | DecoderRecipe
STAGES: dict[str, type[TokenizerRecipe]] = {
    "single": SingleRecipe,
    "vqgan": VqganRecipe,
    "proxy": ProxyRecipe,
    "decoder": DecoderRecipe,
}
