"""`titokctl report`: one run as a page: pictures, numbers beside baselines, scores, curves, lineage, settings."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.config.differences import flatten
from titokctl.context import Context
from titokctl.errors import UsageError, UserError
from titokctl.formats.evaluation import read_evaluations
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.replacing import PAGE, files_to_delete
from titokctl.formats.report_page import Curve, ReportPage
from titokctl.formats.run_folder import RunFolder, finished_runs, open_run
from titokctl.formats.sample_set import GRID, SampleSet
from titokctl.formats.unfinished import Unfinished, check_output, finished_already
from titokctl.jobs.machine.runs import METRICS, find_run, lineage_of
from titokctl.jobs.plan import WritePlan
from titokctl.readable import counted, readable

_NAME = "report.html"
_SHOWN = 12  # items of a list
# The numbers that say how good a product is, with their units, and below each what it compares with.
_NUMBERS = (
    ("val_psnr", "held-out PSNR", " dB", (("psnr", "training batches"), ("val_psnr_mean_colour", "mean colours"),
      ("val_psnr_pca", "PCA with as many numbers"), ("val_psnr_gaussian", "a Gaussian with as many bits"))),
    ("val_rfid", "held-out rFID", "", ()),
    ("val_codebook_usage", "share of codes that held-out images use", "", (("codebook_usage", "training batches"),)),
    ("held_out_loss", "held-out loss", " nats a masked token",
     (("train_loss", "training images"), ("unigram_entropy", "single ids, without any model"))),
    ("held_out_bits_per_id", "held-out likelihood", " bits an id", (("train_bits_per_id", "training images"),)),
    ("held_out_bits_per_id_bound", "held-out likelihood, upper bound", " bits an id",
     (("train_bits_per_id_bound", "training images"),)),
)  # fmt: skip
# The label of each plot's y axis, and the metrics drawn in it with their names: one plot for each thing that matters.
_PLOTS = (
    ("PSNR, dB", {"psnr": "training batches", "val_psnr": "held-out images", "val_psnr_mean_colour": "mean colours"}),
    ("loss", {"loss": "training batches", "train_loss": "training images", "held_out_loss": "held-out images",
              "unigram_entropy": "single ids"}),
    ("rFID", {"val_rfid": "held-out images"}),
    ("share of codes in use", {"codebook_usage": "training batches", "val_codebook_usage": "held-out images"}),
    ("learning rate", {"learning_rate": "learning rate"}),
)  # fmt: skip
# Settings whose step begins a phase of training, and what begins there.
_PHASES = {
    "codebook.continuous_steps": "quantized",
    "loss.perceptual_start": "perceptual loss",
    "adversary.start": "discriminator",
    "encoder_steps": "decoder only",
}
_PICTURES = {
    "reconstructions": "Held-out images; below each, its reconstruction. After step {}.",
    "samples": "Samples of the averaged weights after step {}.",
}


@dataclass(frozen=True)
class WrittenReport:
    """The page that was written."""

    report: Path
    run: Path
    pictures: int
    plots: int


@dataclass(frozen=True)
class Report:
    """Write a self-contained page about the run `name`, which is what `find_run` takes.

    Args:
        name: the run.
        output: the page; None for report.html in the run's folder, which is always replaced.
        overwrite: replace a file at `output`.

    The same request again finds its page finished, as long as the run has not changed. Raises UsageError when the
    output isn't an .html file.
    """

    name: str
    output: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.output is not None and self.output.suffix not in (".html", ".htm"):
            raise UsageError(f"-o {self.output} does not end in .html", "a report is a page, e.g. -o report.html")

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written. Raises UserError for an unknown run, or when the output exists."""
        run, output = self._find(context)
        drawn = _draw(run, context.runs)
        finished = self._is_finished(run, drawn, output)
        return WritePlan(
            reads={"run": str(run.path), "kind": run.kind, "status": run.status},
            output=output,
            count=drawn.pictures,
            unit="pictures",
            done=drawn.pictures if finished else 0,
            settings={"plots": drawn.plots},
            removes=() if finished else files_to_delete(output),
        )

    def run(self, context: Context) -> WrittenReport:
        """Write the page. Raises as `plan`."""
        run, output = self._find(context)
        drawn = _draw(run, context.runs)
        if self.output is None:
            drawn.page.write(output)
        elif self._is_finished(run, drawn, output):
            context.say(finished_already(output))
        else:
            with Unfinished(output).at_once(_made_of(run, drawn)) as product:
                drawn.page.write(product)
        return WrittenReport(output, run.path, drawn.pictures, drawn.plots)

    def _is_finished(self, run: RunFolder, drawn: "_Drawn", output: Path) -> bool:
        """Return True if the page was written before. Raises UserError for one of another run, or of its past."""
        return self.output is not None and Unfinished(output).is_finished(_made_of(run, drawn), self.overwrite)

    def _find(self, context: Context) -> tuple[RunFolder, Path]:
        run = find_run(self.name, context.runs)
        output = self.output or run.path / _NAME
        check_output(output, self.overwrite or self.output is None, PAGE)
        return run, output


def report_of(path: str) -> tuple[str, ...] | None:
    """Return the arguments of the command that writes a page about the run in the folder `path`; None for no run."""
    try:
        run = open_run(Path(path))
    except (UserError, OSError):
        return None
    return f"{run.kind}/{run.name}", "-o", f"{run.name}.html"


@dataclass(frozen=True)
class _Drawn:
    page: ReportPage
    pictures: int
    plots: int


def _made_of(run: RunFolder, drawn: _Drawn) -> dict[str, Any]:
    """Return what decides about a page, as JSON: the run, how far it is, and everything that the page shows of it."""
    return {
        "command": "report",
        "run": f"{run.kind}/{run.name}",
        "created": run.created,
        "status": run.status,
        "step": MetricsLog(run.path / METRICS).newest_values().get("step"),
        "page_sha256": hashlib.sha256(drawn.page.as_bytes()).hexdigest(),
    }


def _draw(run: RunFolder, root: Path) -> _Drawn:
    page = ReportPage(f"{run.kind} {run.name}")
    page.paragraph(f"{run.status}, begun {run.created[:19]} UTC" + _ended(run))
    log = MetricsLog(run.path / METRICS)
    records, newest = log.read(), log.newest_values()
    pictures = _pictures(page, run)
    _numbers(page, newest)
    pictures += sum(_sample_set(page, drawn) for drawn in _samples_of(run, root))
    plots = _curves(page, run, records)
    page.heading("Lineage")
    page.table(("product", "path", "SHA-256"), [(n.what, n.where, n.sha256[:16]) for n in lineage_of(run, root)])
    if newest:
        page.heading("All metrics, newest values")
        page.table(("metric", "value"), _rows(newest))
    _settings(page, run)
    return _Drawn(page, pictures, plots)


def _ended(run: RunFolder) -> str:
    return f", finished {run.finished[:19]} UTC" if run.finished else ""


def _numbers(page: ReportPage, newest: dict[str, Any]) -> None:
    """Add the numbers that say how good the run's product is, each above what it compares with."""
    rows: list[tuple[str, str]] = []
    for metric, name, unit, beside in _NUMBERS:
        if metric in newest:
            rows.append((name, _text(newest[metric]) + unit))
            rows += [(f"— {what}", _text(newest[m]) + unit) for m, what in beside if m in newest]
    if rows:
        page.heading("Numbers, and what they compare with")
        page.table(("", ""), rows)


def phases(settings: dict[str, Any]) -> list[tuple[float, str]]:
    """Return the steps at which something joins a training with these settings, and its name, for a plot's marks."""
    fields = flatten(settings)
    joins = {name: fields.get(name) for name in _PHASES}
    if not settings.get("loss", {}).get("perceptual"):
        joins["loss.perceptual_start"] = None
    return [(float(step), _PHASES[name]) for name, step in joins.items() if isinstance(step, int) and step > 0]


def _curves(page: ReportPage, run: RunFolder, records: Sequence[dict[str, Any]]) -> int:
    """Add the curves of training; return the number of plots."""
    marks, plots = phases(run.settings), 0
    for unit, metrics in _PLOTS:
        curves = [
            curve for curve in (curve_of(records, m, name) for m, name in metrics.items()) if len(curve.points) > 1
        ]
        if curves and not plots:
            page.heading("Training")
        page.plot(curves, "steps", unit, marks)
        plots += bool(curves)
    return plots


def curve_of(records: Sequence[dict[str, Any]], metric: str, name: str) -> Curve:
    """Return a metric over the steps of a log, as a curve with this name."""
    return Curve(name, [(r["step"], r[metric]) for r in records if isinstance(r.get(metric), int | float)])


def _pictures(page: ReportPage, run: RunFolder) -> int:
    """Add the newest picture of each kind that training drew; return the number of pictures."""
    shown = 0
    for stem, caption in _PICTURES.items():
        drawn = sorted(run.path.glob(f"{stem}-*.png"))
        if drawn:
            page.heading(stem.capitalize())
            page.picture(drawn[-1], caption.format(f"{int(drawn[-1].stem.rpartition('-')[2]):,}"))
            shown += 1
    return shown


def _samples_of(run: RunFolder, root: Path) -> list[RunFolder]:
    """Return the run itself if it is a sample set, or the sample sets of a generator."""
    if run.kind == "samples":
        return [run] if run.is_finished else []
    sha256 = run.hashes.get("weights_sha256")
    return [s for s in finished_runs(root, "samples") if sha256 and s.inputs.get("generator_sha256") == sha256]


def _sample_set(page: ReportPage, run: RunFolder) -> int:
    """Add the picture and scores of a sample set; return the number of pictures."""
    found = SampleSet.open(run.path)
    page.heading(f"Samples: {run.name}")
    has_grid = (found.folder / GRID).is_file()
    if has_grid:
        page.picture(found.folder / GRID, "Images of the set.")
    page.paragraph(
        f"{counted(found.manifest['num_images'], 'images')} of {found.manifest['image_size']} px in {found.folder}"
    )
    for path in sorted(found.folder.glob("evaluation-*.json")):
        for record in read_evaluations(path):
            page.table((path.stem, ""), _rows(record["metrics"]))
            page.paragraph(f"against {record['reference'].get('path', 'a reference')}. {' '.join(record['warnings'])}")
    return int(has_grid)


def _settings(page: ReportPage, run: RunFolder) -> None:
    page.heading("Settings")
    page.table(("field", "value"), setting_rows(run.settings))
    page.heading("Versions")
    page.table(("package", "version"), sorted(run.versions.items()))


def setting_rows(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the name of each field, such as "model.width", and its value."""
    return _rows(flatten(settings))


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, _text(value)) for name, value in values.items()]


def _text(value: Any) -> str:
    return readable(value, commas=False, shown=_SHOWN)
