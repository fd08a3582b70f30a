"""`titokctl demo`: the whole chain on real pictures, from tiles of the Earth to a scored report.

Everything lies in one folder, in the same forms as any other run's; the same command goes on with what is there.
"""

import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from titokctl.config import recipe_files
from titokctl.data.earth import CLASS_NAMES, SPLITS, TILE, write_earth_shards
from titokctl.data.sources import open_source
from titokctl.data.training_images import TrainingImages
from titokctl.data.workers import available_cores
from titokctl.distributed.launch import run_workers
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.evaluation.extractors import ExtractorOptions, open_extractor
from titokctl.formats.atomic import write_json
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.run_folder import open_run
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs import demo_scores as scores
from titokctl.jobs.demo_report import draw_pictures, write_report
from titokctl.jobs.image_set import Opening
from titokctl.jobs.image_sets import open_images
from titokctl.jobs.sample import sample
from titokctl.jobs.tokenize import tokenize
from titokctl.jobs.train_generator import TrainedGenerator, train_generator
from titokctl.jobs.train_tokenizer import TrainedTokenizer, train_tokenizer
from titokctl.progress import Progress, SilentProgress
from titokctl.weights.hashes import encoder_sha256
from titokctl.weights.load import load_tokenizer

_PCA_NUMBERS = 32
_PROCESSES = 2
_COMPARED = 480  # images of every set; features are what the scores cost
_MARKER, _FORMAT = "demo.json", "titokctl/demo"


@dataclass(frozen=True)
class DemoResult:
    """Where everything is, the numbers of every step, and how long each took in this run (seconds)."""

    folder: Path
    report: Path
    tiles: dict[str, int]
    tokenizer: dict[str, Any]
    generator: dict[str, Any]
    scores: scores.DemoScores
    seconds: dict[str, float]


class Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began


def demo(folder: Path, *, seed: int = 0, device: str = "cpu", progress: Progress, stop: StopRequest) -> DemoResult:
    """Run the chain in `folder`: shards, tokenizer, token caches, generator, samples, scores, report.

    Raises: UserError when the packages of the demo extra are missing; Stopped after a signal, with finished steps kept.
    """
    # Before minutes of training: is the extra there?
    extractor = open_extractor("lite0", ExtractorOptions(precision="bf16"))
    clock, runs = Clock(), folder / "runs"
    _claim(folder)
    with folder_lock(folder):
        with clock.step("shards"):
            tiles = write_earth_shards(folder / "shards", progress)
        stop.check("The shards are kept.")
        train, held_out = (folder / "shards" / split for split in SPLITS)
        with clock.step("train-tokenizer"):
            trained = _trained_tokenizer(train, held_out, runs, seed, device, progress, stop)
        with clock.step("tokenize"):
            cache = _tokenized(train, folder / "tokens.h5", trained, runs, device, progress, stop)
            judged = _tokenized(held_out, folder / "heldout.h5", trained, runs, device, progress, stop)
        with clock.step("train-gen"):
            generator = train_generator(
                cache.path, None, runs, overrides=[f"training.seed={seed}"], validation=judged.path,
                device=device, progress=progress, stop=stop,
            )  # fmt: skip
        with clock.step("sample"):
            compared = _evenly(len(judged), _COMPARED)
            labels = [int(label) for label in judged.labels[compared]]
            drawn = sample(
                runs, generator=str(generator.run), tokenizer=str(trained.run), num_images=len(labels), classes=labels,
                changes={"seed": seed}, device=device, progress=progress, stop=stop,
            )  # fmt: skip
        stop.check("The samples are kept.")
        with clock.step("evaluate"):
            tiles_held_out = _real(held_out)
            images = _images(train, tiles_held_out, cache, judged, compared, trained, drawn.samples, runs, progress)
            found = scores.score(images, extractor, progress, stop)
            yardsticks = {
                "psnr_mean_colour": scores.mean_colour_psnr(tiles_held_out),
                f"psnr_pca_{_PCA_NUMBERS}": scores.pca_psnr(images.training, tiles_held_out, _PCA_NUMBERS),
            }
        return _finish(folder, tiles, trained, generator, found, images, yardsticks, clock)


def _claim(folder: Path) -> None:
    """Mark `folder` as a demo's. Raises UserError for one that holds something else, which would be overwritten."""
    marker = folder / _MARKER
    if marker.is_file():
        return
    if folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir()):
        raise UserError(f"{folder} holds other files, and the demo would overwrite some", "name another folder with -o")
    with folder_lock(folder):
        write_json(marker, {"format": _FORMAT, "format_version": 1})


def _run_name(recipe: BaseModel) -> str:
    """Other settings, another run: the recipe's name and a hash of what it says."""
    return f"tiny-{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]}"


def _trained_tokenizer(
    train: Path, held_out: Path, runs: Path, seed: int, device: str, progress: Progress, stop: StopRequest
) -> TrainedTokenizer:
    """The tokenizer, trained by two processes: at this size two threads of one get in each other's way.

    Their number changes nothing but the last bits.
    """
    override = f"training.seed={seed}"
    recipe = recipe_files.load("tiny", "tokenizer", [override])
    name = _run_name(recipe)
    if device == "cpu" and available_cores() > 1 and not _is_finished(runs / "tokenizer" / name):
        words = ["train-tokenizer", str(train), "--val", str(held_out), "--recipe", "tiny", "--set", override]
        words += ["--name", name, "--runs-dir", str(runs), "--device", device]
        words += ["--quiet"] if isinstance(progress, SilentProgress) else []
        run_workers(["-m", "titokctl", *words], _PROCESSES, stdout=subprocess.DEVNULL)
    return train_tokenizer(
        [train], recipe, "tiny", runs, validation=[held_out], name=name, device=device, progress=progress, stop=stop
    )


def _is_finished(run: Path) -> bool:
    return (run / "run.json").is_file() and open_run(run).is_finished


def _tokenized(
    shards: Path,
    output: Path,
    trained: TrainedTokenizer,
    runs: Path,
    device: str,
    progress: Progress,
    stop: StopRequest,
) -> TokenCache:
    """The cache of `shards` by the trained tokenizer; one that is there already is used."""
    if output.exists():
        cache = TokenCache.open(output)
        if cache.header.weights_sha256 == trained.weights_sha256:
            return cache
    tokenize([shards], output, str(trained.run), runs, overwrite=True, device=device, progress=progress, stop=stop)
    return TokenCache.open(output)


def _images(
    train: Path,
    held_out: np.ndarray,
    cache: TokenCache,
    judged: TokenCache,
    compared: np.ndarray,
    trained: TrainedTokenizer,
    samples: Path,
    runs: Path,
    progress: Progress,
) -> scores.DemoImages:
    """All pictures that are compared: the training tiles, and sets of as many as `compared` names held-out tiles."""
    tokenizer = load_tokenizer(trained.run)
    assert encoder_sha256(tokenizer) == cache.header.encoder_sha256
    count, codes = len(compared), cache.codebook_size
    drawn = open_images(samples, Opening(runs, progress.say))
    pixels = {
        scores.HELD_OUT: held_out[compared],
        scores.RECONSTRUCTIONS: scores.decoded(tokenizer, judged.ids[compared]),
        scores.SAMPLES: np.concatenate(list(drawn.batches())),
        scores.SHUFFLED: scores.decoded(tokenizer, scores.shuffled_ids(cache.ids, count)),
        scores.NOISE: scores.decoded(tokenizer, scores.noise_ids(count, cache.num_latent_tokens, codes)),
    }
    labels = judged.labels[compared]
    return scores.DemoImages(_real(train), cache.labels, pixels, labels, labels)


def _evenly(count: int, at_most: int) -> np.ndarray:
    """At most so many positions among `count`, evenly spread."""
    return np.linspace(0, count - 1, min(count, at_most)).astype(np.int64)


def _real(shards: Path) -> np.ndarray:
    images = TrainingImages(open_source([shards]), TILE, crop="center", flip=False)
    return images.batch(np.zeros(len(images), np.int64), np.arange(len(images))).numpy()


def _finish(
    folder: Path,
    tiles: dict[str, int],
    trained: TrainedTokenizer,
    generator: TrainedGenerator,
    found: scores.DemoScores,
    images: scores.DemoImages,
    yardsticks: dict[str, float],
    clock: Clock,
) -> DemoResult:
    """Pictures, results.json and report.html."""
    draw_pictures(folder, images, CLASS_NAMES)
    result = DemoResult(
        folder, folder / "report.html", tiles, trained.metrics | yardsticks, generator.metrics, found, clock.seconds
    )
    record = asdict(result) | {"folder": str(folder), "report": str(result.report), "kid_ratio": found.kid_ratio}
    write_json(folder / "results.json", record)
    write_report(result, trained.run, generator.run)
    return result
