"""The demo's pictures: rendered scenes, or a folder of one's own, as shards for training and held out."""

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.context import Context
from titokctl.data.images import BadImage, decode, extension_of
from titokctl.data.scenes.factors import CLASS_ATTRIBUTES, CLASS_NAMES
from titokctl.data.sources import SeekableSource, open_source
from titokctl.data.sources.source import Sample
from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path
from titokctl.formats.shard_set import ShardSample, read_set_index, shard_name, write_set_index, write_shard
from titokctl.jobs.scenes import HELD_OUT, TRAIN, Scenes
from titokctl.readable import counted

SIZE = 64
NUM_SCENES, NUM_HELD_OUT = 16_000, 1_200
_FEWEST = 200
_HELD_OUT_SHARE, _MOST_HELD_OUT = 0.1, 1_200
_PER_SHARD = 1_000


@dataclass(frozen=True)
class Pictures:
    """Shards to train on and held-out ones, and what their classes stand for.

    `attributes` are numbers (C,) of each class by name; {} without classes.
    """

    train: Path
    held_out: Path
    class_names: list[str]
    attributes: dict[str, np.ndarray]
    about: str


def scenes(folder: Path, seed: int, context: Context) -> Pictures:
    """Render scenes into `folder`, or take those that are there."""
    Scenes(folder, NUM_SCENES, NUM_HELD_OUT, SIZE, seed).run(context)
    about = (
        f"{NUM_SCENES:,} fresh renders of solids, each with another place, size, camera, light, floor and wall; "
        f"{NUM_HELD_OUT:,} others are held out"
    )
    return Pictures(folder / TRAIN, folder / HELD_OUT, CLASS_NAMES, CLASS_ATTRIBUTES, about)


def own_images(images: Path, folder: Path, context: Context) -> Pictures:
    """Write the images of a folder as shards into `folder`, a tenth of them held out, or take those that are there.

    Raises UserError when there are too few, or the folder can't be read.
    """
    source = open_source([images]).by_position()
    if len(source) < _FEWEST:
        raise UserError(
            f"{images} holds {counted(len(source), 'images')}; the demo needs at least {_FEWEST}",
            "`titokctl demo` without --images shows the chain on rendered scenes",
        )
    share = min(_HELD_OUT_SHARE, _MOST_HELD_OUT / len(source))
    keys = source.keys()
    kept = np.array([zlib.crc32(key.encode()) < share * 2**32 for key in keys])
    for split, positions in ((TRAIN, np.flatnonzero(~kept)), (HELD_OUT, np.flatnonzero(kept))):
        _write(folder / split, source, positions, context)
    labelled = bool((source.labels() >= 0).all()) and len(source.class_names) > 1
    attributes = {"class": np.arange(len(source.class_names))} if labelled else {}
    about = (
        f"{len(source):,} images of {images}, {int(kept.sum()):,} of them held out by a hash of their name; "
        f"expect their colours and rough shapes at {SIZE} px, and good samples only with thousands of images"
    )
    return Pictures(folder / TRAIN, folder / HELD_OUT, source.class_names, attributes, about)


def _write(folder: Path, source: SeekableSource, positions: np.ndarray, context: Context) -> None:
    text = f"{source.description['fingerprint']} {folder.name} {hashlib.sha256(positions.tobytes()).hexdigest()}"
    rule: dict[str, Any] = {"rule": hashlib.sha256(text.encode()).hexdigest()}
    record = read_set_index(folder)
    if record is not None and record.get("rule") == rule["rule"]:
        return
    if record is None and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not a folder of shards and won't be replaced", "choose another folder with -o")
    folder.parent.mkdir(parents=True, exist_ok=True)
    mixed = np.random.default_rng(0).permutation(positions)
    context.progress.start(f"pack {folder.name}", len(mixed), "images")
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        shards, unreadable = [], 0
        for number, first in enumerate(range(0, len(mixed), _PER_SHARD)):
            context.stop.check("Nothing of this split is kept.")
            chunk = mixed[first : first + _PER_SHARD]
            read = zip(chunk.tolist(), source.read_many(chunk), strict=True)
            samples = [ShardSample(f"{p:08d}", extension_of(s.data), s.data, s.label) for p, s in read if _is_good(s)]
            unreadable += len(chunk) - len(samples)
            shards.append(write_shard(temporary / shard_name(folder.name, number), samples))
            context.progress.advance(len(chunk))
        write_set_index(temporary, shards, source.class_names, rule)
    context.progress.close()
    if unreadable:
        context.say(f"leaving {counted(unreadable, 'images')} out of {folder.name} that can't be decoded")


def _is_good(sample: Sample) -> bool:
    try:
        decode(sample.data)
    except BadImage:
        return False
    return True
