"""Options that several commands share, so that one name means one thing everywhere."""

from pathlib import Path
from typing import Annotated

import typer

RunsDir = Annotated[
    Path | None,
    typer.Option("--runs-dir", help="Where runs live (default: runs).", envvar="TITOKCTL_RUNS", show_default=False),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors on stderr.")]
Json = Annotated[bool, typer.Option("--json", help="The result as JSON on stdout.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Override a field of the recipe; repeatable.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of all randomness.")]
Gpus = Annotated[str | None, typer.Option("--gpus", metavar="N|all", help="One process per GPU, this many.")]
Procs = Annotated[int | None, typer.Option("--procs", help="This many processes on the CPU.")]
NumNodes = Annotated[int, typer.Option("--nodes", help="Machines on which this same command is started.")]
NodeRank = Annotated[int | None, typer.Option("--node-rank", help="Which of them this is, from 0.")]
Endpoint = Annotated[
    str | None, typer.Option("--rdzv-endpoint", metavar="HOST:PORT", help="Where the machines meet: on the first.")
]
