"""The bundled models against fresh renders: PSNR, classes read from samples, distances, speed, and two pictures.

    python recipes/bundled/measure.py -o bundled.json --pictures docs/
    python recipes/bundled/measure.py --tokenizer work/scenes-64.safetensors --generator work/maskgit.safetensors

Training and held-out scenes are rendered from seeds that recipes/bundled/ does not use. The pictures are
scenes-64.png (originals, reconstructions and samples with the names of their classes) and which-are-real.png (24
renders and 24 samples, mixed by a fixed seed; which are which stands in the JSON).
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from titokctl.context import Context
from titokctl.data.scenes.factors import CLASS_ATTRIBUTES, CLASS_NAMES, scene
from titokctl.data.scenes.renderer import render
from titokctl.evaluation.baselines import PrincipalAxes, mean_colour_psnr
from titokctl.evaluation.extractors import ExtractorOptions, open_extractor
from titokctl.evaluation.image_sets import Opening, open_images
from titokctl.evaluation.reconstruction import reconstruct_and_score
from titokctl.jobs.demo import scores
from titokctl.jobs.sample.request import Sample
from titokctl.weights.load import load_tokenizer

TRAINING_SEED, HELD_OUT_SEED = 101, 102
SIZE = 64
SHOWN = ("red-ball", "blue-cone", "green-cube", "yellow-cylinder", "purple-ring", "cyan-ball")


def renders(seed: int, count: int) -> np.ndarray:
    """Return scenes 0 to `count` of a seed, (count, 64, 64, 3) uint8."""
    return np.stack([render(scene(seed, i), SIZE) for i in range(count)])


def sampled(arguments: argparse.Namespace, count: int, folder: Path, classes: list[int] | None = None) -> Any:
    """Return samples (n, 64, 64, 3) uint8 of classes in turn, and the seconds that the command's job took."""
    labels = classes or [i % len(CLASS_NAMES) for i in range(count)]
    context = Context(runs=folder / "runs")
    began = time.monotonic()
    request = Sample(
        arguments.generator, arguments.tokenizer, count, classes=labels, output=folder / f"samples-{count}"
    )
    drawn = request.run(context)
    seconds = time.monotonic() - began
    return np.concatenate(list(open_images(drawn.samples, Opening(context)).pixels())), seconds


def measure(arguments: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the figures, and the images for the pictures by name."""
    training, held_out = renders(TRAINING_SEED, 3_000), renders(HELD_OUT_SEED, arguments.samples)
    again, score = reconstruct_and_score(load_tokenizer(arguments.tokenizer), held_out)
    drawn, seconds = sampled(arguments, arguments.samples, folder)
    _, seconds_of_64 = sampled(arguments, 64, folder)
    labels = np.arange(arguments.samples) % len(CLASS_NAMES)
    sets = {scores.HELD_OUT: held_out, scores.RECONSTRUCTIONS: again, scores.SAMPLES: drawn}
    training_labels = np.arange(len(training)) % len(CLASS_NAMES)
    images = scores.DemoImages(training, training_labels, sets, labels, CLASS_ATTRIBUTES, len(training))
    extractors = {n: open_extractor(n, ExtractorOptions()) for n in (scores.SEEN, scores.UNSEEN)}
    found = scores.score(images, extractors, Context(runs=folder / "runs"))
    axes = PrincipalAxes(training)
    figures = {
        "images": arguments.samples,
        "psnr": {"reconstructions": score.psnr_pooled, "mean_colour": mean_colour_psnr(held_out),
                 "pca_32": axes.psnr_of_numbers(held_out, 32), "gaussian_320_bits": axes.psnr_of_bits(held_out, 320.0)},
        "probes": {p.attribute: {"samples": p.samples, "reconstructions": p.reconstructions, "held_out": p.held_out}
                   for p in found.probes},
        "distances": {y.name: y.distances for y in found.yardsticks},
        "closer_than_held_out": [{"quantile": c.quantile, "share": c.share} for c in found.closer],
        "seconds": {str(arguments.samples): seconds, "64": seconds_of_64},
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    return figures, {"held_out": held_out, "again": again, "drawn": drawn}


def first_picture(images: dict[str, np.ndarray], path: Path) -> None:
    """Draw six columns of classes: an original and its reconstruction twice, then four samples."""
    label_height, edge, gap = 18, 96, 3
    numbers = [CLASS_NAMES.index(name) for name in SHOWN]
    per_class = len(CLASS_NAMES)
    rows: list[tuple[str, np.ndarray, int]] = [
        ("render", images["held_out"], 0), ("from 32 tokens", images["again"], 0),
        ("render", images["held_out"], 1), ("from 32 tokens", images["again"], 1),
        *(("sample", images["drawn"], k) for k in range(4)),
    ]  # fmt: skip
    left = 110
    sheet = Image.new("RGB", (left + len(SHOWN) * (edge + gap), label_height + len(rows) * (edge + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(SHOWN):
        draw.text((left + column * (edge + gap), 3), name, "black")
    for row, (title, pixels, turn) in enumerate(rows):
        y = label_height + row * (edge + gap)
        draw.text((4, y + edge // 2 - 6), title, "black")
        for column, number in enumerate(numbers):
            tile = Image.fromarray(pixels[number + turn * per_class]).resize((edge, edge), Image.Resampling.BICUBIC)
            sheet.paste(tile, (left + column * (edge + gap), y))
    sheet.save(path)


def mixed_sheet(images: dict[str, np.ndarray], path: Path) -> list[int]:
    """Draw 24 renders and 24 samples in a fixed random order; return the numbers (from 1) of the renders."""
    picked = np.concatenate([images["held_out"][30:54], images["drawn"][54:78]])
    order = np.random.default_rng(7).permutation(len(picked))
    edge, gap, columns = 96, 3, 12
    sheet = Image.new("RGB", (columns * (edge + gap), len(picked) // columns * (edge + gap + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, chosen in enumerate(order):
        x, y = place % columns * (edge + gap), place // columns * (edge + gap + 14)
        draw.text((x + 2, y + 1), str(place + 1), "black")
        sheet.paste(Image.fromarray(picked[chosen]).resize((edge, edge), Image.Resampling.BICUBIC), (x, y + 14))
    sheet.save(path)
    return [int(place) + 1 for place, chosen in enumerate(order) if chosen < 24]


def main() -> None:
    """Measure, print JSON, and draw the pictures that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default="scenes-64")
    parser.add_argument("--generator", default="maskgit-scenes-64")
    parser.add_argument("--samples", type=int, default=2_000, help="samples and held-out renders")
    parser.add_argument("-o", "--output", type=Path, help="where to write the JSON, too")
    parser.add_argument("--pictures", type=Path, help="the folder for both pictures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures, images = measure(arguments, Path(folder))
    if arguments.pictures:
        first_picture(images, arguments.pictures / "scenes-64.png")
        figures["renders_on_the_mixed_sheet"] = mixed_sheet(images, arguments.pictures / "which-are-real.png")
    text = json.dumps(figures, indent=1)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
