"""MaskGIT over latent tokens (arXiv 2202.04200): masked ids and a label to logits over the codebook.

The vocabulary is [0, V) codes, V the mask, V + 1 + c the class c, V + 1 + num_classes the null label.

Letters: B batch, K latent tokens, D width, V codebook size.
"""

import torch
from torch import nn

from titokctl.config.models import GeneratorConfig
from titokctl.models.maskgit.uvit import UvitBody
from titokctl.models.maskgit.vit import VitBody
from titokctl.models.registry import find

ENTRY_POINT_GROUP = "titokctl.generators"
BODIES = {"vit": VitBody, "uvit": UvitBody}
_INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
)  # fmt: skip


def check_integers(name: str, values: object) -> None:
    """Raise ValueError unless `values` is a tensor of integers (bool is none)."""
    if not isinstance(values, torch.Tensor):
        raise ValueError(f"{name}: expected a tensor of integers, got {type(values).__name__}")
    if values.dtype not in _INTEGERS:
        raise ValueError(f"{name}: expected a tensor of integers, got {values.dtype} {tuple(values.shape)}")


class MaskGit(nn.Module):
    """A generator: a transformer body found by `config.architecture`, and a linear head over the V codes.

    A body takes a GeneratorConfig and maps tokens (B, K + 1) int64, the label first, to hidden states (B, K + 1, D).
    Packages add bodies through the entry-point group "titokctl.generators", under the name that recipes use.

    Raises: UserError when no body has the name, with those there are.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        self.body = find("generator architecture", config.architecture, BODIES, ENTRY_POINT_GROUP)(config)
        self.head = nn.Linear(config.width, config.codebook_size)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Logits of every position.

        Args:
            ids: (B, K) integers in [0, V]; V is the mask.
            labels: (B,) integers in [0, num_classes]; num_classes, or None for the whole batch, is the null label.

        Returns: (B, K, V) float32.
        Raises: ValueError for wrong types, shapes and, in eval mode, for values out of range (training checks its own).
        """
        self._check_shapes(ids, labels)
        if not self.training and not torch.compiler.is_compiling():
            self._check_ranges(ids, labels)
        return self.logits(self.hidden(ids, labels))

    def hidden(self, ids: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Hidden states (B, K, D) of the ids; arguments as in `forward`, unchecked, so that loops never wait."""
        if labels is None:
            labels = torch.full((ids.shape[0],), self.config.num_classes, device=ids.device)
        label_tokens = labels[:, None].long() + (self.config.mask_id + 1)  # (B, 1)
        tokens = torch.cat([label_tokens, ids.long()], dim=1)  # (B, K + 1)
        return self.body(tokens)[:, 1:]  # (B, K, D)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V) float32, for all positions or for those that matter."""
        return self.head(hidden).float()

    def _check_shapes(self, ids: torch.Tensor, labels: torch.Tensor | None) -> None:
        wanted = self.config.num_latent_tokens
        check_integers("ids", ids)
        if ids.ndim != 2 or ids.shape[1] != wanted:
            raise ValueError(f"ids: expected integers of shape (B, {wanted}), not {tuple(ids.shape)}")
        if labels is None:
            return
        check_integers("labels", labels)
        if labels.shape != ids.shape[:1]:
            raise ValueError(f"labels: expected {len(ids)} integers, not {tuple(labels.shape)}")

    def _check_ranges(self, ids: torch.Tensor, labels: torch.Tensor | None) -> None:
        named = [("ids", ids, self.config.mask_id), ("labels", labels, self.config.num_classes)]
        for name, values, last in named:
            if values is None or not values.numel():
                continue
            wide = values.long()  # the unsigned types have no min or max
            low, high = int(wide.min()), int(wide.max())
            if low < 0 or high > last:
                raise ValueError(f"{name}: expected values in 0..{last}, not {low}..{high}")
