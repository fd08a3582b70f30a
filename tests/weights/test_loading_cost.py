"""The cost of loading: no second copy of the weights, and no compiler."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_building_a_skeleton_does_not_import_the_compiler():
    """torch imports it (seconds) to fill an embedding on the meta device with random numbers."""
    code = (
        "import sys\n"
        "from titokctl.weights.store import skeleton\n"
        "from titokctl.weights.known import BY_NAME\n"
        "for known in BY_NAME.values(): skeleton(known.kind, known.config)\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("layout", [[], ["--official"]], ids=["ours", "official"])
def test_peak_memory_of_loading_the_largest_model(tmp_path, layout):
    found = tmp_path / "found.json"
    words = ["--quick", "--folder", str(tmp_path), "--json", str(found), *layout]
    subprocess.run([sys.executable, "-m", "benchmarks.load_weights", *words], check=True, cwd=ROOT)
    assert json.loads(found.read_text())["facts"]["memory_ratio"] <= 1.3
