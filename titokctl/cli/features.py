"""Options of the commands that compare images by the features of a network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from titokctl.cli.options import option, tokenizer
from titokctl.errors import UsageError

if TYPE_CHECKING:
    from titokctl.config.preprocessing import PreprocessingConfig
    from titokctl.evaluation.extractors import FeatureNetwork

Features = Annotated[
    str, option("--features", "lite0 works offline, and is never called FID.", metavar="inception|lite0|lite2")
]
InceptionWeights = Annotated[
    Path | None,
    option("--inception-weights", "By default what TITOKCTL_INCEPTION names, else torch hub's, else fetched.", "FILE"),
]
Tokenizer = Annotated[str | None, tokenizer("For a token cache; by default the one it records.")]
SkipBad = Annotated[bool, option("--skip-bad", "Judge the readable images of a set that has others.")]
SaveFeatures = Annotated[bool, option("--save-features", "Keep the features beside the samples, to be used again.")]
Exif = Annotated[bool, option("--exif", "Rotate image files as their EXIF tag says.")]
Resize = Annotated[
    Literal["tf1", "pytorch", "clean"],
    option("--resize", "Of Inception: ADM's, pytorch-fid's or clean-fid's. FID means tf1.", "tf1|pytorch|clean"),
]
Fast = Annotated[bool, option("--fast", "The feature network in bf16; recorded.")]
Tf32 = Annotated[bool, option("--tf32", "The feature network in TF32, on a GPU; recorded.")]


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
