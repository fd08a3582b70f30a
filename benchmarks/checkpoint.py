"""How fast a checkpoint is written, beside the plainest way to put the same bytes on the same disk.

    python -m benchmarks.checkpoint                        # 2 GiB
    python -m benchmarks.checkpoint --gib 10 --folder /where/runs/live

The baseline writes one file from memory and flushes it (write + fsync). Both are measured alternately; what is kept of
each is the best of the rounds, since a shared disk only ever makes them slower. `snapshot_s` is what the training waits
for, and `save_s` includes hashing: SHA-256 of everything. `extrapolated_s` is snapshot and save of a tokenizer of 641 M
parameters: weights, average and two moments in float32.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch

from titokctl.formats.checkpoint import Checkpoint, CheckpointWriter, Policy

PARAMETERS, COPIES, BYTES = 641.1e6, 4, 4


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; the folder for temporary files else")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="where the state lies while it is trained")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    # Of the sizes that the matrices of a large transformer have.
    tensors = {
        f"layer{i:04d}": torch.randn(1024, 4096, device=words.device) for i in range(max(1, int(words.gib * 64)))
    }
    size = sum(t.nbytes for t in tensors.values())
    with (
        tempfile.TemporaryDirectory(dir=words.folder) as folder,
        CheckpointWriter(Path(folder) / "checkpoints", Policy(1)) as writer,
    ):
        rounds = [one_round(Path(folder), writer, tensors, number) for number in range(words.rounds)]
    best = {name: min(r[name] for r in rounds) for name in rounds[0]}
    wanted = PARAMETERS * COPIES * BYTES
    found = {"bytes": size} | best
    found |= {"save_gb_per_s": size / best["save_s"] / 1e9, "plain_gb_per_s": size / best["plain_s"] / 1e9}
    found |= {
        "save_over_plain": best["save_s"] / best["plain_s"],
        "extrapolated_s": wanted / size * (best["save_s"] + best["snapshot_s"]),
    }
    print(json.dumps(found) if words.json else "\n".join(f"{k:20} {v:.4g}" for k, v in found.items()))


def one_round(
    folder: Path, writer: CheckpointWriter, tensors: dict[str, torch.Tensor], number: int
) -> dict[str, float]:
    """Seconds for both ways, after everything else is on the disk."""
    data = torch.cat([t.flatten() for t in tensors.values()]).cpu().numpy().data
    os.sync()
    began = time.perf_counter()
    with open(folder / "plain", "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    plain = time.perf_counter() - began
    (folder / "plain").unlink()
    del data
    os.sync()
    began = time.perf_counter()
    writer.save(Checkpoint(number + 1, tensors, {}))
    copied = time.perf_counter()
    writer.wait()
    done = time.perf_counter()
    return {"plain_s": plain, "snapshot_s": copied - began, "save_s": done - copied}


if __name__ == "__main__":
    main()
