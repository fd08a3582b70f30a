"""The best step of a run by a held-out number, and the end of a run that stopped improving."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from titokctl.config.training import TrainingConfig
from titokctl.errors import UsageError

_LOWER_IS_BETTER = ("loss", "fid", "gap", "entropy", "distance", "bits", "nll")


def lower_is_better(metric: str) -> bool:
    """Return True for losses, distances (rFID too), entropies and the gap; False for PSNR, SSIM, accuracies, usage."""
    return any(word in metric for word in _LOWER_IS_BETTER)


class Best:
    """The best evaluation so far.

    Args:
        config: `keep_best` names the number, `stop_after` says how many evaluations without improvement end the run.
        scalars: the values of the checkpoint from which the run resumes, as `scalars()` returned them.
    """

    def __init__(self, config: TrainingConfig, scalars: Mapping[str, Any]) -> None:
        self.metric, self._patience, self._steps = config.keep_best, config.stop_after, config.steps
        found = scalars.get("best") or {}
        self.step: int | None = found.get("step")
        self.value: float = found.get("value", math.nan)
        # A run that was made longer is given another chance.
        self._since: int = found.get("since", 0) if scalars.get("steps") == config.steps else 0

    @property
    def is_over(self) -> bool:
        """True once the run should end early."""
        return self._patience is not None and self._since >= self._patience

    def check(self, names: Iterable[str]) -> None:
        """Raise UsageError, which names the nearest, if the evaluation gives no number of the wanted name."""
        there = sorted(names)
        if self.metric is None or self.metric in there:
            return
        if not there:
            raise UsageError(
                f"training.keep_best: {self.metric} needs held-out images, and there are none",
                "name some with --val, or --set training.keep_best=null",
            )
        near = difflib.get_close_matches(self.metric, there, n=3, cutoff=0.3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        shown = [name for name in there if "_at_" not in name]
        raise UsageError(
            f"training.keep_best: unknown metric {self.metric}",
            f"{hint}there are: {', '.join(shown)}",
        )

    def judge(self, step: int, values: Mapping[str, float]) -> bool:
        """Take the numbers of an evaluation after `step` steps into account. Returns True if they are the best."""
        if self.metric is None:
            return False
        self.check(values)
        value = float(values[self.metric])
        sign = -1 if lower_is_better(self.metric) else 1
        is_better = math.isfinite(value) and (self.step is None or sign * value > sign * self.value)
        if is_better:
            self.step, self.value, self._since = step, value, 0
        else:
            self._since += 1
        return is_better

    def scalars(self) -> dict[str, Any]:
        """Return the values for a checkpoint."""
        found: dict[str, Any] = {"steps": self._steps}
        if self.metric is not None:
            found["best"] = (
                {"step": self.step, "value": self.value, "since": self._since}
                if self.step is not None
                else {"since": self._since}
            )
        return found
