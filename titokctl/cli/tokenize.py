"""`titokctl tokenize`."""

from pathlib import Path
from typing import Annotated

import typer

from titokctl.cli import console
from titokctl.cli.options import (
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
    Tokenizer,
)
from titokctl.errors import UsageError

EXAMPLE = "Example: titokctl tokenize imagenet/ -o tokens.h5"
_CROPS = ("center", "adm")
_READ = "How images are read"
_MAX_TERMS = 4096


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=EXAMPLE)(tokenize)


def tokenize(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Images in folders, tar shards, parquet, or URLs of shards.")
    ],
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE|FOLDER/", help="The token cache; FOLDER/ keeps its parts.")
    ],
    tokenizer: Tokenizer = None,
    views: Annotated[
        str,
        typer.Option("--views", metavar="LIST|none", help="Further views: flip, ten-crop, or names of these, commas."),
    ] = "flip",
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Images encoded at once; by default what suits the device."),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", metavar="float32|tf32|bf16|fp16", help="Recorded in the cache.")
    ] = "float32",
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Images a process decodes at once; by default its cores."),
    ] = None,
    max_rejected: Annotated[
        float | None,
        typer.Option(
            "--max-rejected",
            min=0,
            max=1,
            help="Largest share of images that may be unusable: by default 0.001, or ten images if under 5 %.",
            rich_help_panel=_READ,
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--source", metavar="KIND", help="What PATH is, when it can't be told: folder, ...", rich_help_panel=_READ
        ),
    ] = None,
    accept_cut: Annotated[
        bool,
        typer.Option(
            "--accept-cut", help="Take the whole images of shards that were cut; recorded.", rich_help_panel=_READ
        ),
    ] = False,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="FILE", help="Labels of images that carry none, a line each.", rich_help_panel=_READ
        ),
    ] = None,
    label_table: Annotated[
        Path | None,
        typer.Option(
            "--label-table", metavar="FILE", help="Synset and ILSVRC2012_ID, a line each.", rich_help_panel=_READ
        ),
    ] = None,
    terms: Annotated[
        str | None,
        typer.Option(
            "--terms",
            metavar="TEXT",
            help="Terms of use of the images, recorded; ImageNet's are known.",
            rich_help_panel=_READ,
        ),
    ] = None,
    crop: Annotated[
        str,
        typer.Option(
            "--crop",
            metavar="center|adm",
            help="adm halves large images first, as guided-diffusion does.",
            rich_help_panel=_READ,
        ),
    ] = "center",
    exif: Annotated[
        bool, typer.Option("--exif", help="Turn images as their EXIF tag says; recorded.", rich_help_panel=_READ)
    ] = False,
    fast_decode: Annotated[
        bool,
        typer.Option(
            "--fast-decode", help="Decode large JPEGs at a fraction of their size; recorded.", rich_help_panel=_READ
        ),
    ] = False,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Images of more pixels are rejected.", rich_help_panel=_READ)
    ] = 178_956_970,
    compress: Annotated[
        bool, typer.Option("--compress", help="Deflate the rows: smaller, but read into memory.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="I/N", help="One of N jobs that share only the output's folder."),
    ] = None,
    device: Device = None,
    gpus: Gpus = None,
    procs: Procs = None,
    nodes: NumNodes = 1,
    node_rank: NodeRank = None,
    rdzv_endpoint: Endpoint = None,
    overwrite: Overwrite = False,
    runs_dir: RunsDir = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Turn images into a token cache.

    Every image is in it exactly once or named in FILE.rejected.jsonl. Run the same command again to go on.
    """
    if crop not in _CROPS:
        raise UsageError(f"there is no crop named {crop!r}", f"one of: {', '.join(_CROPS)}")
    if terms is not None and len(terms.encode()) > _MAX_TERMS:
        raise UsageError(f"--terms has more than {_MAX_TERMS:,} bytes", "say where they stand instead of all of them")
    target, keep = Path(output), output.endswith("/") or Path(output).is_dir()
    wanted = () if views == "none" else tuple(views.split(","))
    from titokctl.distributed.group import process_group
    from titokctl.distributed.launch import Nodes, relaunch
    from titokctl.distributed.place import place
    from titokctl.distributed.stop import StopRequest
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.tokenize import check_request
    from titokctl.jobs.tokenize import tokenize as job
    from titokctl.models.device import device_named, gpus_to_use

    device = device_named(device, "cpu" if procs is not None else None)
    if place().is_main:
        check_request(paths, target, wanted, overwrite, keep, compress, part, precision, device)  # type: ignore[arg-type]
    if relaunch(gpus, procs, Nodes(nodes, node_rank, rdzv_endpoint), otherwise=gpus_to_use(device)):
        return
    with StopRequest() as stop, process_group(device) as group:
        result = job(
            paths,
            target,
            tokenizer,
            runs_root(runs_dir),
            views=wanted,
            batch_size=batch_size,
            precision_name=precision,  # type: ignore[arg-type]
            workers=workers,
            max_rejected=max_rejected,
            source_kind=source,
            accept_cut=accept_cut,
            labels=labels,
            label_table=label_table,
            terms=terms,
            crop=crop,
            exif=exif,
            fast_decode=fast_decode,
            max_pixels=max_pixels,
            overwrite=overwrite,
            keep_parts=keep,
            compress=compress,
            part=part,
            device=device,
            group=group,
            progress=console.progress(quiet or not group.is_main),
            stop=stop,
        )
    if result is None:
        return
    if not quiet and result.finished:
        console.say(f"{result.rows:,} rows + {result.rejected:,} rejected = {result.samples:,} images in the source")
    console.result(result, as_json, "token cache")
