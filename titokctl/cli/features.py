"""Options of the commands that compare images by the features of a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from titokctl.cli.options import option, tokenizer
from titokctl.errors import UsageError

if TYPE_CHECKING:
    from titokctl.config.preprocessing import PreprocessingConfig
    from titokctl.evaluation.extractors import FeatureNetwork

Features = Annotated[
    str,
    option(
        "--features",
        "Feature network; lite0 works offline, and its distance is not FID.",
        metavar="inception|lite0|lite2",
    ),
]
InceptionWeights = Annotated[
    Path | None,
    option(
        "--inception-weights",
        "Weights of Inception; default: those in TITOKCTL_INCEPTION or torch hub's cache, or a download.",
        "FILE",
    ),
]
Tokenizer = Annotated[str | None, tokenizer("Decoder of a token cache; default: the tokenizer it records.")]
SkipBad = Annotated[bool, option("--skip-bad", "Leave out images that can't be read.")]
SaveFeatures = Annotated[bool, option("--save-features", "Save the features beside the samples for later runs.")]
Exif = Annotated[bool, option("--exif", "Rotate image files as their EXIF tag says.")]
Resize = Annotated[
    Literal["tf1", "pytorch", "clean"],
    option(
        "--resize",
        "Resize for Inception as ADM (tf1), pytorch-fid or clean-fid do; FID means tf1.",
        "tf1|pytorch|clean",
    ),
]
Fast = Annotated[bool, option("--fast", "Run the feature network in bf16; recorded.")]
Tf32 = Annotated[bool, option("--tf32", "Run the feature network in TF32 on a GPU; recorded.")]


def network(
    name: str,
    weights: Path | None,
    fast: bool = False,
    resize: Literal["tf1", "pytorch", "clean"] = "tf1",
    tf32: bool = False,
) -> "FeatureNetwork":
    """Return the feature network that the options name. Raises UsageError for a resize that it doesn't have."""
    from titokctl.evaluation.extractors import INCEPTIONS, FeatureNetwork

    if resize != "tf1" and name not in ("inception", INCEPTIONS[resize]):
        raise UsageError(f"--resize {resize} is for Inception, not for {name}", "leave out --resize or --features")
    return FeatureNetwork(name if resize == "tf1" else INCEPTIONS[resize], weights, fast, tf32)


def preprocessing(size: int | None, crop: str, exif: bool = False) -> "PreprocessingConfig | None":
    """Return how --size, --crop and --exif make squares of image files; None without --size."""
    if size is None:
        return None
    from titokctl.config.preprocessing import PreprocessingConfig

    return PreprocessingConfig.model_validate({"size": size, "crop": crop, "exif": exif})
