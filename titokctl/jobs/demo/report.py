"""The demo's pictures, its table of results, and its report page: pictures first, then numbers beside baselines."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from titokctl.data.order import spread_positions
from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.picture import grid, labelled_rows, save_png
from titokctl.formats.report_page import ReportPage
from titokctl.formats.run_folder import open_run
from titokctl.jobs.demo import scores
from titokctl.jobs.demo.bundled import PICTURE as BUNDLED
from titokctl.jobs.machine.report import curve_of, phases, setting_rows
from titokctl.readable import duration

if TYPE_CHECKING:
    from titokctl.jobs.demo.chain import DemoResult

RECONSTRUCTIONS, SAMPLES = "reconstructions.png", "samples.png"
_COLUMNS, _BANDS = 12, 3
_PER_CLASS, _MOST_CLASSES = 8, 40
# Baselines of the held-out PSNR among the tokenizer's metrics.
_BASELINES = {
    "val_psnr_mean_colour": "each image's mean colour",
    "val_psnr_pca": "PCA with as many numbers",
    "val_psnr_gaussian": "as many bits for a Gaussian",
}


def draw_pictures(folder: Path, images: scores.DemoImages, class_names: Sequence[str]) -> None:
    """Write reconstructions.png (held-out images above their reconstructions) and samples.png (a row per class)."""
    count = min(_COLUMNS * _BANDS, len(images.labels))
    shown = spread_positions(len(images.labels), count)
    bands = []
    for first in range(0, count - count % _COLUMNS or count, _COLUMNS):
        row = shown[first : first + _COLUMNS]
        bands += [images.sets[scores.HELD_OUT][row], images.sets[scores.RECONSTRUCTIONS][row]]
    save_png(folder / RECONSTRUCTIONS, grid(np.concatenate(bands), columns=min(_COLUMNS, count)))
    drawn = images.sets[scores.SAMPLES]
    if not images.attributes:
        save_png(folder / SAMPLES, grid(drawn[: 8 * _PER_CLASS], columns=_PER_CLASS))
        return
    by_class = [(name, np.flatnonzero(images.labels == label)) for label, name in enumerate(class_names)]
    rows = [(name, drawn[rows[:_PER_CLASS]]) for name, rows in by_class if len(rows)]
    save_png(folder / SAMPLES, labelled_rows(rows[:_MOST_CLASSES]))


def yardstick_columns(result: scores.DemoScores) -> tuple[str, ...]:
    """Return the head of the table of distances."""
    return ("set", "images", *result.yardsticks[0].distances)


def yardstick_rows(result: scores.DemoScores) -> list[tuple[str, ...]]:
    """Return name, number of images and distances of every set."""
    return [
        (y.name, f"{y.images:,}", *(f"{v:.4f}" if n.startswith("kid") else f"{v:.1f}" for n, v in y.distances.items()))
        for y in result.yardsticks
    ]


def headline_rows(result: "DemoResult") -> list[tuple[str, str]]:
    """Return the numbers that say how good the models are, as names and values, each with its baselines below it."""
    tokenizer, found = result.tokenizer, result.scores
    rows = [("held-out PSNR", f"{tokenizer['val_psnr']:.2f} dB")]
    rows += [(f"— {name}", f"{tokenizer[key]:.2f} dB") for key, name in _BASELINES.items() if key in tokenizer]
    for probe in found.probes:
        value = (
            f"{probe.samples:.1%} (reconstructions {probe.reconstructions:.1%}, real images {probe.held_out:.1%}, "
            f"chance {probe.chance:.1%})"
        )
        rows.append((f"{probe.attribute} of samples read right", value))
    return [*rows, ("samples closer to real than shuffled ids (KID)", f"{found.kid_ratio:.1f} times")]


def further_rows(result: "DemoResult") -> list[tuple[str, str]]:
    """Return numbers about codes, overfitting and time, as names and values."""
    tokenizer, generator = result.tokenizer, result.generator
    rows = [
        ("generator loss, held-out images", f"{generator['held_out_loss']:.3f} nats per token"),
        ("— training images", f"{generator['train_loss']:.3f}"),
        ("— single ids", f"{generator['unigram_entropy']:.3f}"),
        ("codebook used by held-out images", f"{tokenizer['val_codebook_usage']:.0%}"),
    ]
    for closer in result.scores.closer:
        name = f"samples closer to training than {closer.quantile:.0%} of held-out"
        rows.append((name, f"{closer.share:.0%} (without memorising: about {closer.quantile:.0%})"))
    took = ", ".join(f"{name} {duration(seconds)}" for name, seconds in result.seconds.items())
    return [*rows, ("this run took", f"{duration(sum(result.seconds.values()))} ({took})")]


def write_report(result: "DemoResult", tokenizer_run: Path, generator_run: Path) -> None:
    """Write report.html: pictures, numbers beside their baselines, curves, and settings, in one file."""
    page = ReportPage("titokctl demo: pictures in 32 tokens")
    page.paragraph(f"A tiny tokenizer and a tiny generator, trained from scratch on {result.about}.")
    page.picture(result.folder / RECONSTRUCTIONS, "Held-out images; below each, what its 32 tokens give back.")
    page.picture(result.folder / SAMPLES, "Samples of the generator, by class.")
    if result.bundled:
        hours, minutes = result.bundled, _training_seconds(tokenizer_run, generator_run)
        instead = "" if minutes is None else f" instead of {duration(minutes)}"
        page.heading(f"After {duration(hours.training_seconds)}{instead}: the bundled models")
        page.picture(result.folder / BUNDLED, "Held-out images, their reconstructions by scenes-64, and its samples.")
        page.paragraph(
            f"scenes-64 and its generator are part of titokctl; they were trained on {hours.device}. Held-out PSNR on "
            f"the same images: {hours.psnr:.2f} dB. To draw: titokctl sample --generator scenes-64 --classes red-ball"
        )
    page.heading("Numbers, and what they compare with")
    page.table(("", ""), headline_rows(result))
    if result.scores.probes:
        page.paragraph(
            "Attributes are read by linear classifiers of training images and softened copies of them: colours from "
            "histograms of colours, shapes from histograms of edges, other classes from features of EfficientNet-Lite2."
        )
    page.heading("Training")
    tokenizer, generator = _records(tokenizer_run), _records(generator_run)
    page.plot(
        [curve_of(tokenizer, "psnr", "training batches"), curve_of(tokenizer, "val_psnr", "held-out")],
        "steps", "dB", phases(open_run(tokenizer_run).settings),
    )  # fmt: skip
    page.plot(
        [curve_of(generator, "loss", "training batches"), curve_of(generator, "train_loss", "training images"),
         curve_of(generator, "held_out_loss", "held-out images")], "steps", "nats",
    )  # fmt: skip
    page.heading("Distances to training images")
    page.table(yardstick_columns(result.scores), yardstick_rows(result.scores))
    page.paragraph(
        "Not FID: features of EfficientNet-Lite0, which the tokenizer's perceptual loss uses, and of "
        "EfficientNet-Lite2, which no loss has seen. The sets of ids pass through the same decoder as the samples."
    )
    page.heading("More numbers")
    page.table(("", ""), further_rows(result))
    for kind, run in (("tokenizer", tokenizer_run), ("generator", generator_run)):
        page.heading(f"Settings of the {kind}")
        page.table(("field", "value"), setting_rows(open_run(run).settings))
    page.write(result.report)


def _training_seconds(*runs: Path) -> float | None:
    """Return the time that the runs took together; None if one of them was stopped and resumed."""
    seconds = 0.0
    for run in map(open_run, runs):
        if len(run.launches) != 1 or run.finished is None:
            return None
        seconds += (datetime.fromisoformat(run.finished) - datetime.fromisoformat(run.created)).total_seconds()
    return seconds


def _records(run: Path) -> list[dict[str, Any]]:
    return MetricsLog(run / "metrics.jsonl").read()
