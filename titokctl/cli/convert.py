"""`titokctl convert`: official weights to ours and back."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import completion, console
from titokctl.cli.options import Json, Overwrite, Quiet
from titokctl.distributed.stop import StopRequest


class _To(StrEnum):
    titokctl = "titokctl"
    official = "official"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("convert", epilog="Example: titokctl convert tokenizer_titok_l32_imagenet/ -o l32.safetensors")(convert)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A Hub-style folder, .safetensors, old .bin, run folder, or known name (`weights ls`).",
            autocompletion=completion.models,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DST", help="A .safetensors file; a folder with --to official.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Which model it is, where the files don't tell.",
            autocompletion=completion.models,
        ),
    ] = None,
    to: Annotated[
        _To, typer.Option("--to", help="titokctl: our weights file; official: a folder for their from_pretrained.")
    ] = _To.titokctl,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Turn official weights into a file of ours, or back. Numbers stay as they are."""
    from titokctl.jobs import convert as job

    layout: job.Layout = "official" if to is _To.official else "titokctl"
    with StopRequest() as stop:
        done = job.convert(source, output, model, layout, overwrite, console.progress(quiet), stop)
    if not done.has_pixels and not quiet:
        console.say("note: trained in stage 1 only; it decodes to proxy codes, not to pixels")
    if as_json:
        console.emit_json(asdict(done))
    else:
        name = done.model or f"a {done.kind}"
        print(f"{done.destination}: {name}, {done.num_parameters / 1e6:.1f}M parameters, {done.layout} layout")
