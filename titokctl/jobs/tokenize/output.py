"""The output of a tokenize command: may it be made, how many images have no row, and making it from the parts."""

import itertools
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from titokctl.data.source_check import allowed_share
from titokctl.data.sources import Source
from titokctl.data.sources.source import Rejected
from titokctl.errors import UserError
from titokctl.formats.folder_lock import contents_of
from titokctl.formats.object_store import is_store
from titokctl.formats.replacing import CACHE, check_free, check_name, is_of_kind
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_folder import finish_folder
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import PartsFolder, merge, summaries
from titokctl.formats.token_store import StoredParts
from titokctl.formats.token_tally import Tally, rejected_lines, write_rejected
from titokctl.formats.unfinished import made_with_other_settings
from titokctl.progress import Progress
from titokctl.readable import counted, size


@dataclass(frozen=True, kw_only=True)
class TokenizeResult:
    """The token cache that was made. rows + rejected = samples.

    `passed_over` are the files of the source that are not images, by suffix or type; `label_files` those that were read
    as labels. With the samples they are everything that was found. `classes` are those with at least one row, and
    `unlabelled` the rows without a label.
    `finished` is False while other jobs that share the work are not done.
    """

    output: Path
    finished: bool
    rows: int
    rejected: int
    samples: int
    rejected_by_kind: dict[str, int] = field(default_factory=dict)
    views: list[str]
    classes: int
    unlabelled: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    label_files: int = 0
    units_reused: int = 0
    seconds: float = 0.0
    images_per_second: float = 0.0
    sha256: str


def check_output(parts: PartsFolder, overwrite: bool) -> None:
    """Raise UserError when the output of `parts` can't be written, or something else than a token cache is there.

    Of a finished token cache, `finished_before` compares the settings.
    """
    output = parts.output
    if isinstance(parts, StoredParts):
        parts.check_free(overwrite)
        return
    check_name(output)
    if parts.keep:
        _check_folder(parts, overwrite)
    elif output.is_dir():
        raise UserError(f"{output} is a folder", "name a file, e.g. -o tokens.h5")
    elif not parts.path.is_dir() and (overwrite or not is_of_kind(output, CACHE)):
        # With parts beside it, a process was killed after it finished the output and before it deleted them.
        check_free(output, overwrite, CACHE)
    folder = next(p for p in output.absolute().parents if p.exists())
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, so {output} can't be made", "choose another -o")


def _check_folder(parts: PartsFolder, overwrite: bool) -> None:
    output = parts.output
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file", "name a folder, or leave out the / at the end")
    if not parts.is_begun() and output.is_dir() and contents_of(output):
        raise UserError(f"the folder {output} is not empty", "choose another -o")


def check_space(output: Path, header: CacheHeader, samples: int) -> None:
    """Raise UserError when the disk has too little room: while merging, both the parts and the file exist."""
    if is_store(output):
        return
    needed = 2 * samples * (header.row_bytes + 64)
    folder = next(p for p in output.absolute().parents if p.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{output} needs about {size(needed)} while it is made, and {folder} has {size(free)} free",
            "free some space, or write to another disk with -o",
        )


def finished_before(parts: PartsFolder, header: CacheHeader) -> TokenCache | None:
    """Return the output if an earlier run or another job finished it.

    Raises UserError when it was made with other settings than `header`.
    """
    if not (parts.is_complete() if parts.keep else parts.output.is_file()):
        return None
    cache = TokenCache.open(parts.output, check_ids=False)
    changed = parts.differences(cache.header, header)
    if changed:
        raise made_with_other_settings(parts.output, changed)
    return cache


def make_output(
    folder: PartsFolder,
    source: Source,
    header: CacheHeader,
    max_rejected: float | None,
    compress: bool,
    progress: Progress,
) -> Tally:
    """Write the list of rejected images, then merge the parts, or complete the folder that keeps them.

    Args:
        header: of the output.
        max_rejected: the largest share of images that may be unusable; None for `allowed_share`.
        compress: deflate the rows of the file.

    Returns the totals of all parts and of what the source left out.

    Raises UserError when a part is missing or damaged, rows and rejected images are not the whole source, or too many
    are rejected.
    """
    units = len(source.units)
    tally = _tally(folder, source)
    counted = {"passed_over": dict(sorted(tally.passed_over.items())), "label_files": tally.label_files}
    header = replace(header, source=header.source | counted)
    check_rejected(folder, units, source.problems, tally, max_rejected, progress)
    progress.start("check" if folder.keep else "merge", tally.rows, "rows")
    if folder.keep:
        finish_folder(folder, header, units, tally.rejected, progress.advance)
    else:
        merge(folder, header, units, tally, progress.advance, compress)
    progress.close()
    if compress:
        plain, stored = tally.rows * (header.row_bytes + 4), folder.output.stat().st_size
        progress.say(f"compressed to {stored:,} bytes, {1 - stored / plain:.0%} less than {plain:,} without keys")
    return tally


def _tally(folder: PartsFolder, source: Source) -> Tally:
    tally = Tally()
    for summary in summaries(folder, len(source.units)):
        tally.add(summary)
    tally.reject(map(asdict, source.problems))
    tally.pass_over(source.passed_over, source.description.get("label_files", 0))
    if not source.is_whole(tally.samples):
        raise UserError(
            f"{counted(tally.rows, 'rows')} + {tally.rejected:,} rejected are not the "
            f"{counted(len(source) + len(source.problems), 'images')} of the source",
            "the source changed while it was read: start over with --overwrite",
        )
    return tally


def check_rejected(
    folder: PartsFolder,
    num_units: int,
    problems: Sequence[Rejected],
    tally: Tally,
    max_rejected: float | None,
    progress: Progress,
) -> None:
    """Write the list of images without a row. Raises UserError when there are too many.

    Args:
        problems: images that belong to no unit.
        tally: the totals of all parts and of `problems`.
        max_rejected: as for `make_output`.
    """
    parts = summaries(folder, num_units) if tally.rejected else ()
    lost = ({"unit": part.name} | one for part in parts for one in part.rejected)
    rejected = itertools.chain(map(asdict, problems), lost)
    if isinstance(folder, StoredParts):
        listing = folder.write_rejected(rejected_lines(rejected))
    else:
        listing = folder.output.with_name(folder.output.name + ".rejected.jsonl")
        write_rejected(listing, rejected)
    if not tally.rejected:
        return
    few = f"{tally.rejected:,} of {counted(tally.samples, 'images')}"
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
            else "no image is left",
        )
