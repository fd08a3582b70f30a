"""How fast a checkpoint is written, beside the plainest way to put the same bytes on the same disk.

    python -m benchmarks.checkpoint [--gib 2] [--folder /where/runs/live] [--device cpu|cuda] [--quick]
        [--json out.json]

The baseline writes one file from memory and flushes it (write + fsync). `snapshot` is what the training waits for; the
rest includes hashing: SHA-256 of everything. `tokenizer_l32_s` is what a tokenizer of 641 M parameters would take at
the same rate: weights, average and two moments in float32.
"""

import itertools
import os
import tempfile
from pathlib import Path

import torch

from benchmarks.measuring import BASELINE, Parts, Way, compare, parser, report
from titokctl.formats.checkpoint import Checkpoint, CheckpointWriter, Policy

PARAMETERS, COPIES, BYTES = 641.1e6, 4, 4


def main() -> None:
    """Measure and print."""
    made = parser(__doc__)
    made.add_argument("--gib", type=float, help="of the state (default: 2, or 0.25 with --quick)")
    made.add_argument("--folder", type=Path, help="on the disk to be measured; the folder for temporary files else")
    given = made.parse_args()
    count = max(1, int((given.gib or (0.25 if given.quick else 2)) * 64))
    # Of the sizes that the matrices of a large transformer have.
    tensors = {f"layer{i:04d}": torch.randn(1024, 4096, device=given.device) for i in range(count)}
    data = torch.cat([t.flatten() for t in tensors.values()]).cpu().numpy().data
    numbers = itertools.count(1)
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as folder,
        CheckpointWriter(Path(folder) / "checkpoints", Policy(1)) as writer,
    ):

        def plain() -> None:
            with open(Path(folder) / "plain", "wb") as file:
                file.write(data)
                os.fsync(file.fileno())

        def save() -> Parts:
            parts = Parts()
            parts.time("snapshot", given.device, lambda: writer.save(Checkpoint(next(numbers), tensors, {})))
            writer.wait()
            return parts

        def settle() -> None:
            (Path(folder) / "plain").unlink(missing_ok=True)
            os.sync()

        ways = {
            BASELINE: Way(plain, bytes=data.nbytes, before=settle),
            "ours": Way(save, bytes=data.nbytes, before=settle),
        }
        found = compare(ways, given.device, 1 if given.quick else 3, training=True)
    seconds = found["ours"].seconds * PARAMETERS * COPIES * BYTES / data.nbytes
    rates = {f"{name}_gb_per_s": f"{data.nbytes / found[name].seconds / 1e9:.3g}" for name in ways}
    report("checkpoint: a state to the disk", given, found, tokenizer_l32_s=f"{seconds:.3g}", **rates)


if __name__ == "__main__":
    main()
