"""The numbers of a run as TensorBoard's event files, beside metrics.jsonl; the package comes with an extra."""

from collections.abc import Mapping
from pathlib import Path

from titokctl.errors import UserError


class TensorBoardLog:
    """Scalars for `tensorboard --logdir`.

    Args:
        folder: where the event files go.
        first_step: what an earlier, killed run wrote from here on is hidden.

    Raises UserError when the package is not installed.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "training.tensorboard needs the package tensorboard, which is not installed",
                "pip install 'titokctl[tensorboard]', or --set training.tensorboard=false",
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """One point of every curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
