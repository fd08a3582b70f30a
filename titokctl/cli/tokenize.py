"""`titokctl tokenize`."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import option
from titokctl.cli.work import Engine, Machine, Surroundings, perform
from titokctl.errors import UsageError
from titokctl.readable import counted, plain

if TYPE_CHECKING:
    from titokctl.jobs.tokenize.ids import TokenizeFew
    from titokctl.jobs.tokenize.request import TokenizeResult

_read = partial(option, panel=options.READING)


def _sum(result: "TokenizeResult") -> str:
    """Return the sentence that accounts for everything in the source."""
    rows, images = counted(result.rows, "rows"), counted(result.samples, "images")
    text = f"{rows} + {result.rejected:,} rejected = {images} in the source"
    if result.unlabelled and result.unlabelled < result.rows:
        text += f"; {counted(result.unlabelled, 'rows')} without a label (-1)"
    others = ", ".join(f"{count:,} {what}" for what, count in result.passed_over.items())
    return f"{text}; passed over: {others}" if others else text


def _refuse(given: dict[str, object]) -> None:
    """Raise UsageError for an option that has a value but belongs to token caches, where no output was named."""
    if found := [name for name, value in given.items() if value]:
        raise UsageError(f"{found[0]} is for a token cache, but none was named", "name it, e.g. -o tokens.h5")


def _print_ids(job: "TokenizeFew", around: Surroundings) -> None:
    """Print the ids of each image on a line, behind its name where there are several; or as JSON."""
    found = perform(job, around)
    if around.as_json:
        lines = (console.json_text(asdict(image)) for image in found.images)
        print("[\n" + ",\n".join(f" {line}" for line in lines) + "\n]")
        return
    is_one = len(found.images) == 1
    for image in found.images:
        ids = " ".join(map(str, image.tokens))
        print(ids if is_one else f"{plain(image.key)}\t{ids}")


@app.command(epilog="Example: titokctl tokenize imagenet/ -o tokens.h5")
def tokenize(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH", help="Images, or folders, tar shards, parquet, or URLs of shards.")
    ],
    output: Annotated[
        str | None,
        option("--output -o", "The token cache; FOLDER/ keeps its parts. Without it, ids are printed.", "FILE|FOLDER/"),
    ] = None,
    tokenizer: options.Tokenizer = None,
    views: Annotated[
        str, option("--views", "Further views: flip, ten-crop, or names of crops, separated by commas.", "LIST|none")
    ] = "flip",
    batch_size: Annotated[
        int | None, option("--batch-size", "Images encoded at once; default: what suits the device.", min=1)
    ] = None,
    precision: Annotated[
        Literal["float32", "tf32", "bf16", "fp16"] | None,
        option(
            "--precision",
            "Precision of the encoder, recorded; default: fp16 on a GPU, float32 on a CPU.",
            "float32|tf32|bf16|fp16",
        ),
    ] = None,
    workers: Annotated[
        int | None, option("--workers", "Images that a process decodes at once; default: its number of cores.", min=1)
    ] = None,
    max_rejected: options.MaxRejected = None,
    source: Annotated[
        str | None, _read("--source", "Kind of PATH, if it isn't recognised: folder, shards, ...", "KIND")
    ] = None,
    accept_cut: Annotated[bool, _read("--accept-cut", "Take the intact images of truncated shards; recorded.")] = False,
    labels: Annotated[
        Path | None, _read("--labels", "Labels for images without labels of their own, one per line.", "FILE")
    ] = None,
    split: options.Split = None,
    classes: options.Classes = None,
    no_labels: options.NoLabels = False,
    sort: options.Sort = None,
    image_key: options.ImageKey = None,
    label_key: options.LabelKey = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    label_table: Annotated[
        Path | None, _read("--label-table", "Table of synsets and ILSVRC2012_IDs, one pair per line.", "FILE")
    ] = None,
    terms: Annotated[
        str | None, _read("--terms", "Terms of use of the images, recorded; ImageNet's are known.", "TEXT")
    ] = None,
    crop: Annotated[
        str, options.crop("adm halves large images first, as guided-diffusion does.", panel=options.READING)
    ] = "center",
    exif: options.Exif = None,
    fast_decode: Annotated[
        bool, _read("--fast-decode", "Decode large JPEGs at a fraction of their size; recorded.")
    ] = False,
    max_pixels: Annotated[int, _read("--max-pixels", "Images of more pixels are rejected.", min=1)] = 178_956_970,
    compress: options.Compress = False,
    part: Annotated[
        str | None, option("--part", "Make the I-th of N shares; the last job to finish merges them.", "I/N")
    ] = None,
    device: options.Device = None,
    gpus: options.Gpus = None,
    procs: options.Procs = None,
    nodes: options.NumNodes = 1,
    node_rank: options.NodeRank = None,
    rdzv_endpoint: options.Endpoint = None,
    engine: options.Engine = None,
    address: options.Address = None,
    min_workers: options.MinWorkers = None,
    max_workers: options.MaxWorkers = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Turn images into a token cache, or print the ids of a few.

    Every image is in it exactly once or listed in FILE.rejected.jsonl. Run the same command again to resume.
    """
    from titokctl.formats.object_store import path_of
    from titokctl.jobs.tokenize.ids import TokenizeFew
    from titokctl.jobs.tokenize.request import Tokenize

    chosen = options.choices(
        split,
        classes,
        no_labels,
        sort=sort,
        image_key=image_key,
        image_column=image_column,
        label_key=label_key,
        label_column=label_column,
    )
    if output is None:
        _refuse(
            {
                "--part": part,
                "--compress": compress,
                "--labels": labels,
                "--label-table": label_table,
                "--terms": terms,
                "--max-rejected": max_rejected,
                "--views": None if views == "flip" else views,
                "--engine": engine,
                "--procs": procs,
                "--gpus": gpus,
                "--overwrite": overwrite,
                "--dry-run": dry_run,
            }
        )
        few = TokenizeFew(paths, tokenizer, precision, workers, source, crop, exif, fast_decode)
        _print_ids(replace(few, choices=chosen), Surroundings(quiet, as_json, False, runs_dir, device))
        return
    machine = Machine(device, gpus, procs, nodes, node_rank, rdzv_endpoint)
    cluster = Engine(engine, address, min_workers, max_workers).cluster(machine)
    target = path_of(output)
    job = Tokenize(
        paths,
        target,
        tokenizer,
        views=() if views == "none" else tuple(views.split(",")),
        batch_size=batch_size,
        precision=precision,
        workers=workers,
        max_rejected=max_rejected,
        source_kind=source,
        accept_cut=accept_cut,
        labels=labels,
        label_table=label_table,
        terms=terms,
        crop=crop,
        exif=exif,
        choices=chosen,
        fast_decode=fast_decode,
        max_pixels=max_pixels,
        compress=compress,
        keep_parts=output.endswith("/") or target.is_dir(),
        part=part,
        overwrite=overwrite,
        cluster=cluster,
    )
    around = Surroundings(quiet, as_json, dry_run, runs_dir, machine=machine, takes_all_gpus=True)
    result = perform(job, around if cluster is None else replace(around, machine=None))
    if result is None:
        return
    if not quiet and result.finished:
        console.say(_sum(result))
    console.result(result, as_json, "token cache")
    if result.finished:
        console.next_command("train-gen", output, shown=not quiet, runs_dir=runs_dir)
