"""Writing, merging, opening, checking and inspecting token caches, beside plain NumPy files; their peak memory.

    python -m benchmarks.cache [--rows 1281167] [--folder DIR] [--quick] [--json out.json]

Random ids in 2 views and in parts of 1,024 rows, as `titokctl tokenize` writes them. `np.save` of the same arrays with
fsync is the baseline of writing and merging, `np.load` that of opening. The peak memory is that of a process that does
nothing else, with the pages of memory-mapped files.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measuring import BASELINE, Parts, Way, compare, parser, peak_memory_of, report
from titokctl.context import Context
from titokctl.distributed.stop import StopRequest
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import PartsFolder, TokenPart, merge, summaries
from titokctl.formats.token_tally import Tally
from titokctl.jobs.caches.inspect import Inspect
from titokctl.jobs.caches.merge import Merge
from titokctl.jobs.caches.verify import Verify

IMAGENET = 1_281_167
TOKENS, CODES, UNIT = 32, 4096, 1024


def main() -> None:
    """Measure and print."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, help=f"default: {IMAGENET}, or 20000 with --quick")
    made.add_argument("--folder", type=Path, help="on the disk to be measured; the folder for temporary files else")
    given = made.parse_args()
    rows = given.rows or (20_000 if given.quick else IMAGENET)
    with tempfile.TemporaryDirectory(dir=given.folder) as name, StopRequest() as stop:
        folder = Path(name)
        cache, both = folder / "tokens.h5", folder / "both.h5"

        def again() -> None:
            cache.unlink(missing_ok=True)
            shutil.rmtree(folder / "tokens.h5.parts", ignore_errors=True)
            os.sync()

        ways = {
            BASELINE: Way(lambda: save_plain(folder, rows), items=rows, before=os.sync),
            "write and merge": Way(lambda: write(folder, rows), items=rows, before=again),
            "np.load": Way(lambda: load_plain(folder, rows), items=rows, beside="np.load"),
            "open and load": Way(lambda: open_cache(cache, rows), items=rows, beside="np.load"),
            "inspect": Way(lambda: Inspect(cache).run(Context()), items=rows, beside=""),
            "verify": Way(lambda: Verify(cache).run(Context(stop=stop)), items=rows, beside=""),
            "merge two caches": Way(
                lambda: Merge([cache] * 2, both).run(Context()),
                items=2 * rows, beside="", before=lambda: both.unlink(missing_ok=True),
            ),
        }  # fmt: skip
        found = compare(ways, "cpu", 1 if given.quick else 3)
        peaks = {"imports_peak_mib": peak_memory_of("from benchmarks import cache") >> 20}
        peaks |= {f"{what}_peak_mib": peak_memory_of(_ALONE.format(what), folder, rows) >> 20 for what in _MEASURED}
    report("cache: token caches on the disk", given, found, rows=rows, tokens=TOKENS, views=2, **peaks)


_MEASURED = ("write", "open_cache")
_ALONE = """
import sys; from pathlib import Path; from benchmarks import cache
folder = Path(sys.argv[1])
cache.{0}(folder / ("alone" if "{0}" == "write" else "tokens.h5"), int(sys.argv[2]))
"""


def header() -> CacheHeader:
    """Return the header of a cache with one further view."""
    return CacheHeader(
        tokenizer={},
        encoder_sha256="e" * 64,
        weights_sha256="f" * 64,
        codebook_size=CODES,
        num_latent_tokens=TOKENS,
        image_size=256,
        preprocessing={"size": 256},
        source={"kind": "benchmark"},
        views={"flip": {"flip": True}},
        class_names=tuple(f"n{c:08d}" for c in range(1000)),
    )


def write(folder: Path, rows: int) -> Parts:
    """Write a part for every 1,024 rows, each flushed to the disk, then merge them."""
    folder.mkdir(exist_ok=True)
    parts, found = PartsFolder(folder / "tokens.h5"), Parts()
    parts.path.mkdir()
    ids = np.random.default_rng(0).integers(0, CODES, (UNIT, TOKENS), np.uint16)
    found.time("write parts", "cpu", lambda: [parts.write(part(ids, first, rows)) for first in range(0, rows, UNIT)])
    found.time("merge parts", "cpu", lambda: merged(parts, -(-rows // UNIT)))
    return found


def part(ids: np.ndarray, first: int, rows: int) -> TokenPart:
    """Return the part that begins at row `first`."""
    n = min(UNIT, rows - first)
    numbers = np.arange(first, first + n)
    keys, labels = np.char.mod(b"n00000000/n00000000_%08d", numbers), (numbers // 1300 % 1000).astype(np.int32)
    block = np.roll(ids[:n], first, axis=1)
    return TokenPart(first // UNIT, first, n, f"unit {first}", block, labels, keys, {"flip": block[:, ::-1]})


def merged(parts: PartsFolder, units: int) -> None:
    """Merge the parts into one file."""
    tally = Tally()
    for summary in summaries(parts, units):
        tally.add(summary)
    merge(parts, header(), units, tally, lambda n: None)


def save_plain(folder: Path, rows: int) -> None:
    """Write as many bytes with np.save, flushed."""
    for name in ("plain", "flip"):
        with (folder / f"{name}.npy").open("wb") as file:
            np.save(file, np.zeros((rows, TOKENS), np.uint16))
            file.flush()
            os.fsync(file.fileno())


def open_cache(path: Path, rows: int) -> None:
    """Open, check all ids, and load ids and labels."""
    cache = TokenCache.open(path)
    assert np.array(cache.ids).shape == (rows, TOKENS)
    assert np.array(cache.labels).shape == (rows,)


def load_plain(folder: Path, rows: int) -> None:
    """Read the ids with np.load."""
    assert np.load(folder / "plain.npy", allow_pickle=False).shape == (rows, TOKENS)


if __name__ == "__main__":
    main()
