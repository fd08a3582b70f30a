"""`titokctl sample`."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from titokctl.cli import completion, console
from titokctl.cli.options import (
    MACHINE,
    Device,
    Endpoint,
    Gpus,
    Json,
    NodeRank,
    NumNodes,
    Overwrite,
    Procs,
    Quiet,
    RunsDir,
)
from titokctl.errors import UsageError

# The same names as config.sampling has, which is not imported before the command runs.
GuidanceSchedule = Literal["constant", "linear", "power-cosine"]
EXAMPLE = "Example: titokctl sample --cfg 4.0 -n 50000"
_HOW, _RESULT = "How ids are drawn (by default as the generator says)", "What is written"
_SWITCH = "How ids are drawn, on or off"  # in one table its two names would take the room of the others
_SCHEDULES = "How guidance grows over the steps: constant, linear or power-cosine."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("sample", epilog=EXAMPLE)(sample)


def sample(
    generator: Annotated[
        str | None,
        typer.Option(
            "--generator",
            metavar="RUN|FILE|NAME",
            help="The newest trained one by default.",
            autocompletion=completion.generators,
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="RUN|FILE|NAME",
            help="The one the generator was trained for by default.",
            autocompletion=completion.tokenizers,
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
    cfg: Annotated[
        str | None,
        typer.Option(
            metavar="S|Ww",
            help="Guidance scale s of c + s (c - u), 0 = off. DiT's and diffusers' scale is this one plus 1: "
            "write 5.0w for theirs.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    cfg_schedule: Annotated[
        GuidanceSchedule | None,
        typer.Option("--cfg-schedule", metavar="NAME", help=_SCHEDULES, rich_help_panel=_HOW),
    ] = None,
    cfg_power: Annotated[
        float | None,
        typer.Option("--cfg-power", help="Power of the power-cosine schedule.", rich_help_panel=_HOW),
    ] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Decoding steps.", rich_help_panel=_HOW)] = None,
    choice_temperature: Annotated[
        float | None,
        typer.Option("--choice-temperature", help="Scale of the noise in the choices.", rich_help_panel=_HOW),
    ] = None,
    softmax_annealing: Annotated[
        bool | None,
        typer.Option(
            "--softmax-annealing/--no-softmax-annealing",
            metavar="",
            help="Sharpen logits step by step.",
            rich_help_panel=_SWITCH,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of all randomness; 0 by default.", rich_help_panel=_HOW)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Folder of the set; in the runs folder by default.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    image_format: Annotated[
        Literal["npz", "png", "webp", "wds", "none"] | None,
        typer.Option(
            "--format",
            help="One .npz as the ADM evaluator reads it (the default), PNG or lossless WebP files, WebDataset shards, "
            "or no images (the default with --fid); ids.h5 and grid.png are always written.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    fid: Annotated[
        Path | None,
        typer.Option(
            "--fid",
            metavar="REF",
            help="Judge the images against statistics or images while they are drawn.",
            rich_help_panel=_RESULT,
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option("--features", metavar="inception|lite0", help="Network of --fid.", rich_help_panel=_RESULT),
    ] = "inception",
    inception_weights: Annotated[
        Path | None,
        typer.Option("--inception-weights", metavar="FILE", help="For --fid.", rich_help_panel=_RESULT),
    ] = None,
    overwrite: Overwrite = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", help="Images decoded at once; does not change which are drawn.", rich_help_panel=MACHINE
        ),
    ] = None,
    precision: Annotated[
        Literal["float32", "bf16"] | None,
        typer.Option("--precision", help="The fastest of the device by default; recorded.", rich_help_panel=MACHINE),
    ] = None,
    device: Device = None,
    gpus: Gpus = None,
    procs: Procs = None,
    nodes: NumNodes = 1,
    node_rank: NodeRank = None,
    rdzv_endpoint: Endpoint = None,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Draw images with a trained generator.

    Settings that are not given are the generator's own. Run the same command again to go on with a stopped set.
    """
    if fid is None and (features != "inception" or inception_weights is not None):
        raise UsageError("--features and --inception-weights belong to --fid", "add --fid REF")
    from titokctl.config.guidance_scale import doubt, parse_scale

    given: dict[str, Any] = {
        "guidance_scale": None if cfg is None else parse_scale(cfg),
        "guidance_schedule": cfg_schedule,
        "guidance_power": cfg_power,
        "num_steps": steps,
        "choice_temperature": choice_temperature,
        "softmax_annealing": softmax_annealing,
        "seed": seed,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    from titokctl.distributed.group import process_group
    from titokctl.distributed.launch import Nodes, relaunch
    from titokctl.distributed.place import place
    from titokctl.distributed.stop import StopRequest
    from titokctl.evaluation.extractors import ExtractorOptions
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.sample import check_request
    from titokctl.jobs.sample import sample as job
    from titokctl.jobs.sample_fid import FidRequest
    from titokctl.models.device import device_named, gpus_to_use
    from titokctl.sampling.plan import parse_classes

    chosen = parse_classes(classes)
    device = device_named(device, "cpu" if procs is not None else None)
    if place().is_main:
        check_request(num_images, per_class, batch_size, precision, changes, output, overwrite)
    if gpus is None and procs is None:
        gpus = gpus_to_use(device)
    if relaunch(gpus, procs, Nodes(nodes, node_rank, rdzv_endpoint)):
        return
    with StopRequest() as stop, process_group(device) as group:
        progress = console.progress(quiet or not group.is_main)
        if cfg is not None and doubt(cfg):
            progress.say(doubt(cfg))
        options = ExtractorOptions(device, inception_weights)
        result = job(
            runs_root(runs_dir),
            generator=generator,
            tokenizer=tokenizer,
            num_images=num_images,
            per_class=per_class,
            classes=chosen,
            changes=changes,
            output=output,
            image_format=image_format,
            batch_size=batch_size,
            precision_name=precision,
            fid=None if fid is None else FidRequest(fid, features, options),
            overwrite=overwrite,
            device=device,
            group=group,
            progress=progress,
            stop=stop,
        )
    if place().is_main:
        console.result(result, as_json, "samples")
