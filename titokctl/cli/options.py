"""Options that several commands share, in panels for --help."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from titokctl.cli import completion
from titokctl.errors import UsageError

if TYPE_CHECKING:
    from titokctl.data.sources.choices import Choices

MACHINE, OUTPUT = "Where it runs", "Output"
_CROPS = ("center", "adm")


def option(
    names: str,
    help: str,
    metavar: str | None = None,
    panel: str | None = None,
    completes: Callable[..., list[str]] | None = None,
    **more: Any,
) -> Any:
    """Make a `typer.Option`: all names in one string, and shorter names for its panel and completions."""
    return typer.Option(
        *names.split(), help=help, metavar=metavar, rich_help_panel=panel, autocompletion=completes, **more
    )


def _known_crop(crop: str) -> str:
    if crop not in _CROPS:
        raise UsageError(f"unknown crop {crop!r}", f"one of: {', '.join(_CROPS)}")
    return crop


def address(given: Path | None) -> Path | None:
    """Return a path that was given; an address in an object store keeps its two slashes."""
    if given is None:
        return None
    from titokctl.formats.object_store import path_of

    return path_of(given)


_output, _machine = partial(option, panel=OUTPUT), partial(option, panel=MACHINE)
crop = partial(option, "--crop", metavar="|".join(_CROPS), callback=_known_crop)
tokenizer = partial(option, "--tokenizer", metavar="RUN|FILE|NAME", completes=completion.tokenizers)
generator = partial(option, "--generator", metavar="RUN|FILE|NAME", completes=completion.generators)

Tokens = Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache.", callback=address)]
View = Annotated[str, option("--view", "plain, or another view such as flip.")]
Compress = Annotated[bool, option("--compress", "Deflate the rows: smaller, but not memory-mapped.")]
Tokenizer = Annotated[str | None, tokenizer("The tokenizer; default: the newest trained one, or titok-l-32.")]
MadeWith = Annotated[str | None, tokenizer("The tokenizer that made the ids; default: found by its hash.")]
Overrides = Annotated[list[str] | None, option("--set", "Override a field of the recipe; repeatable.", "FIELD=VALUE")]
RunName = Annotated[str | None, option("--name", "Name of the run's folder.")]
Measure = Annotated[bool, option("--measure", "Like --dry-run, and train 20 steps to estimate the time.")]
Profile = Annotated[bool, option("--profile", "Write trace.json, a profile of a few steps, into the run.")]
Seed = Annotated[int, option("--seed", "Seed of all randomness.")]

RunsDir = Annotated[
    Path | None,
    _output("--runs-dir", "Folder of all runs (default: runs).", "DIR", envvar="TITOKCTL_RUNS", show_default=False),
]
DryRun = Annotated[bool, _output("--dry-run", "Check everything, print the plan, write nothing.")]
Overwrite = Annotated[bool, _output("--overwrite", "Replace an existing output.")]
Quiet = Annotated[bool, _output("--quiet -q", "Print only errors and warnings on stderr.")]
Json = Annotated[bool, _output("--json", "Print the result as JSON on stdout.")]

READING = "How images are read"
_read = partial(option, panel=READING)
MaxRejected = Annotated[
    float | None,
    _read(
        "--max-rejected",
        "Largest share of images that may be unusable: by default 0.001, or ten images if under 5 %.",
        min=0,
        max=1,
    ),
]
Split = Annotated[str | None, _read("--split", "Read this sub-folder; none: train, val, ... are classes.", "NAME|none")]
Classes = Annotated[
    Path | None, _read("--classes", "Class folders in the order of their labels, one per line.", "FILE")
]
NoLabels = Annotated[bool, _read("--no-labels", "Read the images without labels.")]
Sort = Annotated[
    str | None, _read("--sort", "Order of class folders: as text, or natural (2 before 10).", "name|natural")
]
ImageKey = Annotated[str | None, _read("--image-key", "Member of shard samples that is the image: image.png.", "KEY")]
LabelKey = Annotated[str | None, _read("--label-key", "Member, or field of JSON members, with the label.", "KEY")]
ImageColumn = Annotated[str | None, _read("--image-column", "Column of parquet files with the images.", "NAME")]
LabelColumn = Annotated[
    str | None, _read("--label-column", "Column of parquet or metadata files with the labels.", "NAME")
]
Exif = Annotated[
    bool | None,
    _read(
        "--exif/--no-exif",
        "Rotate images as their EXIF tag says; recorded. Default: as the tokenizer was trained.",
        show_default=False,
    ),
]

Device = Annotated[str | None, _machine("--device", "cpu, cuda, cuda:N or mps; default: a CUDA GPU if there is one.")]
Gpus = Annotated[str | None, _machine("--gpus", "Run one process on each of N GPUs.", "N|all")]
Procs = Annotated[int | None, _machine("--procs", "Run N processes on the CPU.")]
NumNodes = Annotated[int, _machine("--nodes", "Number of machines that run this command.")]
NodeRank = Annotated[int | None, _machine("--node-rank", "Number of this machine, from 0.")]
Endpoint = Annotated[str | None, _machine("--rdzv-endpoint", "Address of the first machine.", "HOST:PORT")]

Engine = Annotated[
    Literal["torchrun", "ray"] | None,
    _machine("--engine", "torchrun for this machine or a few; ray for a Ray cluster.", "torchrun|ray"),
]
Address = Annotated[str | None, _machine("--address", "Ray cluster: auto or HOST:PORT; default: this machine.", "AUTO")]
MinWorkers = Annotated[int | None, _machine("--min-workers", "Ray workers that start at once.")]
MaxWorkers = Annotated[int | None, _machine("--max-workers", "Ray workers at most; default: one per GPU, or CPU.")]


def choices(split: str | None, classes: Path | None = None, no_labels: bool = False, **keys: str | None) -> "Choices":
    """Return the choices about a source that the options make.

    Args:
        keys: sort, image_key, image_column, label_key, label_column.

    Raises UsageError for options that exclude each other.
    """
    from titokctl.data.sources.choices import Choices

    return Choices(split, classes, not no_labels, keys.get("sort"), _key(keys, "image"), _key(keys, "label"))


def _key(keys: Mapping[str, str | None], of: str) -> str | None:
    """Return the member or the column that holds the image or the label; a source has one or the other."""
    key, column = keys.get(f"{of}_key"), keys.get(f"{of}_column")
    if key is not None and column is not None:
        raise UsageError(f"--{of}-key and --{of}-column are mutually exclusive", "shards have keys, tables columns")
    return key if key is not None else column
