"""The images of every training step, in an order found by arithmetic and the same for any number of processes."""

from collections.abc import Mapping

import numpy as np
import torch

from titokctl.config.tokenizer_recipe import ProxyRecipe, TokenizerRecipe
from titokctl.context import Context
from titokctl.data.image_problems import NOTHING_KNOWN, ImageProblems
from titokctl.data.images import to_float
from titokctl.data.order import batch_positions
from titokctl.data.sources.source import Rejected, SeekableSource, Source
from titokctl.data.streamed_images import StreamedImages
from titokctl.data.training_images import Augmentation, TrainingImages
from titokctl.data.workers import Prefetch
from titokctl.distributed.reduce import slice_of
from titokctl.errors import UserError
from titokctl.models.device import send

_STREAMED = (
    "these shards are read from front to end: the order depends on the number of processes, and a stopped run "
    "resumes at the beginning of the shard it was in, so some images of that epoch are read twice"
)


class StepImages:
    """This process's share of every step's batch as floats: a permutation of the images per epoch, by the seed.

    Sources that are only read from front to end come through a shuffle buffer instead (`data/streamed_images`).

    Args:
        source: the training images.
        recipe: for size, batch, augmentation and seed.
        context: its device gets the images, its processes share each batch, its progress shows remarks about them.
        exif: apply the EXIF orientation.
        known: unusable images that were found and reported before, by position.
        max_rejected: the largest share of images that may turn out unusable; None for 1 %.
    """

    def __init__(
        self,
        source: Source,
        recipe: TokenizerRecipe,
        context: Context,
        exif: bool = False,
        known: Mapping[int, Rejected] = NOTHING_KNOWN,
        max_rejected: float | None = None,
    ) -> None:
        group, say, self._device = context.group, context.say, context.device
        self._share = slice_of(recipe.training.global_batch_size, group)
        self._seed, self._size = recipe.training.seed, recipe.training.global_batch_size
        self._count = len(source)
        self._images: TrainingImages | StreamedImages
        self._crops = recipe.cached_crops if isinstance(recipe, ProxyRecipe) else None
        augmentation = Augmentation(recipe.augmentation.crop, recipe.augmentation.flip, self._seed, exif)
        problems = ImageProblems(len(source), recipe.image_size, exif, known, max_rejected)
        if isinstance(source, SeekableSource):
            self._images = TrainingImages(source, recipe.image_size, augmentation, problems=problems)
        else:
            if self._crops:
                raise UserError(
                    "cached_crops is for images that can be read in any order, not for shards on a server",
                    "fetch the shards first, or --set cached_crops=null",
                )
            say(_STREAMED)
            share = self._share.stop - self._share.start
            self._images = StreamedImages(source, recipe.image_size, share, group.rank, group.world_size, augmentation)
            self._images.problems = problems
        self._say, self._is_told = say, False
        self._prefetch = Prefetch(self._make)

    def __len__(self) -> int:
        return self._count

    def views(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return epochs (or the recorded crops that come in turn) and positions of the global batch of `step`.

        Both (B,) int64; of sources that can be read by position.
        """
        epochs, positions = batch_positions(self._seed, step, self._size, self._count)
        return epochs % self._crops if self._crops else epochs, positions

    def batch(self, step: int) -> torch.Tensor:
        """Return this process's share of `step`'s batch, (b, 3, S, S) float32 in [0, 1] on the device."""
        images = self._prefetch.get(step)
        if self._images.problems.upscaled and not self._is_told:
            self._is_told = True
            self._say(f"warning: some images are smaller than {images.shape[-1]} px and are scaled up")
        return images

    def remarks(self) -> list[str]:
        """Return the problems of images that this process read, counted, as sentences."""
        return self._images.problems.remarks()

    def _make(self, step: int) -> torch.Tensor:
        if isinstance(self._images, StreamedImages):
            pixels = self._images.batch(step)
        else:
            epochs, positions = self.views(step)
            pixels = self._images.batch(epochs[self._share], positions[self._share])
        return to_float(send(pixels, self._device))  # as bytes: a quarter of the way to the device
