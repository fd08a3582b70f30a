"""`titokctl demo`: the whole chain on real pictures, from map tiles of the Earth to a report with scores.

Everything lies in one folder, in the same formats as any other run; the same command resumes a stopped demo.
"""

import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.config import recipe_files
from titokctl.context import Context
from titokctl.data.earth import CLASS_NAMES, SPLITS, TILE, write_earth_shards
from titokctl.data.sources import open_source
from titokctl.data.training_images import Augmentation, TrainingImages
from titokctl.data.workers import available_cores
from titokctl.distributed.launch import run_workers
from titokctl.evaluation.extractors import Extractor, ExtractorOptions, open_extractor
from titokctl.evaluation.image_sets import Opening, open_images
from titokctl.formats.demo_folder import claim, write_results
from titokctl.formats.folder_lock import folder_lock
from titokctl.formats.run_folder import open_run
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.demo import scores
from titokctl.jobs.demo.report import draw_pictures, write_report
from titokctl.jobs.sample.request import Sample
from titokctl.jobs.tokenize.request import Tokenize
from titokctl.jobs.train.generator import TrainGenerator
from titokctl.jobs.train.tokenizer import TrainedTokenizer, TrainTokenizer
from titokctl.progress import SilentProgress
from titokctl.weights.hashes import encoder_sha256
from titokctl.weights.load import load_tokenizer

_PCA_NUMBERS = 32
_PROCESSES = 2
_COMPARED = 480  # images of every set; most of the scores' time goes into their features


@dataclass(frozen=True)
class DemoResult:
    """The folder, the metrics of every step, and the seconds that each took in this run."""

    folder: Path
    report: Path
    tiles: dict[str, int]
    tokenizer: dict[str, Any]
    generator: dict[str, Any]
    scores: scores.DemoScores
    seconds: dict[str, float]


@dataclass(frozen=True)
class Demo:
    """Run the chain in the folder `output`: shards, tokenizer, token caches, generator, samples, scores, report.

    Args:
        output: the folder; results of earlier runs in it are used.
        seed: of training and sampling.
    """

    output: Path = Path("demo")
    seed: int = 0

    def run(self, context: Context) -> DemoResult:
        """Run all steps, or resume. The context's runs folder is not used: the runs lie in the demo's folder.

        Raises UserError when packages of the demo extra are missing, and Stopped after a signal, with finished steps
        kept.
        """
        # The extractor needs the demo extra: open it before minutes of training.
        extractor = open_extractor("lite0", ExtractorOptions(precision="bf16"))
        claim(self.output)
        with folder_lock(self.output):
            return _Steps(self.output, self.seed, replace(context, runs=self.output / "runs")).run(extractor)


@dataclass
class _Steps:
    """The steps of one demo, and the seconds that each took."""

    folder: Path
    seed: int
    context: Context
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.train, self.held_out = (self.folder / "shards" / split for split in SPLITS)

    def run(self, extractor: Extractor) -> DemoResult:
        """Run all steps; those that are finished already return their results at once."""
        with self._step("shards"):
            tiles = write_earth_shards(self.folder / "shards", self.context.progress)
        self.context.stop.check("The shards are kept.")
        with self._step("train-tokenizer"):
            trained = self._tokenizer()
        with self._step("tokenize"):
            cache = self._tokenized(self.train, self.folder / "tokens.h5", trained)
            judged = self._tokenized(self.held_out, self.folder / "heldout.h5", trained)
        with self._step("train-gen"):
            overrides = [f"training.seed={self.seed}"]
            training = TrainGenerator(cache.path, overrides=overrides, validation=judged.path)
            generator = training.run(self.context)
        with self._step("sample"):
            compared = np.linspace(0, len(judged) - 1, min(len(judged), _COMPARED)).astype(np.int64)
            labels = [int(label) for label in judged.labels[compared]]
            request = Sample(
                str(generator.run), str(trained.run), len(labels), classes=labels, settings={"seed": self.seed}
            )
            drawn = request.run(self.context)
        self.context.stop.check("The samples are kept.")
        with self._step("evaluate"):
            tiles_held_out = _pixels(self.held_out)
            images = self._images(tiles_held_out, cache, judged, compared, trained, drawn.samples)
            found = scores.score(images, extractor, self.context)
            yardsticks = {
                "psnr_mean_colour": scores.mean_colour_psnr(tiles_held_out),
                f"psnr_pca_{_PCA_NUMBERS}": scores.pca_psnr(images.training, tiles_held_out, _PCA_NUMBERS),
            }
        draw_pictures(self.folder, images, CLASS_NAMES)
        report, metrics = self.folder / "report.html", trained.metrics | yardsticks
        result = DemoResult(self.folder, report, tiles, metrics, generator.metrics, found, self.seconds)
        record = asdict(result) | {"folder": str(self.folder), "report": str(report), "kid_ratio": found.kid_ratio}
        write_results(self.folder, record)
        write_report(result, trained.run, generator.run)
        return result

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began

    def _tokenizer(self) -> TrainedTokenizer:
        """Train the tokenizer, on a CPU with two processes: models of this size are too small for threads.

        The number of processes changes only the last bits. A hash of the settings is part of the run's name, so that
        other settings make another run.
        """
        override = f"training.seed={self.seed}"
        recipe = recipe_files.load("tiny", "tokenizer", [override])
        name = f"tiny-{hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()[:8]}"
        run = self.context.runs / "tokenizer" / name
        is_finished = (run / "run.json").is_file() and open_run(run).is_finished
        if self.context.device == "cpu" and available_cores() > 1 and not is_finished:
            words = ["train-tokenizer", self.train, "--val", self.held_out, "--recipe", "tiny", "--set", override]
            words += ["--name", name, "--runs-dir", self.context.runs, "--device", self.context.device]
            words += ["--quiet"] if isinstance(self.context.progress, SilentProgress) else []
            run_workers(["-m", "titokctl", *map(str, words)], _PROCESSES, stdout=subprocess.DEVNULL)
        request = TrainTokenizer([self.train], "tiny", [override], [self.held_out], name=name)
        return request.run(self.context)

    def _tokenized(self, shards: Path, output: Path, trained: TrainedTokenizer) -> TokenCache:
        """Return the cache of `shards`, made by the trained tokenizer, or by an earlier run with the same."""
        if output.exists():
            cache = TokenCache.open(output)
            if cache.header.weights_sha256 == trained.weights_sha256:
                return cache
        Tokenize([shards], output, str(trained.run), overwrite=True).run(self.context)
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
        """Return the images to compare: the training tiles, and sets with an image for each row in `compared`."""
        tokenizer = load_tokenizer(trained.run)
        assert encoder_sha256(tokenizer) == cache.header.encoder_sha256
        count, codes = len(compared), cache.codebook_size
        drawn = open_images(samples, Opening(self.context))
        pixels = {
            scores.HELD_OUT: held_out[compared],
            scores.RECONSTRUCTIONS: scores.decoded(tokenizer, judged.ids[compared]),
            scores.SAMPLES: np.concatenate(list(drawn.pixels())),
            scores.SHUFFLED: scores.decoded(tokenizer, scores.shuffled_ids(cache.ids, count)),
            scores.NOISE: scores.decoded(tokenizer, scores.noise_ids(count, cache.num_latent_tokens, codes)),
        }
        labels = judged.labels[compared]
        return scores.DemoImages(_pixels(self.train), cache.labels, pixels, labels, labels)


def _pixels(shards: Path) -> np.ndarray:
    """Return all tiles of a split, (n, S, S, 3) uint8."""
    images = TrainingImages(open_source([shards]).by_position(), TILE, Augmentation("center", flip=False))
    return images.batch(np.zeros(len(images), np.int64), np.arange(len(images))).numpy()
