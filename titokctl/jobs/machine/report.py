"""`titokctl report`: one run as a page: metrics, curves, pictures, scores, settings, and lineage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.config.differences import flatten
from titokctl.context import Context
from titokctl.errors import UsageError
from titokctl.formats.evaluation import read_evaluations
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.replacing import PAGE, check_free, files_to_delete
from titokctl.formats.report_page import Curve, ReportPage
from titokctl.formats.run_folder import RunFolder, finished_runs
from titokctl.formats.sample_set import GRID, SampleSet
from titokctl.jobs.machine.runs import METRICS, find_run, lineage_of
from titokctl.jobs.plan import WritePlan
from titokctl.readable import readable

_NAME = "report.html"
_SHOWN = 12  # items of a list
# The label of each plot's y axis, and the metrics drawn in it.
_PLOTS = (
    ("dB", ("psnr", "val_psnr")),
    ("loss", ("loss", "train_loss", "held_out_loss", "unigram_entropy")),
    ("accuracy", ("accuracy", "train_accuracy", "held_out_accuracy")),
    ("SSIM", ("val_ssim",)),
    ("share of codes in use", ("val_codebook_usage",)),
    ("rFID", ("val_rfid",)),
    ("loss parts", ("reconstruction", "perceptual", "gan", "quantizer")),
    ("learning rate", ("learning_rate",)),
    ("images/s", ("images_per_s",)),
)
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

    Raises UsageError when the output isn't an .html file.
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
        return WritePlan(
            reads={"run": str(run.path), "kind": run.kind, "status": run.status},
            output=output,
            count=drawn.pictures,
            unit="pictures",
            settings={"plots": drawn.plots},
            removes=files_to_delete(output),
            makes_folders=False,
        )

    def run(self, context: Context) -> WrittenReport:
        """Write the page. Raises as `plan`."""
        run, output = self._find(context)
        drawn = _draw(run, context.runs)
        drawn.page.write(output)
        return WrittenReport(output, run.path, drawn.pictures, drawn.plots)

    def _find(self, context: Context) -> tuple[RunFolder, Path]:
        run = find_run(self.name, context.runs)
        output = self.output or run.path / _NAME
        check_free(output, self.overwrite or self.output is None, PAGE)
        return run, output


@dataclass(frozen=True)
class _Drawn:
    page: ReportPage
    pictures: int
    plots: int


def _draw(run: RunFolder, root: Path) -> _Drawn:
    page = ReportPage(f"{run.kind} {run.name}")
    page.paragraph(f"{run.status}, begun {run.created[:19]} UTC" + _ended(run))
    plots = _training(page, run)
    pictures = _pictures(page, run) + sum(_sample_set(page, drawn) for drawn in _samples_of(run, root))
    page.heading("Lineage")
    page.table(("product", "path", "SHA-256"), [(n.what, n.where, n.sha256[:16]) for n in lineage_of(run, root)])
    _settings(page, run)
    return _Drawn(page, pictures, plots)


def _ended(run: RunFolder) -> str:
    return f", finished {run.finished[:19]} UTC" if run.finished else ""


def _training(page: ReportPage, run: RunFolder) -> int:
    """Add the newest metrics and the curves; return the number of plots."""
    log = MetricsLog(run.path / METRICS)
    records = log.read()
    if not records:
        return 0
    page.heading("Training")
    page.table(("newest metrics", ""), _rows(log.newest_values()))
    plots = 0
    for unit, names in _PLOTS:
        curves = [curve for curve in (_curve(records, name) for name in names) if len(curve.points) > 1]
        page.plot(curves, "steps", unit)
        plots += bool(curves)
    return plots


def _curve(records: Sequence[dict[str, Any]], name: str) -> Curve:
    return Curve(name, [(r["step"], r[name]) for r in records if isinstance(r.get(name), int | float)])


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
    page.paragraph(f"{found.manifest['num_images']:,} images of {found.manifest['image_size']} px in {found.folder}")
    for path in sorted(found.folder.glob("evaluation-*.json")):
        for record in read_evaluations(path):
            page.table((path.stem, ""), _rows(record["metrics"]))
            page.paragraph(f"against {record['reference'].get('path', 'a reference')}. {' '.join(record['warnings'])}")
    if not (found.folder / GRID).is_file():
        return 0
    page.picture(found.folder / GRID, "The first images of the set.")
    return 1


def _settings(page: ReportPage, run: RunFolder) -> None:
    page.heading("Settings")
    page.table(("field", "value"), _rows(flatten(run.settings)))
    page.heading("Versions")
    page.table(("package", "version"), sorted(run.versions.items()))


def _rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, readable(value, commas=False, shown=_SHOWN)) for name, value in values.items()]
