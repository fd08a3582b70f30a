"""Options that several commands share, so that one name means one thing everywhere, in groups for --help."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from titokctl.cli import completion
from titokctl.errors import UsageError

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
    """`typer.Option` on one line: all its names in one text, and the group and completions by shorter names."""
    return typer.Option(
        *names.split(), help=help, metavar=metavar, rich_help_panel=panel, autocompletion=completes, **more
    )


def _known_crop(crop: str) -> str:
    if crop not in _CROPS:
        raise UsageError(f"there is no crop named {crop!r}", f"one of: {', '.join(_CROPS)}")
    return crop


_output, _machine = partial(option, panel=OUTPUT), partial(option, panel=MACHINE)
crop = partial(option, "--crop", metavar="|".join(_CROPS), callback=_known_crop)
tokenizer = partial(option, "--tokenizer", metavar="RUN|FILE|NAME", completes=completion.tokenizers)

Tokens = Annotated[Path, typer.Argument(metavar="TOKENS", help="A token cache.")]
View = Annotated[str, option("--view", "plain, or a further view such as flip.")]
Compress = Annotated[bool, option("--compress", "Deflate the rows: smaller, but read into memory.")]
Tokenizer = Annotated[str | None, tokenizer("By default the newest trained one, else titok-l-32.")]
MadeWith = Annotated[str | None, tokenizer("What made the ids; by default found by its hash.")]
Overrides = Annotated[list[str] | None, option("--set", "Override a field of the recipe; repeatable.", "FIELD=VALUE")]
RunName = Annotated[str | None, option("--name", "Name of the run's folder.")]
Seed = Annotated[int, option("--seed", "Seed of all randomness.")]

RunsDir = Annotated[
    Path | None,
    _output("--runs-dir", "Where runs live (default: runs).", "DIR", envvar="TITOKCTL_RUNS", show_default=False),
]
DryRun = Annotated[bool, _output("--dry-run", "Say what would be written, and write nothing.")]
Overwrite = Annotated[bool, _output("--overwrite", "Replace an existing output.")]
Quiet = Annotated[bool, _output("--quiet -q", "Only errors and warnings on stderr.")]
Json = Annotated[bool, _output("--json", "The result as JSON on stdout.")]

Device = Annotated[str | None, _machine("--device", "cpu or cuda; the best there is by default.")]
Gpus = Annotated[str | None, _machine("--gpus", "One process per GPU, this many.", "N|all")]
Procs = Annotated[int | None, _machine("--procs", "This many processes on the CPU.")]
NumNodes = Annotated[int, _machine("--nodes", "Machines on which this same command is started.")]
NodeRank = Annotated[int | None, _machine("--node-rank", "Which of them this is, from 0.")]
Endpoint = Annotated[str | None, _machine("--rdzv-endpoint", "Where the machines meet: on the first.", "HOST:PORT")]
