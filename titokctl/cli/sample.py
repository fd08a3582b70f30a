"""`titokctl sample`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from titokctl.cli import console
from titokctl.cli.options import Json, Overwrite, Quiet, RunsDir

# The same names as config.sampling has, which is not imported before the command runs.
GuidanceSchedule = Literal["constant", "linear", "power-cosine"]
EXAMPLE = "Example: titokctl sample --cfg 4.0 -n 50000"
_OWN = "The generator's own by default."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sample", epilog=EXAMPLE)(sample)


def sample(
    generator: Annotated[
        str | None,
        typer.Option("--generator", metavar="RUN|FILE|NAME", help="The newest trained one by default."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", metavar="RUN|FILE|NAME", help="The one the generator was trained for by default."),
    ] = None,
    cfg: Annotated[
        str | None,
        typer.Option(
            metavar="S|Ww",
            help="Guidance scale s of c + s (c - u), 0 = off. DiT's and diffusers' scale is this one plus 1: "
            f"write 5.0w for theirs. {_OWN}",
        ),
    ] = None,
    num_images: Annotated[
        int | None, typer.Option("-n", "--num-images", help="How many images; 64 by default.")
    ] = None,
    per_class: Annotated[
        int | None, typer.Option("--per-class", help="How many images a class, instead of -n.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option("--classes", metavar="207,360|all", help="Class numbers; image i gets the i-th in turn."),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help=f"Decoding steps. {_OWN}")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of all randomness; 0 by default.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder of the set; in the runs folder by default."),
    ] = None,
    image_format: Annotated[
        Literal["npz", "png"], typer.Option("--format", help="One .npz as the ADM evaluator reads it, or PNG files.")
    ] = "npz",
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Images decoded at once; does not change which are drawn.")
    ] = None,
    cfg_schedule: Annotated[
        GuidanceSchedule | None, typer.Option("--cfg-schedule", help=f"How guidance grows over the steps. {_OWN}")
    ] = None,
    cfg_power: Annotated[
        float | None, typer.Option("--cfg-power", help=f"Power of the power-cosine schedule. {_OWN}")
    ] = None,
    choice_temperature: Annotated[
        float | None, typer.Option("--choice-temperature", help=f"Scale of the noise in the choices. {_OWN}")
    ] = None,
    softmax_annealing: Annotated[
        bool | None,
        typer.Option("--softmax-annealing/--no-softmax-annealing", help=f"Sharpen logits step by step. {_OWN}"),
    ] = None,
    device: Annotated[str | None, typer.Option("--device", help="cpu or cuda; the best there is by default.")] = None,
    overwrite: Overwrite = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draw images with a trained generator.

    Settings that are not given are the generator's own. Run the same command again to go on with a stopped set.
    """
    from titokctl.config.guidance_scale import doubt, parse_scale

    changes: dict[str, Any] = {
        "guidance_scale": None if cfg is None else parse_scale(cfg),
        "guidance_schedule": cfg_schedule,
        "guidance_power": cfg_power,
        "num_steps": steps,
        "choice_temperature": choice_temperature,
        "softmax_annealing": softmax_annealing,
        "seed": seed,
    }
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.sample import sample as job
    from titokctl.models.device import best_device
    from titokctl.sampling.plan import parse_classes

    progress = console.progress(quiet)
    if cfg is not None and doubt(cfg):
        progress.say(doubt(cfg))
    with StopRequest() as stop:
        result = job(
            runs_root(runs_dir),
            generator=generator,
            tokenizer=tokenizer,
            num_images=num_images,
            per_class=per_class,
            classes=parse_classes(classes),
            changes={name: value for name, value in changes.items() if value is not None},
            output=output,
            image_format=image_format,
            batch_size=batch_size,
            overwrite=overwrite,
            device=device or best_device(),
            progress=progress,
            stop=stop,
        )
    console.result(result, as_json, "samples")
