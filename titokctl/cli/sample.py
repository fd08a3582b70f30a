"""`titokctl sample`."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from titokctl.cli import console, options
from titokctl.cli.app import app
from titokctl.cli.options import MACHINE, option
from titokctl.cli.work import Engine, Machine, Surroundings, perform

_how = partial(option, panel="Sampling settings (by default the generator's own)")
_result = partial(option, panel="Output of the samples")
# A panel of its own: the two long names would widen the first column of the other panel.
_switch = partial(option, panel="Sampling switches")


@app.command(epilog="Example: titokctl sample --cfg 4.0 -n 50000")
def sample(
    generator: Annotated[
        str | None,
        options.generator("The generator; default: the newest trained one."),
    ] = None,
    tokenizer: Annotated[
        str | None, options.tokenizer("The decoder; default: the tokenizer the generator was trained for.")
    ] = None,
    num_images: Annotated[int | None, option("-n --num-images", "Number of images; 64 by default.")] = None,
    per_class: Annotated[int | None, option("--per-class", "Images of each class, instead of -n.")] = None,
    classes: Annotated[
        str | None,
        option(
            "--classes",
            "Class numbers, ranges or names, drawn in turn; default: all learnt classes. none draws without a class.",
            "0-9,207,red-ball|all|none",
        ),
    ] = None,
    settings_file: Annotated[
        str | None,
        _how(
            "--settings", "Settings as tune writes them, or a shipped preset; other options override it.", "FILE|NAME"
        ),
    ] = None,
    cfg: Annotated[
        str | None,
        _how(
            "--cfg",
            "Guidance scale s of c + s (c - u), 0 = off. The scale w of DiT and diffusers is s + 1; 5.0w means theirs.",
            "S|Ww",
        ),
    ] = None,
    # The names of config.sampling, which is not imported before the command runs.
    cfg_schedule: Annotated[
        Literal["constant", "linear", "power-cosine"] | None,
        _how("--cfg-schedule", "Guidance over the steps: constant, linear or power-cosine.", "NAME"),
    ] = None,
    cfg_power: Annotated[float | None, _how("--cfg-power", "Power of the power-cosine schedule.")] = None,
    cfg_interval: Annotated[
        str | None, _how("--cfg-interval", "Guidance only between two fractions of the steps.", "A,B")
    ] = None,
    steps: Annotated[int | None, _how("--steps", "Decoding steps.")] = None,
    solver: Annotated[
        Literal["euler", "heun"] | None,
        _how("--solver", "Solver for generators of latents; heun takes two passes per step."),
    ] = None,
    choice_temperature: Annotated[
        float | None, _how("--choice-temperature", "Scale of the noise in the choice of ids and positions.")
    ] = None,
    softmax_annealing: Annotated[
        bool | None,
        _switch("--softmax-annealing/--no-softmax-annealing", "Lower the softmax temperature from step to step.", ""),
    ] = None,
    temperature: Annotated[
        float | None, _how("--temperature", "Softmax temperature (autoregressive generators).")
    ] = None,
    top_k: Annotated[int | None, _how("--top-k", "Choose among the K most likely codes.", "K")] = None,
    top_p: Annotated[
        float | None, _how("--top-p", "Choose among the most likely codes with this total probability.", "P")
    ] = None,
    unmasking: Annotated[
        str | None,
        _how("--unmasking", "Rule for which positions each step decides.", "confidence|random-order|remasking"),
    ] = None,
    remasking_cap: Annotated[
        float | None, _how("--remasking-cap", "Largest share of decided positions that remasking masks again.")
    ] = None,
    keep: Annotated[
        Path | None,
        option(
            "--keep",
            "Image i keeps ids of row i of this cache at the positions of --keep-tokens.",
            "TOKENS",
            callback=options.address,
        ),
    ] = None,
    keep_tokens: Annotated[
        str | None, option("--keep-tokens", "Token positions to keep, counted from 0.", "0-15,20")
    ] = None,
    seed: Annotated[int | None, _how("--seed", "Seed of all randomness; 0 by default.")] = None,
    output: Annotated[
        Path | None, _result("-o --output", "Folder of the set; in the runs folder by default.", "DIR")
    ] = None,
    image_format: Annotated[
        Literal["npz", "png", "webp", "wds", "none"] | None,
        _result(
            "--format",
            "One .npz for the ADM evaluator (the default), PNG or lossless WebP files, WebDataset shards, "
            "or no images (the default with --fid); ids.h5 and grid.png are always written.",
        ),
    ] = None,
    fid: Annotated[
        Path | None, _result("--fid", "Compare the images with statistics or images while they are drawn.", "REF")
    ] = None,
    features: Annotated[str, _result("--features", "Feature network of --fid.", "inception|lite0|lite2")] = "inception",
    inception_weights: Annotated[
        Path | None, _result("--inception-weights", "Weights of Inception for --fid.", "FILE")
    ] = None,
    overwrite: options.Overwrite = False,
    dry_run: options.DryRun = False,
    batch_size: Annotated[
        int | None,
        option("--batch-size", "Images decoded at once; does not change which are drawn.", panel=MACHINE),
    ] = None,
    precision: Annotated[
        Literal["float32", "tf32", "bf16", "fp16"] | None,
        option("--precision", "Default: the device's fastest; recorded.", "float32|tf32|bf16|fp16", panel=MACHINE),
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
    runs_dir: options.RunsDir = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Draw images with a trained generator.

    To resume a stopped set, run the same command again.
    """
    from titokctl.distributed.place import place
    from titokctl.formats.sample_set import GRID
    from titokctl.jobs.sample.kept_tokens import parse_positions
    from titokctl.jobs.sample.request import Sample
    from titokctl.sampling.plan import parse_classes

    settings: dict[str, Any] = {
        "guidance_scale": cfg,
        "guidance_schedule": cfg_schedule,
        "guidance_power": cfg_power,
        "guidance_interval": cfg_interval,
        "num_steps": steps,
        "solver": solver,
        "choice_temperature": choice_temperature,
        "softmax_annealing": softmax_annealing,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "unmasking": unmasking,
        "remasking_cap": remasking_cap,
        "seed": seed,
    }
    machine = Machine(device, gpus, procs, nodes, node_rank, rdzv_endpoint)
    cluster = Engine(engine, address, min_workers, max_workers).cluster(machine)
    request = Sample(
        generator=generator,
        tokenizer=tokenizer,
        num_images=num_images,
        per_class=per_class,
        classes=parse_classes(classes),
        settings={name: value for name, value in settings.items() if value is not None},
        output=output,
        image_format=image_format,
        batch_size=batch_size,
        precision=precision,
        fid=fid,
        features=features,
        inception_weights=inception_weights,
        overwrite=overwrite,
        settings_file=settings_file,
        keep=keep,
        keep_tokens=() if keep_tokens is None else parse_positions(keep_tokens),
        cluster=cluster,
    )
    around = Surroundings(quiet, as_json, dry_run, runs_dir, machine=machine, takes_all_gpus=True)
    result = perform(request, around if cluster is None else replace(around, machine=None))
    if place().is_main:
        console.result(result, as_json, "samples")
        if (sheet := result.samples / GRID).is_file() and not quiet:
            console.say(f"a sheet of images: {sheet}")
        if not result.metrics:
            console.next_command("fid", result.samples, shown=not quiet, runs_dir=runs_dir)
