"""`titokctl weights`."""

import typer

from titokctl.cli import console
from titokctl.cli.app import app
from titokctl.cli.options import Json
from titokctl.cli.work import Surroundings, perform

_NOTE = (
    "rFID and gFID are quoted from the papers and the official repository, not measured here. K: tokens per image.\n"
    "Missing models are downloaded on first use if the hub extra is installed; see also docs/results.md."
)


group = typer.Typer(no_args_is_help=True, help="List the released models.")
# Without a callback Typer would make a group of one command into that command.
group.callback()(lambda: None)
app.add_typer(group, name="weights")


@group.command(epilog="Example: titokctl weights ls")
def ls(as_json: Json = False) -> None:
    """List the released models with their published numbers, and where they are on this machine."""
    from titokctl.jobs.machine.models import ListModels

    found = perform(ListModels(), Surroundings(quiet=True))
    if as_json:
        console.emit_json(found)
        return
    table = [
        (m.name, f"{m.parameters_millions:.1f}M", m.num_latent_tokens or "-", _number(m.rfid_quoted),
         _number(m.gfid_quoted), m.path or "not on this machine")
        for m in found.models
    ]  # fmt: skip
    console.table("", ("name", "parameters", "K", "rFID", "gFID", "path"), table, _NOTE)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
