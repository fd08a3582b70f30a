"""One pass over a source before long work: which images can't be decoded, and of what sizes the others are.

Specification: the result is kept in the runs folder as `checks/<key>.json`; the key is a hash of the source's
fingerprint and of the versions that decode. It is an object with format "titokctl/source-check", format_version 1,
`checked` (the images from the first on that were decoded, all of them when the pass is finished), `rejected` (a list of
[position, key, kind, reason]) and `sizes` (up to two different sizes, each as [width, height, key of the first image]).
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from titokctl.context import Context
from titokctl.data.images import BadImage, decode
from titokctl.data.sources.source import Rejected, SeekableSource, Source
from titokctl.data.workers import in_order
from titokctl.distributed.place import available_cores
from titokctl.errors import UserError
from titokctl.formats.atomic import read_json, write_json
from titokctl.formats.run_folder import versions
from titokctl.readable import first_few

FORMAT, FORMAT_VERSION = "titokctl/source-check", 1
_FOLDER = "checks"
_DECODERS = ("pillow", "titokctl")
_FILES_AT_ONCE = 16
_SECONDS_BETWEEN_SAVES = 20.0
_KEPT = "The images that were checked are not checked again."
_ALLOWED_SHARE, _ALLOWED_FEW, _ALLOWED_SHARE_OF_FEW = 0.001, 10, 0.05
_NAMED = 3


@dataclass(frozen=True)
class CheckedSource:
    """The images of a source that can't be decoded, and the sizes of the others.

    Args:
        checked: number of images that were checked.
        rejected: by position.
        sizes: up to two different ones: (width, height, key of the first image).
    """

    checked: int = 0
    rejected: dict[int, Rejected] = field(default_factory=dict)
    sizes: list[tuple[int, int, str]] = field(default_factory=list)

    def is_bad(self, position: int) -> bool:
        """Return True for an image that can't be decoded."""
        return position in self.rejected

    def in_order(self) -> list[Rejected]:
        """Return the images that can't be decoded, by position."""
        return [self.rejected[position] for position in sorted(self.rejected)]


def allowed_share(samples: int) -> float:
    """Return the share of unusable images accepted by default: 0.1 %, or ten of a small set if under 5 %."""
    return max(_ALLOWED_SHARE, min(_ALLOWED_FEW / samples, _ALLOWED_SHARE_OF_FEW))


def too_many(rejected: Sequence[Rejected], samples: int, allowed: float, listing: Path | None = None) -> UserError:
    """Return the error for more unusable images than the share `allowed` of `samples`."""
    share = len(rejected) / samples
    named = first_few([f"{one.key} ({one.reason})" for one in rejected], _NAMED, "; ")
    where = "" if listing is None else f" (all in {listing})"
    enough = f"{min(1.0, share * 1.05 + 1e-6):.2g}"  # a share just above, in two digits
    return UserError(
        f"{len(rejected):,} of {samples:,} images ({share:.2%}) can't be used, more than --max-rejected {allowed:g} "
        f"allows: {named}{where}",
        f"run the same command with --max-rejected {enough} to leave them out"
        if len(rejected) < samples
        else "no image is left",
    )


def can_be_checked(source: Source) -> TypeGuard[SeekableSource]:
    """Return True if reading the source twice costs little: its images are on a disk and can be read by position."""
    return isinstance(source, SeekableSource) and not any("://" in str(path) for path in source.description["paths"])


def checked_source(source: SeekableSource, context: Context) -> CheckedSource:
    """Decode every image once, on all cores of rank 0, unless that was done before; all processes get the result.

    Raises Stopped after a signal, with what was checked kept.
    """
    group = context.group
    found = _as_record(_checked_here(source, context)) if group.is_main else None
    return _of_record(group.from_main(found))


def _checked_here(source: SeekableSource, context: Context) -> CheckedSource:
    path = context.runs / _FOLDER / f"{_key(source)}.json"
    found = _kept(path, len(source))
    if found.checked == len(source):
        return found
    found = _pass(source, found, path, context)
    _save(path, found, context)
    return found


def _pass(source: SeekableSource, before: CheckedSource, path: Path, context: Context) -> CheckedSource:
    """Decode the images that were not checked before."""
    rejected, sizes = dict(before.rejected), list(before.sizes)

    def look(task: range) -> list[tuple[str, tuple[int, int] | BadImage]]:
        return [(sample.key, _size(sample.data)) for sample in source.read_many(task)]

    firsts = range(before.checked, len(source), _FILES_AT_ONCE)
    tasks = (range(first, min(first + _FILES_AT_ONCE, len(source))) for first in firsts)
    context.progress.start("check the images", len(source), done=before.checked)
    saved = time.monotonic()
    for task, files in in_order(look, tasks, available_cores()):
        for position, (key, size) in zip(task, files, strict=True):
            if isinstance(size, BadImage):
                rejected[position] = Rejected(key, size.kind, size.text)
            elif len(sizes) < 2 and size not in [(width, height) for width, height, _ in sizes]:
                sizes.append((*size, key))
        context.progress.advance(len(task))
        if context.stop.requested or time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
            _save(path, CheckedSource(task.stop, rejected, sizes), context)
            saved = time.monotonic()
            context.stop.check(_KEPT)
    context.progress.close()
    return CheckedSource(len(source), rejected, sizes)


def _size(data: bytes) -> tuple[int, int] | BadImage:
    try:
        height, width = decode(data).shape[:2]
    except BadImage as error:
        return error
    return width, height


def _save(path: Path, found: CheckedSource, context: Context) -> None:
    """Keep the result, if that is possible: without it, the images are only checked again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "format_version": FORMAT_VERSION} | _as_record(found))
    except (OSError, UserError) as error:
        context.say(f"the check of the images can't be saved in {path}: {getattr(error, 'message', error)}")


def _kept(path: Path, count: int) -> CheckedSource:
    """Return what an earlier pass found; nothing for a file that is missing or of another version."""
    if not path.is_file():
        return CheckedSource()
    try:
        record = read_json(path)
        if record["format"] != FORMAT or record["format_version"] != FORMAT_VERSION:
            return CheckedSource()
        found = _of_record(record)
    except (UserError, KeyError, TypeError, ValueError):
        return CheckedSource()
    return found if 0 <= found.checked <= count else CheckedSource()


def _as_record(found: CheckedSource) -> dict[str, Any]:
    rejected = [[position, one.key, one.kind, one.reason] for position, one in sorted(found.rejected.items())]
    return {"checked": found.checked, "rejected": rejected, "sizes": [list(size) for size in found.sizes]}


def _of_record(record: dict[str, Any]) -> CheckedSource:
    rejected = {int(position): Rejected(key, kind, reason) for position, key, kind, reason in record["rejected"]}
    sizes = [(int(width), int(height), str(key)) for width, height, key in record["sizes"]]
    return CheckedSource(int(record["checked"]), rejected, sizes)


def _key(source: SeekableSource) -> str:
    decoders = {name: version for name, version in versions().items() if name in _DECODERS}
    record = json.dumps([source.description["fingerprint"], decoders], sort_keys=True)
    return hashlib.sha256(record.encode()).hexdigest()[:32]
