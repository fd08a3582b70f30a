"""Writing, merging and checking a cache takes the same memory for many rows as for few."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import json, resource, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from test_token_cache import header
from titokctl.formats.token_cache import TokenCache
from titokctl.formats.token_parts import merge, summaries
from titokctl.formats.token_tally import Tally
from titokctl.formats.token_parts import PartsFolder, TokenPart

units, parts, tally = int(sys.argv[3]), PartsFolder(Path(sys.argv[1])), Tally()
parts.path.mkdir()
ids, labels = np.zeros((1024, 4), "<u2"), np.zeros(1024, np.int32)
for unit in range(units):
    keys = np.array([f"{unit * 1024 + i:012d}".encode() for i in range(1024)])
    parts.write(TokenPart(unit, unit * 1024, 1024, "", ids, labels, keys, {"flip": ids}))
for summary in summaries(parts, units):
    tally.add(summary)
merge(parts, header(), units, tally, lambda n: None)
assert TokenCache.open(parts.output, check_ids=False).damage(lambda n: None) == []
print(json.dumps([tally.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path: Path) -> None:
    peaks = {}
    for units in (50, 800):
        command = [sys.executable, "-c", CODE, str(tmp_path / f"{units}.h5"), str(Path(__file__).parent), str(units)]
        rows, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert rows == units * 1024
        peaks[units] = peak
    assert peaks[800] < peaks[50] + 16, peaks
