"""`titokctl doctor`."""

from dataclasses import asdict
from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option


@app.command(epilog="Example: titokctl doctor")
def doctor(
    quick: Annotated[bool, option("--quick", "Leave out the two seconds of measuring.")] = False,
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,
) -> None:
    """Look at this machine: what is there, what is missing, what to do about it, and how long ImageNet would take.

    Exits with 1 when something keeps titokctl from working here.
    """
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.machine.doctor import default_folder, examine

    found = examine(default_folder(runs_root(runs_dir)), measured=not quick)
    if as_json:
        console.emit_json(asdict(found) | {"num_problems": found.num_problems})
    else:
        console.pairs("", {finding.name: finding.found for finding in found.findings})
        for finding in found.findings:
            if finding.advice:
                mark = "problem" if finding.is_problem else "note"
                console.wrapped(f"{mark}: {finding.name}: {finding.advice}")
    if found.num_problems:
        raise typer.Exit(1)
