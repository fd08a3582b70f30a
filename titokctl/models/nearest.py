"""The nearest of V vectors: of codes to latents, and of latents to codes.

Letters: V codebook size, C token size.
"""

import torch

# At most this many distances are held at once (256 MiB of float32).
_MAX_DISTANCES = 1 << 26


@torch.no_grad()
def nearest(points: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Index (...) int64 of the code with the smallest squared distance, computed in float32.

    Args:
        points: (..., C) of any floating dtype.
        codes: (V, C) of any floating dtype.
    """
    if torch.compiler.is_exporting():  # the batch has no fixed size that could be divided
        return _nearest(points.float(), codes.float())
    # Distances in bfloat16 have 8 bits: near codes would tie, and ids would depend on the autocast around them.
    with torch.autocast(points.device.type, enabled=False):
        points, codes = points.float(), codes.float()
        rows = points.reshape(-1, points.shape[-1]).split(max(1, _MAX_DISTANCES // len(codes)))
        return torch.cat([_nearest(r, codes) for r in rows]).view(points.shape[:-1])


def _nearest(points: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Points (..., C) and codes (V, C), float32, to (...) int64."""
    norms = codes.square().sum(-1)  # (V,); |point|^2 is left out since it changes no comparison
    rows = points.reshape(-1, points.shape[-1])
    return torch.addmm(norms, rows, codes.T, alpha=-2).argmin(-1).view(points.shape[:-1])
