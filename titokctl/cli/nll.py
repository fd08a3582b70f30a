"""`titokctl nll`."""

from dataclasses import replace
from typing import Annotated

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Machine, Surroundings, perform

_CLASSES_SHOWN = 30


@app.command(epilog="Example: titokctl nll heldout.h5")
def nll(
    cache: options.Tokens,
    generator: Annotated[
        str | None,
        options.generator("Default: the newest one that was trained on such ids."),
    ] = None,
    passes: Annotated[
        int, option("--passes", "Forward passes per image for the masked bound; exact kinds take one.")
    ] = 16,
    device: options.Device = None,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Score cached ids under a generator: bits an id, an image and a class.

    The numbers of an autoregressive generator are exact; those of a MaskGIT are an upper bound, and named so.
    """
    from titokctl.jobs.evaluate.nll import Nll

    found = perform(
        Nll(cache, generator, passes), Surroundings(quiet, runs_dir=runs_dir, machine=Machine(device, None, None))
    )
    if as_json:
        console.emit_json(found)
        return
    console.result(replace(found, by_class={}), False, "negative log-likelihood")
    if found.by_class:
        shown = list(found.by_class.items())[:_CLASSES_SHOWN]
        rows = [(name, int(n["images"] or 0), *(v for k, v in n.items() if "per_id" in k)) for name, n in shown]
        columns = ["class", *(name.replace("_", " ") for name in shown[0][1] if name == "images" or "per_id" in name)]
        more = len(found.by_class) - len(shown)
        console.table("by class", columns, rows, f"and {more:,} more in --json" if more else "")
