"""`titokctl convert`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from titokctl.cli import completion, console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Surroundings, perform


@app.command(epilog="Example: titokctl convert tokenizer_titok_l32_imagenet/ -o l32.safetensors")
def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A Hub-style folder, .safetensors, old .bin, run folder, or known name (`weights ls`).",
            autocompletion=completion.models,
        ),
    ],
    output: Annotated[Path, option("--output -o", "A .safetensors file; a folder with --to official.", "DST")],
    model: Annotated[
        str | None,
        option("--model", "The model's known name, where its files don't say it.", "NAME", completes=completion.models),
    ] = None,
    to: Annotated[
        Literal["titokctl", "official"],
        option("--to", "titokctl: our weights file; official: a folder for the official from_pretrained."),
    ] = "titokctl",
    dtype: Annotated[
        Literal["keep", "bf16"], option("--dtype", "keep: the values as they are; bf16: rounded, half the size.")
    ] = "keep",
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Convert official weights to a titokctl file, or back. Values change only with --dtype."""
    from titokctl.jobs.caches.convert import Convert

    done = perform(Convert(source, output, model, to, overwrite, dtype), Surroundings(quiet, as_json, dry_run))
    if not done.has_pixels and not quiet:
        console.say("note: trained in stage 1 only: it decodes to proxy codes, not to pixels")
    if as_json:
        console.emit_json(done)
    else:
        name = done.model or f"a {done.kind}"
        print(f"{done.destination}: {name}, {done.num_parameters / 1e6:.1f}M parameters, {done.layout} layout")
