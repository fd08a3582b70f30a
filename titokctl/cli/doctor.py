"""`titokctl doctor`."""

from dataclasses import asdict
from typing import Annotated

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform


@app.command(epilog="Example: titokctl doctor")
def doctor(
    quick: Annotated[bool, option("--quick", "Skip the two seconds of measuring.")] = False,
    runs_dir: options.RunsDir = None,
    as_json: options.Json = False,
) -> None:
    """Check this machine: packages, hardware, storage, weights, and how long ImageNet would take.

    Exits with 1 if titokctl can't work here.
    """
    from titokctl.jobs.machine.doctor import Doctor

    found = perform(Doctor(quick), Surroundings(quiet=True, runs_dir=runs_dir))
    if as_json:
        console.emit_json(asdict(found) | {"num_problems": found.num_problems})
    else:
        console.pairs("", {finding.name: finding.found for finding in found.findings})
        for finding in found.findings:
            if finding.advice:
                mark = "problem" if finding.is_problem else "note"
                console.paragraph(f"{mark}: {finding.name}: {finding.advice}")
    if found.num_problems:
        raise typer.Exit(1)
