"""Options that several commands share, so that one name means one thing everywhere, in groups for --help."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import completion

MACHINE, OUTPUT = "Where it runs", "Output"

RunsDir = Annotated[
    Path | None,
    typer.Option(
        "--runs-dir",
        metavar="DIR",
        help="Where runs live (default: runs).",
        envvar="TITOKCTL_RUNS",
        show_default=False,
        rich_help_panel=OUTPUT,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only errors and warnings on stderr.", rich_help_panel=OUTPUT)
]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.", rich_help_panel=OUTPUT)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.", rich_help_panel=OUTPUT)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the recipe; repeatable.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all randomness.")]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="RUN|FILE|NAME",
        help="By default the newest trained one, else titok-l-32.",
        autocompletion=completion.tokenizers,
    ),
]
MadeWith = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        metavar="RUN|FILE|NAME",
        help="What made the ids; by default found by its hash.",
        autocompletion=completion.tokenizers,
    ),
]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu or cuda; the best there is by default.", rich_help_panel=MACHINE),
]
Gpus = Annotated[
    str | None,
    typer.Option("--gpus", metavar="N|all", help="One process per GPU, this many.", rich_help_panel=MACHINE),
]
Procs = Annotated[int | None, typer.Option("--procs", help="This many processes on the CPU.", rich_help_panel=MACHINE)]
NumNodes = Annotated[
    int,
    typer.Option("--nodes", help="Machines on which this same command is started.", rich_help_panel=MACHINE),
]
NodeRank = Annotated[
    int | None, typer.Option("--node-rank", help="Which of them this is, from 0.", rich_help_panel=MACHINE)
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--rdzv-endpoint",
        metavar="HOST:PORT",
        help="Where the machines meet: on the first.",
        rich_help_panel=MACHINE,
    ),
]
