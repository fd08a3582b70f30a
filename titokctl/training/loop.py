"""The training loop: the same for everything that is trained.

A task owns the modules and knows what one optimizer step does; the loop decides when to log, evaluate, save and stop.
Batches and all other randomness are functions of (seed, step), so a checkpoint needs tensors and a step number only,
and a resumed run continues bit for bit.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from titokctl.config.training import TrainingConfig
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.formats import checkpoint
from titokctl.formats.metrics_log import MetricsLog
from titokctl.progress import Progress

Metrics = Mapping[str, torch.Tensor | float]


class Task(Protocol):
    """One thing that is trained."""

    def prepare(self, step: int) -> None:
        """Fetch the batch of `step`; the time it takes is the data wait."""

    def step(self, step: int) -> Metrics:
        """One optimizer step. Metrics stay on the device until they are logged."""

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out numbers after `step` steps, with the averaged weights; pictures too. {} when there is nothing."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """All state, by name."""

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Put back what `tensors` gave after `step` steps."""


class Loop:
    """Runs a task from its newest checkpoint to `config.steps`.

    Args:
        task: what is trained.
        config: lengths and intervals.
        folder: the run folder; checkpoints/ and metrics.jsonl are written in it.
        what: name of the phase on the progress line.
        progress, stop: as every job has them.
    """

    def __init__(
        self, task: Task, config: TrainingConfig, folder: Path, what: str, progress: Progress, stop: StopRequest
    ) -> None:
        self.task, self.config, self.what = task, config, what
        self.progress, self.stop = progress, stop
        self.checkpoints = folder / "checkpoints"
        self.log = MetricsLog(folder / "metrics.jsonl")

    def run(self) -> None:
        """Train to the end, or until a signal asks to stop (then Stopped is raised after saving)."""
        step = self._resume()
        batch = self.config.global_batch_size
        self.progress.start(self.what, self.config.steps * batch, "images", done=step * batch)
        recent = _Recent()
        while step < self.config.steps:
            metrics = self._step(step, recent)
            step += 1
            last = step == self.config.steps
            note = self._log(step, metrics, recent) if last or step % self.config.log_every == 0 else ""
            self.progress.advance(batch, note)
            if last or step % self.config.evaluate_every == 0:
                self._evaluate(step)
            if last or self.stop.requested or step % self.config.checkpoint_every == 0:
                self._save(step)
            self.stop.check(f"Step {step:,} of {self.config.steps:,} is saved.")
        self.progress.close()

    def _step(self, step: int, recent: "_Recent") -> Metrics:
        began = time.perf_counter()
        self.task.prepare(step)
        ready = time.perf_counter()
        metrics = self.task.step(step)
        recent.add(ready - began, time.perf_counter() - ready)
        return metrics

    def _resume(self) -> int:
        saved = checkpoint.load_newest(self.checkpoints, self.progress.say)
        if saved is None:
            self.log.keep_until(0)
            return 0
        self.task.load(saved.tensors, saved.step)
        self.log.keep_until(saved.step)
        if saved.step < self.config.steps:
            self.progress.say(f"going on from step {saved.step:,} of {self.config.steps:,}")
        return saved.step

    def _save(self, step: int) -> None:
        saved = checkpoint.Checkpoint(step, self.task.tensors(), {"steps": self.config.steps})
        checkpoint.save(self.checkpoints, saved, self.config.keep_checkpoints)

    def _log(self, step: int, metrics: Metrics, recent: "_Recent") -> str:
        values = {name: float(value) for name, value in metrics.items()}
        if not all(map(_is_finite, values.values())):
            raise UserError(
                f"the loss is not finite at step {step:,}",
                f"the newest checkpoint in {self.checkpoints} is from before; lower the learning rate with --set",
            )
        images_per_s = recent.steps * self.config.global_batch_size / recent.seconds
        self.log.append(step, values | {"images_per_s": images_per_s, "data_wait": recent.waited / recent.seconds})
        recent.clear()
        shown = [f"{name} {values[name]:.4g}" for name in values if name not in ("learning_rate", "gradient_norm")]
        return ", ".join([f"step {step:,}", *shown])

    def _evaluate(self, step: int) -> None:
        values = self.task.evaluate(step)
        if values:
            self.log.append(step, values)
            self.progress.say(f"step {step:,}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items()))


class _Recent:
    """Times since the last log line."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.steps, self.waited, self.seconds = 0, 0.0, 1e-9

    def add(self, waited: float, worked: float) -> None:
        self.steps += 1
        self.waited += waited
        self.seconds += waited + worked


def _is_finite(value: float) -> bool:
    return value - value == 0
