"""Options and surroundings of the commands that look at images through a feature network."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from titokctl.cli import completion, console
from titokctl.errors import UsageError

if TYPE_CHECKING:
    from titokctl.distributed.group import Group
    from titokctl.distributed.stop import StopRequest
    from titokctl.evaluation.extractors import ExtractorOptions
    from titokctl.progress import Progress

    Work = tuple[Progress, StopRequest, Group]

Features = Annotated[
    str, typer.Option("--features", metavar="inception|lite0", help="lite0 works offline, and is never called FID.")
]
InceptionWeights = Annotated[
    Path | None,
    typer.Option(
        "--inception-weights",
        metavar="FILE",
        help="By default what TITOKCTL_INCEPTION names, else torch hub's, else fetched.",
    ),
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="RUN|FILE|NAME",
        help="For a token cache; by default the one it records.",
        autocompletion=completion.tokenizers,
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Judge the readable images of a set that has others.")]
SaveFeatures = Annotated[
    bool, typer.Option("--save-features", help="Keep the features beside the samples, to be used again.")
]
Fast = Annotated[bool, typer.Option("--fast", help="The feature network in bf16; recorded.")]


@contextmanager
def working(gpus: str | None, procs: int | None, quiet: bool) -> "Iterator[Work | None]":
    """What a job needs to work; None when other processes have done the work."""
    from titokctl.distributed import launch

    if launch.relaunch(gpus, procs):
        yield None
        return
    from titokctl.distributed.group import process_group
    from titokctl.distributed.stop import StopRequest
    from titokctl.models.device import best_device

    with StopRequest() as stop, process_group("cpu" if procs else best_device()) as group:
        yield console.progress(quiet or not group.is_main), stop, group


def extractor_options(
    features: str, weights: Path | None, fast: bool, device: str | None, procs: int | None = None
) -> "ExtractorOptions":
    """What the options say about the feature network."""
    if weights is not None and features != "inception":
        raise UsageError(f"--inception-weights was given with --features {features}", "leave one of them out")
    from titokctl.evaluation.extractors import ExtractorOptions
    from titokctl.models.device import device_named

    device = device_named(device, "cpu" if procs else None)
    return ExtractorOptions(device, weights, "bf16" if fast else "float32")
