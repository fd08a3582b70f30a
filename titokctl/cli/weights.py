"""`titokctl weights`: the released models, and where they are."""

from typing import Any

import typer

from titokctl.cli import console
from titokctl.cli.app import app
from titokctl.cli.options import Json

_NOTE = (
    "rFID and gFID are quoted from the papers and the official repository, not measured here. K: tokens an image.\n"
    "A model that is not here is fetched when it is first used (hub extra, online), or see docs/results.md."
)


group = typer.Typer(no_args_is_help=True, help="The released models: what they are and where they are.")
# Without a callback Typer would make a group of one command into that command.
group.callback()(lambda: None)
app.add_typer(group, name="weights")


@group.command(epilog="Example: titokctl weights ls")
def ls(as_json: Json = False) -> None:
    """List the released models with their published numbers, and where they are on this machine."""
    from titokctl.weights.known import BY_NAME
    from titokctl.weights.local import cache_folder, where

    rows = [_row(known, where(known)) for known in BY_NAME.values()]
    if as_json:
        console.emit_json({"cache_folder": str(cache_folder()), "models": rows})
        return
    table = [
        (r["name"], f"{r['parameters_millions']:.1f}M", r["num_latent_tokens"] or "-", _number(r["rfid_quoted"]),
         _number(r["gfid_quoted"]), r["path"] or "not here")
        for r in rows
    ]  # fmt: skip
    console.table("", ("name", "parameters", "K", "rFID", "gFID", "where"), table, _NOTE)


def _row(known: Any, path: Any) -> dict[str, Any]:
    return {
        "name": known.name,
        "kind": known.kind,
        "parameters_millions": known.parameters,
        "num_latent_tokens": known.num_latent_tokens,
        "rfid_quoted": known.rfid,
        "gfid_quoted": known.gfid,
        "gfid_sampling_steps": known.sampling_steps,
        "repository": known.repository,
        "files": list(known.files),
        "path": None if path is None else str(path),
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
