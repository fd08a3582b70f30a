"""`titokctl sample`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from titokctl.cli import completion, console, options
from titokctl.cli.app import app
from titokctl.cli.options import MACHINE, option
from titokctl.cli.work import Machine, together
from titokctl.errors import UsageError

_how = partial(option, panel="How ids are drawn (by default as the generator says)")
_result = partial(option, panel="What is written")
# In one table with the others its two names would take their room.
_switch = partial(option, panel="How ids are drawn, on or off")


@app.command(epilog="Example: titokctl sample --cfg 4.0 -n 50000")
def sample(
    generator: Annotated[
        str | None,
        option("--generator", "The newest trained one by default.", "RUN|FILE|NAME", completes=completion.generators),
    ] = None,
    tokenizer: Annotated[str | None, options.tokenizer("The one the generator was trained for by default.")] = None,
    num_images: Annotated[int | None, option("-n --num-images", "How many images; 64 by default.")] = None,
    per_class: Annotated[int | None, option("--per-class", "How many images a class, instead of -n.")] = None,
    classes: Annotated[
        str | None, option("--classes", "Class numbers; image i gets the i-th in turn.", "207,360|all")
    ] = None,
    cfg: Annotated[
        str | None,
        _how(
            "--cfg",
            "Guidance scale s of c + s (c - u), 0 = off. DiT's and diffusers' scale is this one plus 1: "
            "write 5.0w for theirs.",
            "S|Ww",
        ),
    ] = None,
    # The same names as config.sampling has, which is not imported before the command runs.
    cfg_schedule: Annotated[
        Literal["constant", "linear", "power-cosine"] | None,
        _how("--cfg-schedule", "How guidance grows over the steps: constant, linear or power-cosine.", "NAME"),
    ] = None,
    cfg_power: Annotated[float | None, _how("--cfg-power", "Power of the power-cosine schedule.")] = None,
    steps: Annotated[int | None, _how("--steps", "Decoding steps.")] = None,
    choice_temperature: Annotated[
        float | None, _how("--choice-temperature", "Scale of the noise in the choices.")
    ] = None,
    softmax_annealing: Annotated[
        bool | None, _switch("--softmax-annealing/--no-softmax-annealing", "Sharpen logits step by step.", "")
    ] = None,
    seed: Annotated[int | None, _how("--seed", "Seed of all randomness; 0 by default.")] = None,
    output: Annotated[
        Path | None, _result("-o --output", "Folder of the set; in the runs folder by default.", "DIR")
    ] = None,
    image_format: Annotated[
        Literal["npz", "png", "webp", "wds", "none"] | None,
        _result(
            "--format",
            "One .npz as the ADM evaluator reads it (the default), PNG or lossless WebP files, WebDataset shards, "
            "or no images (the default with --fid); ids.h5 and grid.png are always written.",
        ),
    ] = None,
    fid: Annotated[
        Path | None, _result("--fid", "Judge the images against statistics or images while they are drawn.", "REF")
    ] = None,
    features: Annotated[str, _result("--features", "Network of --fid.", "inception|lite0")] = "inception",
    inception_weights: Annotated[Path | None, _result("--inception-weights", "For --fid.", "FILE")] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    batch_size: Annotated[
        int | None,
        option("--batch-size", "Images decoded at once; does not change which are drawn.", panel=MACHINE),
    ] = None,
    precision: Annotated[
        Literal["float32", "bf16"] | None,
        option("--precision", "The fastest of the device by default; recorded.", panel=MACHINE),
    ] = None,
    device: options.Device = None,
    gpus: options.Gpus = None,
    procs: options.Procs = None,
    nodes: options.NumNodes = 1,
    node_rank: options.NodeRank = None,
    rdzv_endpoint: options.Endpoint = None,
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Draw images with a trained generator.

    Settings that are not given are the generator's own. Run the same command again to go on with a stopped set.
    """
    if fid is None and (features != "inception" or inception_weights is not None):
        raise UsageError("--features and --inception-weights belong to --fid", "add --fid REF")
    from titokctl.config.guidance_scale import doubt, parse_scale
    from titokctl.evaluation.extractors import ExtractorOptions
    from titokctl.formats.run_folder import runs_root
    from titokctl.jobs.sample.request import check_request
    from titokctl.jobs.sample.request import sample as job
    from titokctl.jobs.sample.scoring import FidRequest
    from titokctl.sampling.plan import parse_classes

    given: dict[str, Any] = {
        "guidance_scale": None if cfg is None else parse_scale(cfg),
        "guidance_schedule": cfg_schedule,
        "guidance_power": cfg_power,
        "num_steps": steps,
        "choice_temperature": choice_temperature,
        "softmax_annealing": softmax_annealing,
        "seed": seed,
    }
    changes, chosen = {name: value for name, value in given.items() if value is not None}, parse_classes(classes)
    with together(
        Machine(device, gpus, procs, nodes, node_rank, rdzv_endpoint),
        quiet,
        dry_run,
        as_json,
        check=lambda _: check_request(num_images, per_class, batch_size, precision, changes, output, overwrite),
        takes_all_gpus=True,
    ) as work:
        if cfg is not None and doubt(cfg):
            work.progress.say(doubt(cfg))
        judge = FidRequest(fid, features, ExtractorOptions(work.device, inception_weights)) if fid else None
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
            fid=judge,
            overwrite=overwrite,
            device=work.device,
            group=work.group,
            progress=work.progress,
            stop=work.stop,
        )
    if work.group.is_main:
        console.result(result, as_json, "samples")
