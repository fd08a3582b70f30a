"""The output of a tokenize job: may it be made, what do its parts add up to, and making it from them."""

import itertools
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from titokctl.data.sources import Source
from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_folder import finish_folder
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_merge import Tally, merge, summaries, write_rejected
from titokctl.formats.token_parts import MANIFEST, PartsFolder, differences
from titokctl.progress import Progress

_ALLOWED_SHARE, _ALLOWED_FEW, _ALLOWED_SHARE_OF_FEW = 0.001, 10, 0.05


def check_output(output: Path, overwrite: bool, keep: bool = False) -> None:
    """Raise UserError when `output` is taken and may not be replaced, or can't be written.

    Args:
        keep: the output is a folder that keeps its parts.
    """
    if keep:
        _check_folder(output, overwrite)
    elif output.is_dir():
        raise UserError(f"{output} is a folder", "name a file, e.g. -o tokens.h5")
    elif output.exists() and not overwrite and not PartsFolder(output).path.is_dir():
        # With parts beside it, it may be what a process finished that was killed before it could remove them.
        raise UserError(f"{output} exists already", "choose another -o, or replace it with --overwrite")
    folder = next(p for p in output.absolute().parents if p.exists())
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, so {output} can't be made", "choose another -o")


def _check_folder(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file", "name a folder, or leave the / at the end out")
    if not output.is_dir():
        return
    if (output / MANIFEST).exists():
        if "complete" in PartsFolder(output, keep=True).manifest() and not overwrite:
            raise UserError(f"{output} exists already", "choose another -o, or replace it with --overwrite")
    elif any(path.name != ".lock" for path in output.iterdir()):
        raise UserError(f"the folder {output} is not empty", "choose another -o")


def check_space(output: Path, header: CacheHeader, samples: int) -> None:
    """Raise UserError when the disk has no room. Parts and file lie side by side while they are merged."""
    needed = 2 * samples * (header.row_bytes + 64)
    folder = next(p for p in output.absolute().parents if p.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{output} needs about {needed / 1e6:,.0f} MB while it is made, and {folder} has {free / 1e6:,.0f} MB free",
            "free some space, or write to another disk with -o",
        )


def finished_before(output: Path, header: CacheHeader) -> TokenCache | None:
    """The output, if an earlier run or another job has finished it. Raises UserError when it is another one."""
    if not (output.is_file() or (output / MANIFEST).is_file()):
        return None
    if output.is_dir() and "complete" not in PartsFolder(output, keep=True).manifest():
        return None
    cache = TokenCache.open(output, check_ids=False)
    found, wanted = (json.loads(json.dumps({"header": asdict(h)})) for h in (cache.header, header))
    changes = differences(found, wanted)
    if changes:
        raise UserError(f"{output} exists already, made with other settings: {'; '.join(changes)}", "choose another -o")
    return cache


def make_output(
    folder: PartsFolder,
    source: Source,
    header: CacheHeader,
    max_rejected: float | None,
    compress: bool,
    progress: Progress,
) -> Tally:
    """Write the list of rejected images, then merge the parts, or complete their folder.

    Args:
        header: of the output.
        max_rejected: the largest share of images that may be unusable; None as `allowed_share` says.
        compress: deflate the rows of the file.

    Returns what the parts and what the source could not give add up to.

    Raises UserError when a part is missing or damaged, rows and rejected images are not the whole source, or too many
    are rejected.
    """
    units = len(source.units)
    tally = _tally(folder, source)
    _check_rejected(folder, source, tally, max_rejected, progress)
    progress.start("check" if folder.keep else "merge", tally.rows, "rows")
    if folder.keep:
        finish_folder(folder, header, units, tally, progress.advance)
    else:
        merge(folder, header, units, tally, progress.advance, compress)
        folder.remove()
    progress.close()
    if compress:
        plain, size = tally.rows * (header.row_bytes + 4), folder.output.stat().st_size
        progress.say(f"compressed to {size:,} bytes, {1 - size / plain:.0%} less than {plain:,} without keys")
    return tally


def _tally(folder: PartsFolder, source: Source) -> Tally:
    tally = Tally()
    for summary in summaries(folder, len(source.units)):
        tally.add(summary)
    tally.reject(map(asdict, source.problems))
    if not source.is_whole(tally.samples):
        raise UserError(
            f"{tally.rows:,} rows + {tally.rejected:,} rejected are not the {len(source) + len(source.problems):,} "
            "images of the source",
            "the source changed while it was read: start afresh with --overwrite",
        )
    return tally


def _check_rejected(
    folder: PartsFolder, source: Source, tally: Tally, max_rejected: float | None, progress: Progress
) -> None:
    """List what has no row. Raises UserError when that is too much."""
    parts = summaries(folder, len(source.units)) if tally.rejected else ()
    lost = ({"unit": part.name} | one for part in parts for one in part.rejected)
    listing = folder.output.with_name(folder.output.name + ".rejected.jsonl")
    write_rejected(listing, itertools.chain(map(asdict, source.problems), lost))
    if not tally.rejected:
        return
    few = f"{tally.rejected:,} of {tally.samples:,} images"
    progress.warn(f"{few} can't be used: {listing}")
    share = tally.rejected / tally.samples
    allowed = allowed_share(tally.samples) if max_rejected is None else max_rejected
    if tally.rows == 0 or share > allowed:
        more = f" and {tally.rejected - len(tally.examples):,} more" * (tally.rejected > len(tally.examples))
        enough = f"{min(1.0, share * 1.05 + 1e-6):.2g}"  # a share just above, in two digits
        raise UserError(
            f"{few} ({share:.2%}) can't be used, more than --max-rejected {allowed:g} allows: "
            f"{'; '.join(tally.examples)}{more} (all in {listing})",
            f"the finished parts are kept: run the same command with --max-rejected {enough} to do without them"
            if tally.rows
            else "none is left",
        )


def allowed_share(samples: int) -> float:
    """The largest share of unusable images that is taken for granted: 0.1 %, or ten of a small set if under 5 %."""
    return max(_ALLOWED_SHARE, min(_ALLOWED_FEW / samples, _ALLOWED_SHARE_OF_FEW))
