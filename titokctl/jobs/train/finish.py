"""`titokctl runs finish`: a stopped training run ends early, with the weights of a checkpoint as its product."""

from dataclasses import dataclass, replace
from pathlib import Path

from titokctl.context import Context
from titokctl.errors import UserError
from titokctl.formats import checkpoint
from titokctl.formats.run_folder import RunFolder, open_run
from titokctl.formats.unfinished import Unfinished
from titokctl.jobs.machine.runs import find_run
from titokctl.weights.hashes import product_hashes
from titokctl.weights.read import read
from titokctl.weights.references import Located, locate_run, split_reference
from titokctl.weights.store import build, save


@dataclass(frozen=True)
class FinishedRun:
    """A run that ended early: its folder, its product with its hash, and the step of `steps` at which it ended."""

    run: Path
    weights: Path
    weights_sha256: str
    step: int
    steps: int


@dataclass(frozen=True)
class FinishRun:
    """Make the product of a stopped training run from its newest checkpoint, or from that of RUN@STEP.

    Args:
        name: a run as `find_run` takes it, or RUN@STEP.
    """

    name: str

    def run(self, context: Context) -> FinishedRun:
        """Write the averaged weights as the product, recorded as ended at that step.

        Raises UserError when the run is finished, no training run, at work, or does not keep that checkpoint.
        """
        name, version = split_reference(self.name)
        run = find_run(name, context.runs)
        with Unfinished(run.path, run.path, "run.json").locked():
            return _finished(open_run(run.path), version or "@latest")


def _finished(run: RunFolder, version: str) -> FinishedRun:
    if run.is_finished:
        raise UserError(
            f"{run.path} is finished already",
            f"to take the weights of another step: titokctl convert {run.path}@STEP -o weights.safetensors",
        )
    if "training" not in run.settings:
        raise UserError(f"{run.path} is a {run.kind} run, not a training run", "run its command again to resume it")
    if not checkpoint.steps_in(run.path / "checkpoints"):
        raise UserError(f"{run.path} has no checkpoint yet", "run its command again to resume it")
    located = locate_run(f"{run.path}{version}")
    assert isinstance(located, Located)
    if not checkpoint.is_checkpoint(located.path):
        raise UserError(f"{run.path}{version} is a finished product already")
    weights, step = read(located), checkpoint.step_of(located.path)
    hashes = product_hashes(build(weights, str(located.path), "cpu", None))
    product = run.product_name(hashes["weights_sha256"])
    save(run.path / product, replace(weights, extra={**weights.extra, "step": str(step)}))
    run.finish(product, hashes, step)
    steps = int(run.settings["training"]["steps"])
    return FinishedRun(run.path, run.product_path, hashes["weights_sha256"], step, steps)
