"""`titokctl demo`: the whole chain on real pictures, from tiles of the Earth to a scored report.

Everything lies in one folder, in the same forms as any other run's; the same command goes on with what is there.
"""

import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.config import recipe_files
from titokctl.context import Context
from titokctl.data.earth import CLASS_NAMES, SPLITS, TILE, write_earth_shards
from titokctl.data.sources import open_source
from titokctl.data.training_images import TrainingImages
from titokctl.data.workers import available_cores
from titokctl.distributed.launch import run_workers
from titokctl.distributed.stop import StopRequest
from titokctl.errors import UserError
from titokctl.evaluation.extractors import Extractor, ExtractorOptions, open_extractor
from titokctl.evaluation.image_set import Opening
from titokctl.evaluation.image_sets import open_images
from titokctl.formats.atomic import write_json
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.run_folder import open_run
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.demo import scores as scores
from titokctl.jobs.demo.report import draw_pictures, write_report
from titokctl.jobs.sample.request import Sample
from titokctl.jobs.tokenize.request import tokenize
from titokctl.jobs.train.generator import train_generator
from titokctl.jobs.train.tokenizer import TrainedTokenizer, train_tokenizer
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


def demo(folder: Path, *, seed: int = 0, device: str = "cpu", progress: Progress, stop: StopRequest) -> DemoResult:
    """Run the chain in `folder`: shards, tokenizer, token caches, generator, samples, scores, report.

    Raises: UserError when the packages of the demo extra are missing; Stopped after a signal, with finished steps kept.
    """
    # Before minutes of training: is the extra there?
    extractor = open_extractor("lite0", ExtractorOptions(precision="bf16"))
    _claim(folder)
    with folder_lock(folder):
        return _Demo(folder, seed, device, progress, stop).run(extractor)


def _claim(folder: Path) -> None:
    """Mark `folder` as a demo's. Raises UserError for one that holds something else, which would be overwritten."""
    marker = folder / _MARKER
    if marker.is_file():
        return
    if folder.is_dir() and any(path.name != ".lock" for path in folder.iterdir()):
        raise UserError(f"{folder} holds other files, and the demo would overwrite some", "name another folder with -o")
    with folder_lock(folder):
        write_json(marker, {"format": _FORMAT, "format_version": 1})


@dataclass
class _Demo:
    """The steps of one demo, and the seconds that each took."""

    folder: Path
    seed: int
    device: str
    progress: Progress
    stop: StopRequest
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.runs = self.folder / "runs"
        self.train, self.held_out = (self.folder / "shards" / split for split in SPLITS)
        self.usual: dict[str, Any] = {"device": self.device, "progress": self.progress, "stop": self.stop}

    def run(self, extractor: Extractor) -> DemoResult:
        """All of it; what is there already is used."""
        with self._step("shards"):
            tiles = write_earth_shards(self.folder / "shards", self.progress)
        self.stop.check("The shards are kept.")
        with self._step("train-tokenizer"):
            trained = self._tokenizer()
        with self._step("tokenize"):
            cache = self._tokenized(self.train, self.folder / "tokens.h5", trained)
            judged = self._tokenized(self.held_out, self.folder / "heldout.h5", trained)
        with self._step("train-gen"):
            overrides = [f"training.seed={self.seed}"]
            generator = train_generator(
                cache.path, None, self.runs, overrides=overrides, validation=judged.path, **self.usual
            )
        with self._step("sample"):
            compared = np.linspace(0, len(judged) - 1, min(len(judged), _COMPARED)).astype(np.int64)
            labels = [int(label) for label in judged.labels[compared]]
            request = Sample(
                str(generator.run), str(trained.run), len(labels), classes=labels, settings={"seed": self.seed}
            )
            drawn = request.run(Context(self.runs, **self.usual))
        self.stop.check("The samples are kept.")
        with self._step("evaluate"):
            tiles_held_out = _pixels(self.held_out)
            images = self._images(tiles_held_out, cache, judged, compared, trained, drawn.samples)
            found = scores.score(images, extractor, self.progress, self.stop)
            yardsticks = {
                "psnr_mean_colour": scores.mean_colour_psnr(tiles_held_out),
                f"psnr_pca_{_PCA_NUMBERS}": scores.pca_psnr(images.training, tiles_held_out, _PCA_NUMBERS),
            }
        draw_pictures(self.folder, images, CLASS_NAMES)
        report, metrics = self.folder / "report.html", trained.metrics | yardsticks
        result = DemoResult(self.folder, report, tiles, metrics, generator.metrics, found, self.seconds)
        record = asdict(result) | {"folder": str(self.folder), "report": str(report), "kid_ratio": found.kid_ratio}
        write_json(self.folder / "results.json", record)
        write_report(result, trained.run, generator.run)
        return result

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began

    def _tokenizer(self) -> TrainedTokenizer:
        """The tokenizer, trained by two processes: at this size two threads of one get in each other's way.

        Their number changes nothing but the last bits. Other settings are another run: a hash of them is in its name.
        """
        override = f"training.seed={self.seed}"
        recipe = recipe_files.load("tiny", "tokenizer", [override])
        name = f"tiny-{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]}"
        run = self.runs / "tokenizer" / name
        is_finished = (run / "run.json").is_file() and open_run(run).is_finished
        if self.device == "cpu" and available_cores() > 1 and not is_finished:
            words = ["train-tokenizer", self.train, "--val", self.held_out, "--recipe", "tiny", "--set", override]
            words += ["--name", name, "--runs-dir", self.runs, "--device", self.device]
            words += ["--quiet"] if isinstance(self.progress, SilentProgress) else []
            run_workers(["-m", "titokctl", *map(str, words)], _PROCESSES, stdout=subprocess.DEVNULL)
        return train_tokenizer(
            [self.train], recipe, "tiny", self.runs, validation=[self.held_out], name=name, **self.usual
        )

    def _tokenized(self, shards: Path, output: Path, trained: TrainedTokenizer) -> TokenCache:
        """The cache of `shards` by the trained tokenizer; one that is there already is used."""
        if output.exists():
            cache = TokenCache.open(output)
            if cache.header.weights_sha256 == trained.weights_sha256:
                return cache
        tokenize([shards], output, str(trained.run), self.runs, overwrite=True, **self.usual)
        return TokenCache.open(output)

    def _images(
        self,
        held_out: np.ndarray,
        cache: TokenCache,
        judged: TokenCache,
        compared: np.ndarray,
        trained: TrainedTokenizer,
        samples: Path,
    ) -> scores.DemoImages:
        """All pictures that are compared: the training tiles, and sets of as many images as `compared` names."""
        tokenizer = load_tokenizer(trained.run)
        assert encoder_sha256(tokenizer) == cache.header.encoder_sha256
        count, codes = len(compared), cache.codebook_size
        drawn = open_images(samples, Opening(self.runs, self.progress.say))
        pixels = {
            scores.HELD_OUT: held_out[compared],
            scores.RECONSTRUCTIONS: scores.decoded(tokenizer, judged.ids[compared]),
            scores.SAMPLES: np.concatenate(list(drawn.batches())),
            scores.SHUFFLED: scores.decoded(tokenizer, scores.shuffled_ids(cache.ids, count)),
            scores.NOISE: scores.decoded(tokenizer, scores.noise_ids(count, cache.num_latent_tokens, codes)),
        }
        labels = judged.labels[compared]
        return scores.DemoImages(_pixels(self.train), cache.labels, pixels, labels, labels)


def _pixels(shards: Path) -> np.ndarray:
    """(n, S, S, 3) uint8: all tiles of a split."""
    images = TrainingImages(open_source([shards]).by_position(), TILE, crop="center", flip=False)
    return images.batch(np.zeros(len(images), np.int64), np.arange(len(images))).numpy()
