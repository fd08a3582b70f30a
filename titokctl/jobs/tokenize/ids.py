"""`titokctl tokenize` without an output, and `titokctl detokenize`: the ids of a few images as text, and back."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from titokctl.config.models import TokenizerConfig
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.image_decoder import ImageDecoder
from titokctl.data.sources import Rejected, open_source
from titokctl.data.sources.choices import NO_CHOICES, Choices
from titokctl.distributed.place import available_cores
from titokctl.errors import UsageError, UserError
from titokctl.evaluation.image_sets import unreadable
from titokctl.formats.picture import save_grid, save_png
from titokctl.formats.replacing import PNG, files_to_delete
from titokctl.formats.unfinished import Unfinished, check_output, finished_already
from titokctl.jobs.plan import WritePlan
from titokctl.jobs.tokenize.encode import TileEncoder, UnitSettings, checked_precision, tokenize_unit
from titokctl.models.precision import Precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.readable import counted
from titokctl.weights.chain import pick_tokenizer
from titokctl.weights.hashes import weights_sha256
from titokctl.weights.load import load_tokenizer
from titokctl.weights.read import trained_with_exif

MOST_IMAGES = 1000
_EXAMPLE = "titokctl tokenize one.jpg | titokctl detokenize - -o out.png"
_BETWEEN = re.compile(r"[\s,;\[\]]+")


@dataclass(frozen=True)
class ImageIds:
    """The ids of one image; `key` is its name as a token cache would have it."""

    key: str
    tokens: list[int]


@dataclass(frozen=True)
class FewIds:
    """The ids of each image, in the order of the source, and the images that can't be used."""

    images: list[ImageIds]
    rejected: list[Rejected]


@dataclass(frozen=True)
class TokenizeFew:
    """Return the ids of a few images, which are those that a token cache of them would hold; nothing is written.

    Arguments as for `Tokenize`.
    """

    paths: Sequence[Path | str]
    tokenizer: str | None = None
    precision: Precision | None = None
    workers: int | None = None
    source_kind: str | None = None
    crop: str = "center"
    exif: bool | None = None
    fast_decode: bool = False
    choices: Choices = NO_CHOICES

    def run(self, context: Context) -> FewIds:
        """Return the ids.

        Raises UserError for more than 1,000 images, a tokenizer without ids, or if no image can be used.
        """
        source = open_source(self.paths, self.source_kind, keep_index=False, choices=self.choices.whatever_labels())
        if len(source) > MOST_IMAGES:
            raise UsageError(
                f"the ids of {len(source):,} images are too many to print, at most {MOST_IMAGES:,}",
                "write them into a token cache: add -o tokens.h5",
            )
        name = pick_tokenizer(self.tokenizer, context.runs, context.say)
        model = load_tokenizer(name, context.device)
        if not model.config.is_discrete:
            raise UserError(f"{name} makes latents, not ids", "write them into a token cache: add -o latents.h5")
        settings = self._settings(model, trained_with_exif(name) if self.exif is None else self.exif, context.device)
        encoder, images, rejected = TileEncoder(model, settings), [], list(source.problems)
        for unit in source.units:
            part = tokenize_unit(source, unit, encoder, settings, self.workers or available_cores())
            keys = [key.decode() for key in part.keys.tolist()]
            images += [ImageIds(key, ids) for key, ids in zip(keys, part.ids.tolist(), strict=True)]
            rejected += [Rejected.of(one) for one in part.rejected]
            context.stop.check()
        if rejected:
            text = unreadable(rejected, f"of {counted(len(images) + len(rejected), 'images')}")
            if not images:
                raise UserError(text, "open them with another program, and save them as JPEG or PNG")
            context.progress.warn(text)
        return FewIds(images, rejected)

    def _settings(self, model: TiTok, exif: bool, device: str) -> UnitSettings:
        fields = {"size": model.config.image_size, "crop": self.crop, "exif": exif, "fast_decode": self.fast_decode}
        preprocessing = PreprocessingConfig.model_validate(fields)
        return UnitSettings(preprocessing, (), checked_precision(self.precision, device), None, device)


@dataclass(frozen=True)
class Detokenized:
    """The picture that was written, and how many images are in it."""

    output: Path
    images: int


@dataclass(frozen=True)
class Detokenize:
    """Decode ids that are given as text into one PNG; several images are put side by side.

    Args:
        texts: numbers between spaces, commas or brackets; together the ids of one image or of several.
        output: the PNG.
        tokenizer: as for `load_tokenizer`; None for the newest in the runs folder that makes pixels.
        overwrite: replace a file at `output`.

    Raises UsageError for text that is not whole numbers, and for an output that is not a .png.
    """

    texts: Sequence[str]
    output: Path
    tokenizer: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.output.suffix.lower() != ".png":
            raise UsageError(f"-o {self.output} does not end in .png", "the picture is a PNG, e.g. -o out.png")
        if not self._numbers():
            raise UsageError("no ids were given", _EXAMPLE)

    def plan(self, context: Context) -> WritePlan:
        """Return what would be written. Raises UserError as `run` does before it writes."""
        ids, name, model = self._checked(context, fetch=False)
        finished = Unfinished(self.output).is_finished(self._settings(ids, model, context.device), self.overwrite)
        return WritePlan(
            reads={"tokenizer": name},
            output=self.output,
            count=len(ids),
            done=len(ids) if finished else 0,
            removes=() if finished else files_to_delete(self.output),
        )

    def run(self, context: Context) -> Detokenized:
        """Write the picture. Raises UserError for ids that the tokenizer doesn't have, or when the output exists."""
        ids, _, model = self._checked(context, fetch=True)
        work, settings = Unfinished(self.output), self._settings(ids, model, context.device)
        if work.is_finished(settings, self.overwrite):
            context.say(finished_already(self.output))
            return Detokenized(self.output, len(ids))
        images = ImageDecoder(model, context.device, "float32").decoded(ids)
        with work.at_once(settings) as product:
            save_png(product, images[0]) if len(images) == 1 else save_grid(product, images)
        return Detokenized(self.output, len(images))

    def _checked(self, context: Context, fetch: bool) -> tuple[np.ndarray, str, TiTok]:
        """Return the ids (n, K) uint32, and the tokenizer with its name."""
        check_output(self.output, self.overwrite, PNG)
        name = pick_tokenizer(self.tokenizer, context.runs, context.say, pixels=True)
        model = load_tokenizer(name, context.device, fetch=fetch)
        ids, per_image = np.array(self._numbers(), np.uint32), model.config.num_latent_tokens
        rows = ids.reshape(-1, per_image if len(ids) % per_image == 0 else len(ids))
        check_ids(rows, model.config, "the text has", name)
        return rows, name, model

    def _numbers(self) -> list[int]:
        words = [word for text in self.texts for word in _BETWEEN.split(text) if word]
        for word in words:
            if not (word.isascii() and word.isdigit() and len(word) < 10):
                raise UsageError(f"{word[:40]!r} is not an id: ids are whole numbers", _EXAMPLE)
        return [int(word) for word in words]

    def _settings(self, ids: np.ndarray, model: TiTok, device: str) -> dict[str, Any]:
        return {
            "command": "detokenize",
            "ids": ids.tolist(),
            "weights_sha256": weights_sha256(model),
            "device": torch.device(device).type,
        }


def check_ids(ids: np.ndarray, config: TokenizerConfig, has: str, name: str) -> None:
    """Raise UserError unless `ids` (N, K) are those of the tokenizer `name`; `has` begins the message."""
    if not config.is_discrete:
        raise UserError(f"{name} has latents, not ids", "name a tokenizer that has a codebook with --tokenizer")
    per_image, last = config.num_latent_tokens, (config.codebook_size or 0) - 1
    hint = "name the tokenizer that made the ids with --tokenizer"
    if ids.shape[1] != per_image:
        raise UserError(f"{has} {counted(ids.shape[1], 'ids')}, but {name} needs {per_image} an image", hint)
    if ids.max() > last:
        raise UserError(f"{has} the id {ids.max():,}, but those of {name} are 0 to {last:,}", hint)
