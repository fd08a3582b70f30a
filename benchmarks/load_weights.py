"""Loading TiTok-L-32 (641 M parameters), compared with reading its file: time, and peak memory of a process.

    python -m benchmarks.load_weights [--official] [--folder /tmp] [--model titok-l-32] [--device cpu|cuda] [--quick]
        [--json out.json]

Writes a file of random weights, which is then read from the page cache. `memory_ratio` is relative to the size of the
file.
"""

import multiprocessing
import tempfile
from pathlib import Path

from benchmarks.measuring import BASELINE, Way, compare, parser, peak_memory_of, report
from titokctl.weights.load import load_tokenizer

MODELS = ("titok-l-32", "titok-b-64", "titok-s-128")
_LOAD = "import sys; from titokctl.weights.load import load_tokenizer; model = load_tokenizer(sys.argv[1])"


def main() -> None:
    """Measure and print."""
    made = parser(__doc__)
    made.add_argument("--model", default=MODELS[0], choices=MODELS)
    made.add_argument("--official", action="store_true", help="in the layout of the published files")
    made.add_argument("--folder", type=Path, help="where to write (default: the folder for temporary files)")
    given = made.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / ("weights" if given.official else "weights.safetensors")
        # In a separate process, which releases its memory.
        maker = multiprocessing.get_context("spawn").Process(target=make, args=(path, given.model, given.official))
        maker.start()
        maker.join()
        file = path / "model.safetensors" if given.official else path
        size = file.stat().st_size
        ratio = peak_memory_of(_LOAD, path) / size
        ways = {
            BASELINE: Way(lambda: read(file), bytes=size),
            "ours": Way(lambda: load_tokenizer(str(path), given.device), bytes=size),
        }
        found = compare(ways, given.device, 1 if given.quick else 3, training=True)
    report(f"load_weights: {given.model}, a file to a network", given, found, memory_ratio=round(ratio, 3))


def make(path: Path, name: str, official: bool) -> None:
    """Write the model with random weights, in our layout or in the official one."""
    import torch

    from titokctl.weights.known import BY_NAME
    from titokctl.weights.official.files import write_official
    from titokctl.weights.store import Weights, save, shapes, skeleton

    config = BY_NAME[name].config
    needed = shapes(skeleton("tokenizer", config).state_dict())
    weights = Weights("tokenizer", config, {name: torch.randn(shape) for name, shape in needed.items()})
    (write_official if official else save)(path, weights)


def read(path: Path) -> None:
    """Read all bytes, 16 MiB at a time."""
    buffer = bytearray(16 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


if __name__ == "__main__":
    main()
