"""`titokctl demo`: the whole chain from scratch, from rendered scenes or one's own images to a report with scores.

Everything lies in one folder, in the same formats as any other run; the same command resumes a stopped demo.

Specification: `demo.json`, {"format": "titokctl/demo", "format_version": 1}, marks the folder, whose files the demo may
replace. `results.json` is the `DemoResult` and `kid_ratio`. It has no version: it is for people, and to compare runs of
one release.
"""

import hashlib
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.config import recipe_files
from titokctl.context import Context
from titokctl.data.order import spread_positions
from titokctl.data.sources import open_source
from titokctl.data.training_images import Augmentation, TrainingImages
from titokctl.distributed.launch import run_workers
from titokctl.distributed.place import available_cores
from titokctl.errors import UserError
from titokctl.evaluation.extractors import Extractor, ExtractorOptions, open_extractor
from titokctl.evaluation.image_sets import Opening, open_images
from titokctl.formats.atomic import write_json
from titokctl.formats.folder_lock import contents_of, folder_lock
from titokctl.formats.run_folder import open_run
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.demo import pictures, scores
from titokctl.jobs.demo.bundled import Bundled, show_bundled
from titokctl.jobs.demo.pictures import Pictures
from titokctl.jobs.demo.report import draw_pictures, write_report
from titokctl.jobs.sample.request import Sample
from titokctl.jobs.tokenize.request import Tokenize
from titokctl.jobs.train.generator import TrainedGenerator, TrainGenerator
from titokctl.jobs.train.tokenizer import TrainedTokenizer, TrainTokenizer
from titokctl.progress import SilentProgress
from titokctl.weights.hashes import encoder_sha256
from titokctl.weights.load import load_tokenizer

FORMAT, FORMAT_VERSION = "titokctl/demo", 1
_MARKER, _RESULTS = "demo.json", "results.json"
_PROCESSES = 2
_COMPARED = 300  # images of every set; most of the scores' time goes into their features
_REFERENCE = 1_200  # training images whose features they are compared with
_TRAINING_IMAGES = 3_000  # for probes of histograms, which are cheap


@dataclass(frozen=True)
class DemoResult:
    """The folder, the metrics of every step, and the seconds that each took in this run.

    `bundled` is None for one's own images, and where the package lacks the bundled models.
    """

    folder: Path
    report: Path
    about: str
    images: dict[str, int]
    tokenizer: dict[str, Any]
    generator: dict[str, Any]
    scores: scores.DemoScores
    seconds: dict[str, float]
    bundled: Bundled | None


@dataclass(frozen=True)
class Demo:
    """Run the chain in the folder `output`: shards, tokenizer, token caches, generator, samples, scores, report.

    Args:
        output: the folder; results of earlier runs in it are used.
        seed: of the scenes, of training and sampling.
        images: a folder of images, with a folder per class or without; None renders scenes.
    """

    output: Path = Path("demo")
    seed: int = 0
    images: Path | None = None

    def run(self, context: Context) -> DemoResult:
        """Run all steps, or resume. The context's runs folder is not used: the runs lie in the demo's folder.

        Raises UserError when packages of the demo extra are missing, and Stopped after a signal, with finished steps
        kept.
        """
        # The extractors need the demo extra: open them before minutes of training.
        options = ExtractorOptions(precision="bf16")
        extractors = {name: open_extractor(name, options) for name in (scores.SEEN, scores.UNSEEN)}
        _claim(self.output)
        with folder_lock(self.output):
            steps = _Steps(self.output, self.seed, self.images, replace(context, runs=self.output / "runs"))
            return steps.run(extractors)


@dataclass
class _Steps:
    """The steps of one demo, and the seconds that each took."""

    folder: Path
    seed: int
    own: Path | None
    context: Context
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, extractors: dict[str, Extractor]) -> DemoResult:
        """Run all steps; those that are finished already return their results at once."""
        with self._step("pictures"):
            shards = self.folder / "shards"
            made = (
                pictures.own_images(self.own, shards, self.context)
                if self.own
                else pictures.scenes(shards, self.seed, self.context)
            )
        self.context.stop.check("The shards are kept.")
        with self._step("train-tokenizer"):
            trained = self._tokenizer(made)
        with self._step("tokenize"):
            cache = self._tokenized(made.train, self.folder / "tokens.h5", trained)
            judged = self._tokenized(made.held_out, self.folder / "heldout.h5", trained)
        with self._step("train-gen"):
            generator = self._generator(cache, judged)
        with self._step("bundled models"):
            held_out = _pixels(made.held_out)
            hours = None if self.own else show_bundled(self.folder, held_out, self.context)
        with self._step("sample"):
            compared = spread_positions(len(judged), _COMPARED)
            labels = judged.labels[compared].tolist() if made.attributes else None
            request = Sample(
                str(generator.run), str(trained.run), len(compared), classes=labels, settings={"seed": self.seed}
            )
            drawn = request.run(self.context)
        self.context.stop.check("The samples are kept.")
        with self._step("evaluate"):
            images = self._images(held_out, cache, judged, compared, trained, drawn.samples, made)
            found = scores.score(images, extractors, self.context)
        draw_pictures(self.folder, images, made.class_names)
        sizes = {"train": len(cache), "held out": len(judged)}
        report = self.folder / "report.html"
        metrics = trained.metrics, generator.metrics
        result = DemoResult(self.folder, report, made.about, sizes, *metrics, found, self.seconds, hours)
        record = asdict(result) | {"folder": str(self.folder), "report": str(result.report)}
        write_json(self.folder / _RESULTS, record | {"kid_ratio": found.kid_ratio})
        write_report(result, trained.run, generator.run)
        return result

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began

    def _tokenizer(self, made: Pictures) -> TrainedTokenizer:
        """Train the tokenizer. A hash of the settings is in the run's name, so that others make another run."""
        override = f"training.seed={self.seed}"
        recipe = recipe_files.load("tiny", "tokenizer", [override])
        name = _run_name(recipe.model_dump_json())
        words = [made.train, "--val", made.held_out, "--recipe", "tiny", "--set", override]
        self._train("tokenizer", name, ["train-tokenizer", *words])
        return TrainTokenizer([made.train], "tiny", [override], [made.held_out], name=name).run(self.context)

    def _generator(self, cache: TokenCache, judged: TokenCache) -> TrainedGenerator:
        """Train the generator, in a run whose name has a hash of the settings and of the tokenizer's weights."""
        overrides = [f"training.seed={self.seed}", f"views=[{','.join(cache.views)}]"]
        recipe = recipe_files.load("tiny", "generator", overrides)
        name = _run_name(recipe.model_dump_json() + cache.header.weights_sha256)
        words = [cache.path, "--val", judged.path, *(word for each in overrides for word in ("--set", each))]
        self._train("generator", name, ["train-gen", *words])
        return TrainGenerator(cache.path, overrides=overrides, validation=judged.path, name=name).run(self.context)

    def _train(self, kind: str, name: str, words: Sequence[object]) -> None:
        """Run a training command in two processes on a CPU: models of this size are too small for threads.

        The number of processes changes only the last bits. Nothing is done where a request in this process does it:
        on a GPU, on one core, and for a finished run.
        """
        run = self.context.runs / kind / name
        is_finished = (run / "run.json").is_file() and open_run(run).is_finished
        if self.context.device != "cpu" or available_cores() < 2 or is_finished:
            return
        ends = ["--name", name, "--runs-dir", self.context.runs, "--device", self.context.device]
        ends += ["--quiet"] if isinstance(self.context.progress, SilentProgress) else []
        run_workers(["-m", "titokctl", *map(str, [*words, *ends])], _PROCESSES, stdout=subprocess.DEVNULL)

    def _tokenized(self, shards: Path, output: Path, trained: TrainedTokenizer) -> TokenCache:
        """Return the cache of `shards`, made by the trained tokenizer, or by an earlier run with the same.

        Photos are mirrored, too. Rendered scenes are not: there can be as many as one likes.
        """
        if output.exists():
            cache = TokenCache.open(output)
            if cache.header.weights_sha256 == trained.weights_sha256:
                return cache
        views = ["flip"] if self.own else []
        request = Tokenize([shards], output, str(trained.run), views, precision="bf16", overwrite=True)
        request.run(self.context)
        return TokenCache.open(output)

    def _images(
        self,
        held_out: np.ndarray,
        cache: TokenCache,
        judged: TokenCache,
        compared: np.ndarray,
        trained: TrainedTokenizer,
        samples: Path,
        made: Pictures,
    ) -> scores.DemoImages:
        """Return the images to compare: training images, and sets with an image for each row in `compared`."""
        tokenizer = load_tokenizer(trained.run)
        assert encoder_sha256(tokenizer) == cache.header.encoder_sha256
        count = len(compared)
        drawn = open_images(samples, Opening(self.context))
        sets = {
            scores.HELD_OUT: held_out[compared],
            scores.RECONSTRUCTIONS: scores.decoded(tokenizer, judged.ids[compared]),
            scores.SAMPLES: np.concatenate(list(drawn.pixels())),
            scores.SHUFFLED: scores.decoded(tokenizer, scores.shuffled_ids(cache.ids, count)),
        }
        training, labels = _pixels(made.train, _TRAINING_IMAGES), cache.labels[_spread(len(cache), _TRAINING_IMAGES)]
        return scores.DemoImages(training, labels, sets, judged.labels[compared], made.attributes, _REFERENCE)


def _claim(folder: Path) -> None:
    """Mark `folder` as a demo's. Raises UserError for a folder with other files, which could be overwritten."""
    marker = folder / _MARKER
    if marker.is_file():
        return
    if folder.is_dir() and contents_of(folder):
        raise UserError(f"{folder} holds other files, which the demo could overwrite", "choose another folder with -o")
    with folder_lock(folder):
        write_json(marker, {"format": FORMAT, "format_version": FORMAT_VERSION})


def _run_name(settings: str) -> str:
    return f"tiny-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


def _spread(total: int, count: int | None) -> np.ndarray:
    """Return `count` positions in a fixed random order, spread over `total`; all in order for None."""
    if count is None:
        return np.arange(total)
    return np.random.default_rng(0).permutation(total)[: min(count, total)]


def _pixels(shards: Path, count: int | None = None) -> np.ndarray:
    """Return images of a split, (n, S, S, 3) uint8: all, or `count` that are spread over it."""
    images = TrainingImages(open_source([shards]).by_position(), pictures.SIZE, Augmentation("center", flip=False))
    positions = _spread(len(images), count)
    return images.batch(np.zeros(len(positions), np.int64), positions).numpy()
