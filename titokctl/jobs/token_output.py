"""The output of a tokenize job: may it be made, what do its parts add up to, and making it from them."""

import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
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


@dataclass
class TokenOutput:
    """From all parts to the output.

    Args:
        header: of the output.
        compress: deflate the rows of the file.
    """

    folder: PartsFolder
    source: Source
    header: CacheHeader
    compress: bool
    progress: Progress

    def tally(self) -> Tally:
        """What the parts and what the source could not give add up to.

        Raises UserError when a part is missing or damaged, or rows and rejected images are not the whole source.
        """
        tally = Tally()
        for summary in summaries(self.folder, len(self.source.units)):
            tally.add(summary)
        tally.reject(self._problems())
        if not self.source.is_whole(tally.samples):
            expected = len(self.source) + len(self.source.problems)
            raise UserError(
                f"{tally.rows:,} rows + {tally.rejected:,} rejected are not the {expected:,} images of the source",
                "the source changed while it was read: start afresh with --overwrite",
            )
        return tally

    def check_rejected(self, tally: Tally, max_rejected: float | None) -> None:
        """Write the list of rejected images. Raises UserError when they are too many."""
        output = self.folder.output
        listing = output.with_name(output.name + ".rejected.jsonl")
        write_rejected(listing, self._rejected() if tally.rejected else ())
        if not tally.rejected:
            return
        self.progress.warn(f"{tally.rejected:,} of {tally.samples:,} images can't be used: {listing}")
        share = tally.rejected / tally.samples
        allowed = allowed_share(tally.samples) if max_rejected is None else max_rejected
        if tally.rows == 0 or share > allowed:
            more = f" and {tally.rejected - len(tally.examples):,} more" * (tally.rejected > len(tally.examples))
            kept = "the finished parts are kept: run the same command "
            raise UserError(
                f"{tally.rejected:,} of {tally.samples:,} images ({share:.2%}) can't be used, more than --max-rejected "
                f"{allowed:g} allows: {'; '.join(tally.examples)}{more} (all in {listing})",
                "none is left"
                if tally.rows == 0
                else f"{kept}with --max-rejected {_rounded_up(share)} to do without them",
            )

    def make(self, tally: Tally) -> str:
        """Merge the parts, or complete their folder. Returns the checksum of contents."""
        units, folder = len(self.source.units), self.folder
        self.progress.start("check" if folder.keep else "merge", tally.rows, "rows")
        if folder.keep:
            sha256 = finish_folder(folder, self.header, units, tally, self.progress.advance)
        else:
            merge(folder, self.header, units, tally, self.progress.advance, self.compress)
            sha256 = TokenCache.open(folder.output, check_ids=False).sha256
            folder.remove()
        self.progress.close()
        self._say_about(tally)
        return sha256

    def _say_about(self, tally: Tally) -> None:
        if self.compress and not self.folder.keep:
            plain = tally.rows * (self.header.row_bytes + 4)
            size = self.folder.output.stat().st_size
            self.progress.say(f"compressed to {size:,} bytes, {1 - size / plain:.0%} less than {plain:,} without keys")

    def _rejected(self) -> Iterable[dict[str, str]]:
        parts = summaries(self.folder, len(self.source.units))
        return itertools.chain(self._problems(), ({"unit": part.name} | one for part in parts for one in part.rejected))

    def _problems(self) -> Iterator[dict[str, str]]:
        """What the source itself could not give."""
        return (asdict(problem) for problem in self.source.problems)


def allowed_share(samples: int) -> float:
    """The largest share of unusable images that is taken for granted: 0.1 %, or ten of a small set if under 5 %."""
    return max(_ALLOWED_SHARE, min(_ALLOWED_FEW / samples, _ALLOWED_SHARE_OF_FEW))


def _rounded_up(share: float) -> str:
    """A share just above `share`, in two digits."""
    return f"{min(1.0, share * 1.05 + 1e-6):.2g}"
