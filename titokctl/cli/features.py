"""Options of the commands that look at images through a feature network."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from titokctl.cli.options import option, tokenizer
from titokctl.errors import UsageError

if TYPE_CHECKING:
    from titokctl.evaluation.extractors import ExtractorOptions

Features = Annotated[
    str, option("--features", "lite0 works offline, and is never called FID.", metavar="inception|lite0")
]
InceptionWeights = Annotated[
    Path | None,
    option("--inception-weights", "By default what TITOKCTL_INCEPTION names, else torch hub's, else fetched.", "FILE"),
]
Tokenizer = Annotated[str | None, tokenizer("For a token cache; by default the one it records.")]
SkipBad = Annotated[bool, option("--skip-bad", "Judge the readable images of a set that has others.")]
SaveFeatures = Annotated[bool, option("--save-features", "Keep the features beside the samples, to be used again.")]
Fast = Annotated[bool, option("--fast", "The feature network in bf16; recorded.")]


def extractor_options(features: str, weights: Path | None, fast: bool, device: str) -> "ExtractorOptions":
    """What the options say about the feature network."""
    if weights is not None and features != "inception":
        raise UsageError(f"--inception-weights was given with --features {features}", "leave one of them out")
    from titokctl.evaluation.extractors import ExtractorOptions

    return ExtractorOptions(device, weights, "bf16" if fast else "float32")
