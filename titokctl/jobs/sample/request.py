"""`titokctl sample`: a generator and its tokenizer -> a sample set.

The set lies in its run folder, <runs>/samples/<name>, or where -o says; then the run folder points to it, so that `fid`
finds the newest samples either way. Of several processes the first leads: it decides what is to be drawn, draws its
share, and puts the set together; tiles are claimed one by one.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from titokctl.config.guidance_scale import both_forms
from titokctl.config.sampling import SamplingConfig
from titokctl.distributed.group import Group, single_group
from titokctl.distributed.stop import StopRequest
from titokctl.distributed.team import Team
from titokctl.dry_run import about_to_write
from titokctl.errors import UsageError, UserError
from titokctl.formats.chunk_writer import ChunkWriter
from titokctl.formats.image_output import ImageFormat
from titokctl.formats.sample_set import UNFINISHED, state_of
from titokctl.jobs.plan import WritePlan, cache_bytes, image_bytes
from titokctl.jobs.sample.inputs import Given, find_generator, find_tokenizer, plan_for, ready, settings_for
from titokctl.jobs.sample.job import Sampled, SampleJob, check_same
from titokctl.jobs.sample.record import SampleTask
from titokctl.jobs.sample.scoring import FidRequest
from titokctl.models.device import default_batch_size
from titokctl.models.inference import fastest_precision
from titokctl.models.precision import Precision
from titokctl.progress import Progress
from titokctl.sampling.decoding import too_many_steps
from titokctl.sampling.plan import Plan

__all__ = ["Sampled", "check_request", "sample"]

PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")


def sample(
    runs: Path,
    *,
    generator: str | None = None,
    tokenizer: str | None = None,
    num_images: int | None = None,
    per_class: int | None = None,
    classes: Sequence[int] | None = None,
    changes: dict[str, Any] | None = None,
    output: Path | None = None,
    image_format: ImageFormat | None = None,
    batch_size: int | None = None,
    precision_name: Precision | None = None,
    fid: FidRequest | None = None,
    overwrite: bool = False,
    device: str = "cpu",
    group: Group | None = None,
    progress: Progress,
    stop: StopRequest,
) -> Sampled:
    """Draw a sample set, or go on with the unfinished one of the same settings.

    Args:
        runs: the runs folder.
        generator, tokenizer: run folder, file or known name; None finds the newest generator and its tokenizer.
        num_images: size of the set; 64 by default.
        per_class: size of the set a class, instead of `num_images`.
        classes: which classes; None is every one.
        changes: fields of SamplingConfig that differ from the generator's own settings.
        output: folder of the set; by default a run folder named by the settings.
        image_format: None for "npz", or for "none" where `fid` is given.
        batch_size: images decoded at once; it does not change which ids are drawn.
        precision_name: "float32" or "bf16", of generator and decoder; None for the device's fastest.
        fid: judge the images while they are drawn.
        group: the processes that draw together, each of which returns the same; None for this process alone.

    Raises: UserError or UsageError with what does not fit; Stopped after a signal, with the finished part kept.
    """
    changes, group = changes or {}, group or single_group()
    if group.is_main:  # the output may be there when another process comes
        check_request(num_images, per_class, batch_size, precision_name, changes, output, overwrite)
    team = Team(group, "sample", progress, stop.check)
    if not group.is_main:  # what the first one finds must not be another's newest
        generator, tokenizer = team.hear("networks")
    found = find_generator(generator, runs, progress.say)
    plan = plan_for(found, classes, num_images, per_class, device)
    sampling = settings_for(found, changes, progress.say)
    if fid is not None and plan.num_images < 2:
        raise UsageError(f"--fid needs at least 2 images, not {plan.num_images}", "draw more with -n")
    decoder = find_tokenizer(tokenizer, found, runs, progress.say)
    if group.is_main:
        team.tell("networks", [str(found.path.absolute()), str(decoder.path.absolute())])
    chosen = precision_name or fastest_precision(device)
    _say_settings(sampling, plan, found, chosen, progress)
    task = SampleTask(
        found,
        decoder,
        ready(found, decoder, device, chosen),
        sampling,
        plan,
        image_format or ("npz" if fid is None else "none"),
        device,
        chosen,
        min(batch_size or default_batch_size(device, "decode"), plan.tile_size),
        fid.description if fid else None,
    )
    job = SampleJob(task, runs, output, fid, team, progress, stop)
    if group.is_main:
        about_to_write(lambda: _plan(task, job.folder, overwrite))
    return job.lead(overwrite) if group.is_main else job.follow()


def _plan(task: SampleTask, folder: Path, overwrite: bool) -> WritePlan:
    """What would be drawn into `folder`."""
    count = task.plan.num_images
    before = "empty" if overwrite else state_of(folder)
    if not overwrite:
        check_same(folder, task.identity)
    kept = ChunkWriter(folder / UNFINISHED, None)
    if before == "unfinished":
        kept.read_chunks()
    images = image_bytes(task.image_format, count, task.tokenizer.config.image_size)
    return WritePlan(
        reads={name: str(given.path) for name, given in (("generator", task.generator), ("tokenizer", task.tokenizer))},
        output=folder,
        count=count,
        done=count if before == "finished" else kept.num_done,
        num_bytes=None if images is None else images + cache_bytes(task.header(), count, len(str(count))),
        settings={
            "image_format": task.image_format,
            "classes": None if task.plan.classes is None else len(set(task.plan.classes)),
            **task.sampling.model_dump(mode="json"),
            "precision": task.precision,
            "device": task.device,
        },
        replaces=overwrite and state_of(folder) == "finished",
    )


def check_request(
    num_images: int | None,
    per_class: int | None,
    batch_size: int | None,
    precision_name: str | None,
    changes: dict[str, Any],
    output: Path | None,
    overwrite: bool,
) -> None:
    """Raise UsageError or UserError for what can be told before anything is read."""
    at_least = [
        ("-n", num_images, 1),
        ("--per-class", per_class, 1),
        ("--batch-size", batch_size, 1),
        ("--steps", changes.get("num_steps"), 1),
        ("--choice-temperature", changes.get("choice_temperature"), 0),
        ("--cfg-power", changes.get("guidance_power"), 1e-3),
    ]
    for flag, value, least in at_least:
        if value is not None and not least <= value < math.inf:
            raise UsageError(
                f"{flag} must be at least {least}, not {value}", "`titokctl sample --help` says what it takes"
            )
    if num_images is not None and per_class is not None:
        raise UsageError("-n and --per-class say the same twice", "give one of them")
    if precision_name not in (None, *PRECISIONS):
        raise UsageError(f"--precision {precision_name} is none of {', '.join(PRECISIONS)}")
    if output is None:
        return
    if output.suffix in (".npz", ".png", ".h5"):
        raise UsageError(f"-o {output} names a file, but a sample set is a folder", f"e.g. -o {output.with_suffix('')}")
    if state_of(output) == "foreign":
        raise UserError(f"{output} is not empty and holds no sample set", "choose another folder with -o")
    if state_of(output) == "finished" and not overwrite:
        raise UserError(f"{output} holds a sample set already", "choose another folder with -o, or add --overwrite")


def _say_settings(
    sampling: SamplingConfig, plan: Plan, generator: Given, precision_name: str, progress: Progress
) -> None:
    tokens = generator.config.num_latent_tokens
    if sampling.num_steps > tokens:
        progress.warn(too_many_steps(sampling.num_steps, tokens))
    every = generator.config.num_classes
    classes = "no classes" if plan.classes is None else f"{len(set(plan.classes))} of {every} classes"
    annealing = "on" if sampling.softmax_annealing else "off"
    power = f" of power {sampling.guidance_power:g}" if sampling.guidance_schedule == "power-cosine" else ""
    progress.say(
        f"{plan.num_images:,} images, {classes}, seed {sampling.seed}, {sampling.num_steps} steps; "
        f"guidance {both_forms(sampling.guidance_scale)}, {sampling.guidance_schedule}{power}; "
        f"choice temperature {sampling.choice_temperature:g}, softmax annealing {annealing}; "
        f"{precision_name}"
    )
