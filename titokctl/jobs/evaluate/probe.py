"""`titokctl probe`: how well a linear classifier reads classes from a frozen tokenizer's latents or codes.

Letters: n images, K latent tokens, C token size.
"""

import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.images import to_float
from titokctl.data.shares import ImagesInBatches, all_rejected, share_of
from titokctl.data.sources import Source, open_source
from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.distributed.reduce import rows_on_main
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.image_sets import unreadable
from titokctl.evaluation.linear_probe import fit_probe
from titokctl.jobs.machine.hardware import memory_bytes
from titokctl.models.device import default_batch_size
from titokctl.models.inference import prepared
from titokctl.models.precision import precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.readable import counted, size
from titokctl.weights.chain import pick_tokenizer
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_tokenizer
from titokctl.weights.read import trained_with_exif

Input = Literal["latents", "ids"]
INPUTS: tuple[Input, ...] = ("latents", "ids")
_COPIES = 3  # of all features that are in memory at once: batches, joined batches, and the two parts of a split


@dataclass(frozen=True)
class ProbeResult:
    """Shares of images whose class the probe names, on held-out images and on those it was fitted to.

    `chance` is the share of the most frequent class among the held-out images; `standard_error` is that of `accuracy`.
    """

    tokenizer: str
    weights_sha256: str
    input: str
    accuracy: float
    standard_error: float
    training_accuracy: float
    chance: float
    classes: int
    training_images: int
    held_out_images: int
    without_label: int
    skipped: int


@dataclass(frozen=True)
class Probe:
    """Fit multinomial logistic regression to the latents or codes of labelled images, and test it on held-out ones.

    Making one raises UsageError for wrong settings.

    Args:
        data: labelled images, as `open_source` takes them.
        tokenizer: as `load_tokenizer` takes it; None for the newest in the runs folder.
        validation: held-out images of the same classes; () keeps `val_fraction` of `data`.
        val_fraction: share of `data` that is held out, chosen by a hash of each image's key.
        input: "latents", the encoder's output before quantizing, or "ids", the code vectors of the ids. Either way the
            probe sees K x C standardised numbers of an image; of a Gaussian tokenizer, the means.
        penalty: weight of half the squared norm of the probe's weights.
        skip_bad: leave out images that can't be read.
        choices: of both sources, as for `open_source`.
    """

    data: Sequence[Path | str]
    tokenizer: str | None = None
    validation: Sequence[Path | str] = ()
    val_fraction: float = 0.2
    input: Input = "latents"
    penalty: float = 0.01
    skip_bad: bool = False
    choices: Choices = NO_CHOICES

    def __post_init__(self) -> None:
        if self.input not in INPUTS:
            raise UsageError(f"a probe can't read {self.input!r}", f"one of: {', '.join(INPUTS)}")
        if not 0 < self.val_fraction < 1:
            raise UsageError(f"--val-fraction must be between 0 and 1, not {self.val_fraction}")
        if self.penalty < 0:
            raise UsageError(f"--penalty must be at least 0, not {self.penalty}")

    def run(self, context: Context) -> ProbeResult:
        """Return the accuracies; of several processes, which share the images, each returns the same.

        The features of all images are held in memory on rank 0, three times for a moment: 4 x K x C bytes an image, 1.5
        kB for 32 tokens of 12 numbers and 65 kB for 256 tokens of 64.

        Raises UserError for images without labels, classes that differ, unreadable images, or features that don't fit
        into memory; Stopped after a signal.
        """
        group = context.group
        picked = pick_tokenizer(self.tokenizer, context.runs, context.say) if group.is_main else ""
        name: str = group.from_main(picked)
        with group.main_first():
            model = load_tokenizer(name, context.device)
            given = [paths for paths in (self.data, self.validation) if paths]
            sources = [open_source(paths, choices=self.choices, context=context) for paths in given]
        if self.input == "ids" and not model.config.is_discrete:
            raise UserError(
                f"{name} has a Gaussian bottleneck, which does not produce ids", "probe its latents: --input latents"
            )
        if len(sources) > 1:
            _check_same_classes(*sources)
        if group.is_main:
            context.say(_memory_for(sum(map(len, sources)), model))
        reader = _Reader(model, self.input, context, self.skip_bad, trained_with_exif(name))
        found = [reader.read(source) for source in sources]
        if not group.is_main:
            return ProbeResult(**group.from_main(None))
        result = self._judged(found, name, model, reader)
        return ProbeResult(**group.from_main(result))

    def _judged(self, found: "list[_Rows]", name: str, model: TiTok, reader: "_Reader") -> dict[str, object]:
        """Fit on the training rows and count on the held-out ones; the fields of the result."""
        training, judged = found if len(found) > 1 else found[0].split(self.val_fraction)
        if not len(training.labels) or not len(judged.labels):
            raise UserError(
                f"{counted(len(training.labels), 'labelled images')} to fit a probe and {len(judged.labels):,} to "
                "judge it: at least 1 of each is needed",
                "give more labelled images, or other held-out ones with --val",
            )
        classes = int(max(training.labels.max(), judged.labels.max())) + 1
        if classes < 2:
            raise UserError("all images have the same class", "a probe needs at least two classes")
        probe = fit_probe(training.features, training.labels, classes, self.penalty)
        accuracy = probe.accuracy(judged.features, judged.labels)
        return {
            "tokenizer": name,
            "weights_sha256": weights_sha256(model),
            "input": self.input,
            "accuracy": accuracy,
            "standard_error": (accuracy * (1 - accuracy) / len(judged.labels)) ** 0.5,
            "training_accuracy": probe.accuracy(training.features, training.labels),
            "chance": float(np.bincount(judged.labels).max() / len(judged.labels)),
            "classes": len(np.unique(training.labels)),
            "training_images": len(training.labels),
            "held_out_images": len(judged.labels),
            "without_label": reader.without_label,
            "skipped": reader.skipped,
        }


@dataclass(frozen=True)
class _Rows:
    """Features (n, K x C) float32, labels (n,), and for each row a number in [0, 1) that depends on its key alone."""

    features: np.ndarray
    labels: np.ndarray
    draws: np.ndarray

    def split(self, fraction: float) -> "tuple[_Rows, _Rows]":
        """Return the rows to fit on, and `fraction` of all to judge by."""
        return self._where(self.draws >= fraction), self._where(self.draws < fraction)

    def _where(self, kept: np.ndarray) -> "_Rows":
        return _Rows(self.features[kept], self.labels[kept], self.draws[kept])


class _Reader:
    """Computes what the probe sees of images, on all processes; counts what is left out."""

    def __init__(self, model: TiTok, wanted: Input, context: Context, skip_bad: bool, exif: bool) -> None:
        self._exif = exif
        self._model, self._wanted, self._context, self._skip_bad = model, wanted, context, skip_bad
        self._encoder = prepared(model, context.device, "float32", "encoder")
        self.without_label = self.skipped = 0

    def read(self, source: Source) -> _Rows:
        """Return the rows of all labelled images on rank 0. Raises UserError when images can't be read."""
        context, edge = self._context, self._model.config.image_size
        batch_size = default_batch_size(context.device, "encode")
        share = share_of(source, batch_size, context.group)
        images = ImagesInBatches(source, share, PreprocessingConfig(size=edge, exif=self._exif), batch_size)
        width = self._model.config.num_latent_tokens * self._model.config.token_size
        features, labels, draws = [np.zeros((0, width), np.float32)], [np.zeros(0, np.int64)], [np.zeros(0)]
        context.progress.start("latents", sum(unit.count for unit in share))
        with precision("float32", context.device), closing(iter(images)) as batches:
            for batch in batches:
                if context.stop.requested:
                    break
                features.append(self._seen(batch.pixels))
                labels.append(batch.labels.astype(np.int64))
                draws.append(np.array([zlib.crc32(key.encode()) / 2**32 for key in batch.keys]))
                context.progress.advance(len(batch.pixels))
        context.progress.close()
        rejected = all_rejected(images.rejected, context, "Nothing was written.")
        if rejected and not self._skip_bad:
            raise UserError(unreadable(rejected), "repair or delete them, or leave them out with --skip-bad")
        self.skipped += len(rejected)
        found = [self._on_main(parts) for parts in (features, labels, draws)]
        known = found[1] >= 0
        self.without_label += int((~known).sum())
        return _Rows(*(rows[known] for rows in found))

    def _on_main(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Return the rows of all processes on rank 0; on the others none."""
        rows = rows_on_main(np.concatenate(parts), self._context.group)
        return parts[0] if rows is None else rows

    @torch.inference_mode()
    def _seen(self, pixels: np.ndarray) -> np.ndarray:
        """Return the features (n, K x C) float32 of images (n, S, S, 3) uint8."""
        images = to_float(torch.from_numpy(pixels).to(self._context.device))
        if self._wanted == "ids":
            vectors = self._encoder.quantizer.vectors_of(self._encoder.tokenize_unchecked(images))  # (n, K, C)
        else:
            vectors = self._encoder.latents(images)[..., : self._model.config.token_size]
        return vectors.flatten(1).float().cpu().numpy()


def _memory_for(images: int, model: TiTok) -> str:
    """Return a remark about the memory that the features of all images take. Raises UserError for more than is free."""
    width = model.config.num_latent_tokens * model.config.token_size
    needed, free = _COPIES * 4 * width * images, memory_bytes()
    remark = f"{images:,} images x {width:,} numbers: up to {size(needed)} of memory"
    if free is not None and needed > free:
        hint = "probe part of the images, for example some of the shards, or a tokenizer with fewer latent tokens"
        raise UserError(f"{remark}, and {size(free)} are free", hint)
    return remark


def _check_same_classes(training: Source, judged: Source) -> None:
    """Raise UserError if both sources name their classes, and not alike: labels would mean different things."""
    a, b = training.class_names, judged.class_names
    different = next((c for c, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if a and b and (different is not None or len(b) > len(a)):
        at = len(a) if different is None else different
        ours = a[at] if at < len(a) else "nothing"
        raise UserError(
            f"class {at} is {ours} in the training images and {b[at]} in the held-out ones",
            "give both the same class folders, or leave out --val and use --val-fraction",
        )
