"""The bundled models on the demo's held-out scenes: what hours of training give instead of minutes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from titokctl.context import Context
from titokctl.data.order import spread_positions
from titokctl.data.scenes.factors import CLASS_NAMES
from titokctl.evaluation.image_sets import Opening, open_images
from titokctl.evaluation.reconstruction import reconstruct_and_score
from titokctl.formats.picture import labelled_rows, save_png
from titokctl.jobs.sample.request import Sample
from titokctl.weights.known import BY_NAME
from titokctl.weights.load import load_tokenizer
from titokctl.weights.local import bundled_file

PICTURE = "bundled.png"
_TOKENIZER, _GENERATOR = "scenes-64", "maskgit-scenes-64"
_COLUMNS = 12
_SCORED = 300  # held-out scenes; all would take ten seconds


@dataclass(frozen=True)
class Bundled:
    """Held-out PSNR in dB of the bundled tokenizer on `images` images, and where and how long it was trained."""

    psnr: float
    images: int
    training_seconds: float
    device: str


def show_bundled(folder: Path, held_out: np.ndarray, context: Context) -> Bundled | None:
    """Write bundled.png: held-out scenes, their reconstructions, and samples. Return None if the models are missing.

    Args:
        folder: the demo's folder.
        held_out: scenes (n, 64, 64, 3) uint8.
        context: its device draws and decodes.
    """
    files = [bundled_file(BY_NAME[name]) for name in (_TOKENIZER, _GENERATOR)]
    if not all(file.is_file() for file in files):
        return None
    held_out = held_out[spread_positions(len(held_out), _SCORED)]
    again, score = reconstruct_and_score(load_tokenizer(_TOKENIZER), held_out)
    labels = np.linspace(0, len(CLASS_NAMES) - 1, _COLUMNS).astype(int).tolist()
    drawn = Sample(_GENERATOR, _TOKENIZER, 2 * _COLUMNS, classes=labels).run(context)
    samples = np.concatenate(list(open_images(drawn.samples, Opening(context)).pixels()))
    shown = spread_positions(len(held_out), _COLUMNS)
    rows = [
        ("held-out", held_out[shown]),
        ("from 32 tokens", again[shown]),
        ("samples", samples[:_COLUMNS]),
        ("", samples[_COLUMNS:]),
    ]
    save_png(folder / PICTURE, labelled_rows(rows))
    made = json.loads(files[0].with_name("numbers.json").read_text(encoding="utf-8"))
    seconds = sum(made["seconds"][step] for step in ("train-tokenizer", "train-gen")) + made.get("seconds_before", 0.0)
    return Bundled(score.psnr_pooled, score.images, seconds, made["device"])
