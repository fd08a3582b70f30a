"""`titokctl verify`: is a token cache what it was when it was written, and is every image of its source in it?"""

from dataclasses import dataclass, field
from pathlib import Path

from titokctl.data.sources import reopen_source
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_checksums import damaged_places
from titokctl.progress import Progress


@dataclass(frozen=True)
class Verification:
    """What was checked, and what is wrong; `remarks` are checks that could not be made."""

    path: Path
    rows: int
    views: list[str]
    sha256: str
    source_checked: bool
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def verify(path: Path, *, progress: Progress, stop: StopRequest) -> Verification:
    """Check structure, types, ids, labels, checksums, and the number of rows against the source, if that is there.

    Raises UserError when the file is no token cache or its structure is wrong; what else is wrong is in `problems`.
    """
    cache = TokenCache.open(path)
    progress.start("verify", len(cache) * len(cache.views), "rows")

    def advance(rows: int) -> None:
        progress.advance(rows)
        stop.check()

    problems = damaged_places(path, advance)
    progress.close()
    wrong, remarks = _against_source(cache)
    return Verification(path, len(cache), list(cache.views), cache.sha256, not remarks, problems + wrong, remarks)


def _against_source(cache: TokenCache) -> tuple[list[str], list[str]]:
    """Problems with the number of rows, and why it could not be checked."""
    recorded, rejected = cache.header.source, cache.header.num_rejected
    paths = recorded.get("paths")
    if rejected is None or not isinstance(paths, list) or not paths:
        return [], ["the cache does not say which images it was made of"]
    try:
        source = reopen_source(recorded)
    except UserError as error:
        return [], [f"the source can't be read: {error.message}"]
    if source.description.get("fingerprint") != recorded.get("fingerprint"):
        return [], [f"the source {paths[0]} has changed since the cache was made"]
    expected = len(source) + len(source.problems)
    if len(cache) + rejected != expected:
        return [f"{len(cache):,} rows + {rejected:,} rejected, but the source has {expected:,} images"], []
    return [], []
