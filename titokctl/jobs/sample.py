"""`titokctl sample`: a generator and its tokenizer -> a sample set.

The set lies in its run folder, <runs>/samples/<name>, or where -o says; then the run folder points to it, so that `fid`
finds the newest samples either way.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.config.guidance_scale import both_forms
from titokctl.data.images import encode_png, to_bytes
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UsageError, UserError
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.run_folder import RunFolder
from titokctl.formats.sample_set import (
    LOCATION,
    MANIFEST,
    ImageFormat,
    SampleSet,
    changed_settings,
    record_location,
    remove,
    state_of,
)
from titokctl.formats.sample_set_writer import SampleSetWriter
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.sample_inputs import Given, Settings, find_generator, find_tokenizer, ready, settings_for
from titokctl.jobs.sample_record import PRECISION, SampleTask
from titokctl.models.precision import precision
from titokctl.progress import Progress
from titokctl.sampling.decoding import decode_ids, too_many_steps
from titokctl.sampling.plan import Tile

DEFAULT_NUM_IMAGES = 64
_CHUNK_IMAGES = 256
_CHUNK_SECONDS = 30.0


@dataclass(frozen=True)
class Sampled:
    """What was drawn: the folder of the set, its images, its run, and how fast it went (this run's share)."""

    samples: Path
    images: Path
    run: Path
    num_images: int
    images_per_second: float | None


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
    image_format: ImageFormat = "npz",
    batch_size: int | None = None,
    overwrite: bool = False,
    device: str = "cpu",
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
        batch_size: images decoded at once; it does not change which ids are drawn.

    Raises: UserError or UsageError with what does not fit; Stopped after a signal, with the finished part kept.
    """
    changes = changes or {}
    _check_cheap(num_images, per_class, batch_size, changes, output, overwrite)
    found = find_generator(generator, runs, progress.say)
    wanted = num_images if num_images or per_class else DEFAULT_NUM_IMAGES
    settings = settings_for(found, changes, classes, wanted, per_class, progress.say)
    decoder = find_tokenizer(tokenizer, found, runs, progress.say)
    _say_settings(settings, found, progress)
    networks = ready(found, decoder, device)
    task = SampleTask(found, decoder, networks, settings, image_format, device, batch_size)
    return _in_folder(task, runs, output, overwrite, progress, stop)


def _check_cheap(
    num_images: int | None,
    per_class: int | None,
    batch_size: int | None,
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
            raise UsageError(f"{flag} must be at least {least}, not {value}")
    if num_images is not None and per_class is not None:
        raise UsageError("-n and --per-class say the same twice", "give one of them")
    if output is None:
        return
    if output.suffix in (".npz", ".png", ".h5"):
        raise UsageError(f"-o {output} names a file, but a sample set is a folder", f"e.g. -o {output.with_suffix('')}")
    if state_of(output) == "foreign":
        raise UserError(f"{output} is not empty and holds no sample set", "choose another folder with -o")
    if state_of(output) == "finished" and not overwrite:
        raise UserError(f"{output} holds a sample set already", "choose another folder with -o, or add --overwrite")


def _say_settings(settings: Settings, generator: Given, progress: Progress) -> None:
    sampling, tokens = settings.sampling, generator.config.num_latent_tokens
    if sampling.num_steps > tokens:
        progress.say(f"warning: {too_many_steps(sampling.num_steps, tokens)}")
    every = generator.config.num_classes
    classes = "no classes" if settings.classes is None else f"{len(settings.classes)} of {every} classes"
    annealing = "on" if sampling.softmax_annealing else "off"
    progress.say(
        f"{settings.num_images:,} images, {classes}, seed {sampling.seed}, {sampling.num_steps} steps; "
        f"guidance {both_forms(sampling.guidance_scale)}, {sampling.guidance_schedule}; "
        f"choice temperature {sampling.choice_temperature:g}, softmax annealing {annealing}"
    )


def _in_folder(
    task: SampleTask, runs: Path, output: Path | None, overwrite: bool, progress: Progress, stop: StopRequest
) -> Sampled:
    run_path = runs / "samples" / task.name(output)
    folder = output or run_path
    run = RunFolder(path=run_path, kind="samples", settings=task.identity, inputs=task.inputs())
    with folder_lock(folder):
        if overwrite:
            remove(folder)
        _check_same(folder, task.identity)
        rate = None
        if state_of(folder) == "finished":
            progress.say(f"{folder} is finished already; --overwrite draws it again")
        else:
            run.save()
            rate = _draw(task, folder, progress, stop)
        if output:
            record_location(run_path, output)
        # Also for a set that was there: who asks for it again means it, not one drawn in between.
        run.finish(LOCATION if output else MANIFEST, {"ids_sha256": _ids_sha256(folder), **task.networks.hashes})
    done = SampleSet.open(folder)
    return Sampled(folder, done.images, run_path, task.settings.num_images, rate)


def _check_same(folder: Path, identity: dict[str, Any]) -> None:
    """Raise UserError unless `folder` is free or holds a set of the same settings."""
    if state_of(folder) == "empty":
        return
    if state_of(folder) == "foreign":
        raise UserError(f"{folder} is not empty and holds no sample set", "choose another folder with -o")
    changed = changed_settings(folder, identity)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(
            f"{folder} was begun with other settings:\n{lines}",
            "repeat the command with the settings it was begun with, choose another -o, or start over with --overwrite",
        )


def _draw(task: SampleTask, folder: Path, progress: Progress, stop: StopRequest) -> float | None:
    """Draw what is missing and finish the set. Returns images/s, None when nothing was missing."""
    with (
        precision(PRECISION, task.device),
        SampleSetWriter(
            folder,
            task.identity,
            num_images=task.plan.num_images,
            image_size=task.tokenizer.config.image_size,
            image_format=task.image_format,
            encode=encode_png,
        ) as writer,
    ):
        rate = _draw_missing(task, writer, progress, stop)
        writer.finish(task.header(), task.labels(), task.manifest())
    return rate


def _draw_missing(task: SampleTask, writer: SampleSetWriter, progress: Progress, stop: StopRequest) -> float | None:
    total, before = task.plan.num_images, writer.num_done
    began = committed = time.monotonic()
    progress.start("sample", total, "images", before)
    try:
        for tile in task.plan.tiles():
            if writer.has(tile.first):
                continue
            for first, ids, images in _draw_tile(task, tile):
                writer.add(first, ids, images)
            progress.advance(tile.count)
            now = time.monotonic()
            if writer.num_pending >= _CHUNK_IMAGES or now - committed >= _CHUNK_SECONDS or stop.requested:
                writer.commit()
                committed = now
                stop.check(f"{writer.num_done:,} of {total:,} images are kept in {writer.folder}.")
        writer.commit()
    finally:
        progress.close()
    drawn = writer.num_done - before
    return drawn / max(time.monotonic() - began, 1e-9) if drawn else None


def _draw_tile(task: SampleTask, tile: Tile) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Pieces of (first index, ids (n, K) int64, images (n, H, W, 3) uint8); surplus rows are dropped."""
    indices = tile.image_indices(task.device)
    networks = task.networks
    ids = decode_ids(networks.generator, task.plan.labels(indices), task.settings.sampling, indices)
    for start in range(0, tile.count, task.batch_size):
        part = ids[start : start + task.batch_size]
        images = to_bytes(networks.tokenizer.detokenize(part))
        kept = min(len(part), tile.count - start)
        yield tile.first + start, part[:kept].cpu().numpy(), images[:kept].cpu().numpy()


def _ids_sha256(folder: Path) -> str:
    return TokenCache.open(SampleSet.open(folder).ids, check_ids=False).sha256
