"""A token cache of many rows: a folder of parts is merged, verified, opened, and a first shuffled batch is read.

    python -m benchmarks.many_rows [--rows 10000000] [--folder DIR] [--quick] [--json out.json]

Rows are synthetic: 24 random ids of two bytes, a label of four, and a key of nine digits, which the file deflates. Each
step is a process of its own, whose anonymous memory (RssAnon, that is without mapped files) is read every 20 ms. Needs
120 bytes of disk a row for a while; all of it is deleted at the end.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring import parser, report_numbers
from titokctl.data.order import batch_positions
from titokctl.formats.token_folder import finish_folder
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_parts import PartsFolder, TokenPart

TOKENS, CODES, CLASSES, BATCH, PER_PART = 24, 4096, 1000, 2048, 8192
_POLL_S = 0.02
_ORDER_BLOCK = 1 << 20
_OPEN = "import sys; from titokctl import TokenCache; print(len(TokenCache.open(sys.argv[1])))"
_BATCH = f"""
import sys, torch
from titokctl import TokenCache
from titokctl.data.tokens import TokenRows
rows = TokenRows(TokenCache.open(sys.argv[1], check_ids=False), ("plain",), None)
batch = rows.at(rows.positions(0, 0, {BATCH}), torch.zeros({BATCH}, dtype=torch.long))
print(tuple(batch.ids.shape), batch.labels.unique().numel())
"""


def main() -> None:
    """Measure and print."""
    made = parser(__doc__)
    made.add_argument("--rows", type=int, help="rows (default: 10,000,000, or 100,000 with --quick)")
    made.add_argument("--folder", type=Path, help="a folder on the disk to use; by default the one for temporary files")
    given = made.parse_args()
    rows = given.rows or (100_000 if given.quick else 10_000_000)
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="many-rows-", dir=given.folder) as root:
        parts, file = Path(root) / "parts", Path(root) / "tokens.h5"
        began = time.process_time()
        write(parts, rows)
        found["write_processor_s"] = time.process_time() - began
        titokctl = ["-m", "titokctl"]
        steps = {
            "merge": [*titokctl, "merge", str(parts), "-o", str(file), "--quiet"],
            "verify": [*titokctl, "verify", str(file), "--quiet"],
            "open": ["-c", _OPEN, str(file)],
            "open_and_batch": ["-c", _BATCH, str(file)],
        }
        for name, words in steps.items():
            seconds, processor, memory = measured(words)
            figures = {"s": seconds, "processor_s": processor, "anonymous_mib": memory >> 20}
            print(name, figures, file=sys.stderr)
            found |= {f"{name}_{what}": value for what, value in figures.items()}
            if name == "merge":
                found["file_gb"] = file.stat().st_size / 1e9
                shutil.rmtree(parts)
    began = time.process_time()
    check_permutation(rows)
    found |= {"order_is_a_permutation": True, "order_processor_s": time.process_time() - began}
    report_numbers(f"many_rows: {rows:,} rows", given, found, load=f"{os.getloadavg()[0]:.1f}")


def write(folder: Path, rows: int) -> None:
    """Write a finished folder of parts."""
    names = tuple(f"class {c}" for c in range(CLASSES))
    header = CacheHeader({}, "0" * 64, "0" * 64, CODES, TOKENS, 256, {}, {"kind": "synthetic"}, class_names=names)
    parts, units = PartsFolder(folder, keep=True), -(-rows // PER_PART)
    with parts.locked():
        parts.begin(header, units)
        for unit in range(units):
            first = unit * PER_PART
            count, draws = min(PER_PART, rows - first), np.random.default_rng(unit)
            numbers = np.arange(first, first + count)
            digits = (numbers[:, None] // 10 ** np.arange(8, -1, -1) % 10 + ord("0")).astype(np.uint8)
            ids = draws.integers(0, CODES, (count, TOKENS), np.uint16)
            labels = (numbers % CLASSES).astype(np.int32)
            parts.write(TokenPart(unit, first, count, f"{first} on", ids, labels, digits.view("S9")[:, 0]))
        finish_folder(parts, header, units, 0, lambda rows: None)


def measured(words: list[str]) -> tuple[float, float, int]:
    """Run Python with these arguments.

    Returns its seconds, its processor seconds, and the most anonymous memory it had, in bytes.
    """
    began, before, most = time.monotonic(), _processor_seconds(), 0
    with subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            most = max(most, _anonymous(process.pid))
            time.sleep(_POLL_S)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return time.monotonic() - began, _processor_seconds() - before, most


def _processor_seconds() -> float:
    """Return those of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _anonymous(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)


def check_permutation(rows: int) -> None:
    """Raise SystemExit unless the first epoch has each row exactly once."""
    seen = np.zeros(rows, bool)
    for step in range(-(-rows // _ORDER_BLOCK)):  # the last block goes on in the second epoch
        epochs, positions = batch_positions(0, step, _ORDER_BLOCK, rows)
        seen[positions[epochs == 0]] = True
    if not seen.all():
        raise SystemExit(f"{rows - int(seen.sum()):,} rows are missing from the first epoch")


if __name__ == "__main__":
    main()
