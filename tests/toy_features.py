"""A feature network of no weights, as a package outside this one brings it: colours, and a classifier of three."""

import os
from collections.abc import Mapping
from pathlib import Path

from command_line import ROOT

NAME = "toy"
_MODULE = """
import torch
from titokctl.evaluation.extractors import Extractor

def make(options):
    def network(images):
        x = (images.float() if options.device == "mps" else images.double()) / 255  # an Apple GPU has no float64
        pool = torch.cat([x.mean((1, 2)), x[:, :2, :2].mean((1, 2)), x.std((1, 2))], 1)
        spatial = torch.stack([x[:, row, 0] for row in (0, 5, 10)], 1).flatten(1)
        return {"pool": pool.float(), "spatial": spatial.float(), "logits": (8 * x[:, 3, 3]).float()}

    description = {"network": "colours", "device": options.device}
    return Extractor("toy", network, {"pool": 9, "spatial": 9, "logits": 3}, 4, options.device, description)
"""


def install(folder: Path) -> Mapping[str, str]:
    """Write the package into `folder`; returns the environment in which processes find it."""
    info = folder / "elsewhere-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[titokctl.features]\n{NAME} = toy_elsewhere:make\n")
    (folder / "toy_elsewhere.py").write_text(_MODULE)
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
