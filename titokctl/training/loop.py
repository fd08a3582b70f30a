"""The training loop: the same for everything that is trained.

A task owns the modules and knows what one optimizer step does; the loop decides when to log, evaluate, save and stop.
Batches and all other randomness are functions of (seed, step), so a checkpoint needs tensors and a step number only,
and a resumed run continues bit for bit. With several processes all run the same loop; rank 0 writes and talks.
"""

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from titokctl.config.training import TrainingConfig
from titokctl.context import Context
from titokctl.distributed.reduce import StopAgreement
from titokctl.errors import Stopped, UserError
from titokctl.formats import checkpoint
from titokctl.formats.metrics_log import MetricsLog, MetricsSink, open_sink
from titokctl.training.best import Best
from titokctl.training.randomness import deterministic_kernels
from titokctl.training.speed import Cost, Recent
from titokctl.training.trace import StepTrace

Metrics = Mapping[str, torch.Tensor | float]
_MOST_SKIPPED = 10
_NOT_SHOWN = {"learning_rate", "gradient_norm", "skipped_in_a_row"}
_USAGE = "codebook_usage"
_FEW_CODES = 0.1


class Task(Protocol):
    """One thing that is trained."""

    def prepare(self, step: int) -> None:
        """Fetch this process's share of the batch of `step`; the time it takes is the data wait."""

    def step(self, step: int) -> Metrics:
        """One optimizer step. Metrics are those of the global batch, and stay on the device until they are logged.

        A step that takes long may raise Stopped, on all processes, as long as it has not changed anything.
        """

    def evaluate(self, step: int) -> dict[str, float]:
        """Held-out numbers after `step` steps, with the averaged weights; pictures too. {} when there is nothing.

        Called on every process, so that they may share the work; what rank 0 returns is written down.
        """

    def tensors(self) -> dict[str, torch.Tensor]:
        """All state, by name; the same on every process."""

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Put back what `tensors` gave after `step` steps."""


class Loop:
    """Runs a task from its newest checkpoint to `config.steps`.

    Args:
        task: what is trained.
        config: lengths and intervals.
        folder: the run folder; checkpoints/ and metrics.jsonl are written in it.
        what: name of the phase on the progress line.
        context: progress, the request to stop, and the processes that train together.
        cost: what an image costs, for the share of the device's peak on the progress line; None leaves it out.
        trace: profiles a few steps; None for no profile.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        folder: Path,
        what: str,
        context: Context,
        cost: Cost | None = None,
        trace: StepTrace | None = None,
    ) -> None:
        self.task, self.config, self.what = task, config, what
        self.progress, self.stop, self.group, self.cost = context.progress, context.stop, context.group, cost
        self._trace = trace
        self.checkpoints = folder / "checkpoints"
        self.log = MetricsLog(folder / "metrics.jsonl")
        self._sinks: list[MetricsSink] = [self.log]
        self._few_codes = False

    def run(self) -> int:
        """Train to the end, or until a signal asks to stop (then Stopped is raised after saving).

        Returns the step of the weights that the task then holds: the last, or with `keep_best` the best one.
        """
        step = self._resume()
        self.progress.start(self.what, self._images(self.config.steps), "images", done=self._images(step))
        policy = checkpoint.Policy(self.config.keep_checkpoints, self.config.keep_every)
        with checkpoint.CheckpointWriter(self.checkpoints, policy) as writer, self._trace or contextlib.nullcontext():
            self._check_best(step)
            step = self._steps(step, writer)
        for sink in self._sinks:
            sink.close()
        self.progress.close()
        return self._best_of(step)

    def _steps(self, step: int, writer: checkpoint.CheckpointWriter) -> int:
        """Train from `step` on. Returns the step at which the run ended."""
        total, recent, stopping = self.config.steps, Recent(), StopAgreement(self.stop, self.group)
        over = self._is_over()
        while step < total and not over:
            try:
                metrics = self._step(step, recent)
            except Stopped:
                stopping.close()
                self._save_before(step, writer)
                self.stop.check(f"Step {step:,} of {total:,} is saved.")
            step += 1
            if self._trace is not None:
                self._trace.step()
            last = step == total
            note = self._log(step, metrics, recent) if last or step % self.config.log_every == 0 else ""
            self.progress.advance(self._images(1), note)
            is_best = False
            if last or step % self.config.evaluate_every == 0:
                found = self._evaluate(step)  # all processes share the work; the main one gets the numbers
                is_best = self.group.is_main and self.best.judge(step, found)
                over = self._is_over()
            leaving = stopping.reached()
            saves = last or over or leaving or is_best or step % self.config.checkpoint_every == 0
            if self.group.is_main and saves:
                state = checkpoint.Checkpoint(step, self.task.tensors(), self.best.scalars())
                writer.save(state, self.best.step)
            if leaving and not over:
                writer.wait()
                self.stop.check(f"Step {step:,} of {total:,} is saved.")
        stopping.close()
        return step

    def _save_before(self, step: int, writer: checkpoint.CheckpointWriter) -> None:
        """Save the state before a step that was not done, unless it is saved already."""
        if self.group.is_main:
            writer.wait()
            if step not in checkpoint.steps_in(self.checkpoints):
                writer.save(checkpoint.Checkpoint(step, self.task.tensors(), self.best.scalars()), self.best.step)
            writer.wait()

    def _is_over(self) -> bool:
        """Return True if the run ends early, on all processes alike."""
        return self.config.stop_after is not None and bool(self.group.from_main(self.best.is_over))

    def _check_best(self, step: int) -> None:
        """Evaluate once before the first step of a run that keeps its best, so that a wrong name costs no training."""
        if self.config.keep_best is None or step > 0:
            return
        found = self._evaluate(0)
        if self.group.is_main:
            self.best.check(found)

    def _best_of(self, ended: int) -> int:
        """Put the best weights into the task; returns their step. `ended` is the last step of the run."""
        chosen = None if self.config.keep_best is None else self.group.from_main(self.best.step)
        if chosen is None:  # also when no evaluation gave a finite number
            return ended
        self.progress.say(
            f"the best {self.best.metric}, {self.best.value:.4g}, is that of step {chosen:,}"
            + (f"; ended early after step {ended:,} of {self.config.steps:,}" if ended < self.config.steps else "")
        )
        if chosen != ended:
            self.task.load(checkpoint.load_step(self.checkpoints, chosen).tensors, chosen)
        return int(chosen)

    def _images(self, steps: int) -> int:
        return steps * self.config.global_batch_size

    def _step(self, step: int, recent: Recent) -> Metrics:
        began = time.perf_counter()
        self.task.prepare(step)
        ready = time.perf_counter()
        with deterministic_kernels(self.config.deterministic):
            metrics = self.task.step(step)
        recent.add(ready - began, time.perf_counter() - ready)
        return metrics

    def _resume(self) -> int:
        saved = checkpoint.load_newest(self.checkpoints, self.progress.say)
        found = saved.step if saved else 0
        if self.group.from_main(found) != found:
            raise UserError(
                f"process {self.group.rank} finds step {found:,} in {self.checkpoints}, but process 0 another step",
                "all machines must see the same runs folder",
            )
        if self.group.is_main:
            self.log.keep_until(found if saved else -1)
            self._sinks += [open_sink(name, self.log.path.parent, found + 1) for name in self.config.log]
        self.best = Best(self.config, saved.scalars if saved else {})
        if saved is None:
            return 0
        self.task.load(saved.tensors, saved.step)
        if saved.step < self.config.steps:
            self.progress.say(f"resuming from step {saved.step:,} of {self.config.steps:,}")
        return saved.step

    def _log(self, step: int, metrics: Metrics, recent: Recent) -> str:
        """Read the metrics from the device and write them down. Returns the note for the progress line."""
        began = time.perf_counter()
        values = {name: float(value) for name, value in metrics.items()}
        recent.add_waiting_for_device(time.perf_counter() - began)
        if values.get("skipped_in_a_row", 0) >= _MOST_SKIPPED:
            raise UserError(
                f"the loss was not finite in {_MOST_SKIPPED} steps in a row (found at step {step:,})",
                self._lower_rate(values.get("learning_rate", 0.0) / 2, step - int(values["skipped_in_a_row"])),
            )
        speed = recent.take(self.config.global_batch_size, self.group.world_size, self.cost)
        if self.group.is_main:
            kept = {name: value for name, value in values.items() if name != "skipped_in_a_row"}
            self._write(step, kept | speed.values())
        hidden = _NOT_SHOWN | ({"skipped_steps"} if not values.get("skipped_steps") else set())
        shown = [f"{name} {values[name]:.4g}" for name in values if name not in hidden]
        return ", ".join([f"step {step:,}", *shown, *speed.shown()])

    def _lower_rate(self, rate: float, finite: int) -> str:
        """Return the hint for a run that was finite up to step `finite`: where to start from, with a lower rate."""
        slower = f"--set optimizer.learning_rate={rate:.3g}"
        kept = checkpoint.steps_in(self.checkpoints)
        saved = [step for step in kept if step <= finite] or kept[:1]  # skipped steps leave weights as they were
        if not saved:
            return f"run the command again with {slower}, or with --set training.precision=float32"
        start = f"{self.checkpoints.parent}@{saved[-1]}"
        return f"start from a checkpoint: the same command, without --name, with --init {start} {slower}"

    def _evaluate(self, step: int) -> dict[str, float]:
        values = self.task.evaluate(step)
        if values and self.group.is_main:
            self._write(step, values)
            self.progress.say(
                f"step {step:,}: " + ", ".join(f"{k} {v:.4g}" for k, v in values.items() if "_at_" not in k)
            )
        return values

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        for sink in self._sinks:
            sink.append(step, values)
        if _USAGE in values:  # not the held-out one, which a few images keep low
            self._watch_codes(step, values[_USAGE])

    def _watch_codes(self, step: int, share: float) -> None:
        """Warn when most of the codebook fell out of use, once until it recovers."""
        if share < _FEW_CODES and not self._few_codes:
            self.progress.say(
                f"warning: at step {step:,} only {share:.1%} of the codebook is in use; a lower learning rate, "
                "re-seeding (codebook.reseed_decay) or a smaller codebook may help"
            )
        self._few_codes = share < _FEW_CODES
