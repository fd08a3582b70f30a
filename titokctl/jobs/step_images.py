"""The images of every training step, in an order found by arithmetic and the same for any number of processes."""

from collections.abc import Callable

import torch

from titokctl.config.tokenizer_recipe import TokenizerRecipe
from titokctl.data.images import to_float
from titokctl.data.order import batch_positions
from titokctl.data.prefetch import Prefetch
from titokctl.data.sources.source import Source
from titokctl.data.streamed_images import StreamedImages
from titokctl.data.training_images import TrainingImages
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import slice_of

_STREAMED = (
    "these shards are read from front to end: the order depends on the number of processes, and a run that is stopped "
    "goes on at the beginning of the shard it was in, so that some images of that epoch come twice"
)


class StepImages:
    """This process's share of every step's batch as floats: a permutation of the images per epoch, by the seed.

    Sources that are only read from front to end come through a shuffle buffer instead (`data/streamed_images`).

    Args:
        source: the training images.
        recipe: for size, batch, augmentation and seed.
        group: the processes that share each batch.
        say: for remarks about the images.
    """

    def __init__(self, source: Source, recipe: TokenizerRecipe, group: Group, say: Callable[[str], None]) -> None:
        self._share = slice_of(recipe.training.global_batch_size, group)
        self._seed, self._size = recipe.training.seed, recipe.training.global_batch_size
        self._images: TrainingImages | StreamedImages
        chance = (recipe.augmentation.crop, recipe.augmentation.flip, self._seed)
        if source.can_seek:
            self._images = TrainingImages(source, recipe.image_size, *chance)
        else:
            say(_STREAMED)
            share = self._share.stop - self._share.start
            self._images = StreamedImages(source, recipe.image_size, share, group.rank, group.world_size, *chance)
        self._say, self._is_told = say, False
        self._prefetch = Prefetch(self._make)

    def batch(self, step: int) -> torch.Tensor:
        """(b, 3, S, S) float32 in [0, 1]."""
        images = self._prefetch.get(step)
        if self._images.problems.upscaled and not self._is_told:
            self._is_told = True
            self._say(f"warning: some images are smaller than {images.shape[-1]} px and are scaled up")
        return images

    def remarks(self) -> list[str]:
        """What was wrong with the images that this process met, counted, in words."""
        return self._images.problems.remarks()

    def _make(self, step: int) -> torch.Tensor:
        if isinstance(self._images, StreamedImages):
            return to_float(self._images.batch(step))
        epochs, positions = batch_positions(self._seed, step, self._size, len(self._images))
        return to_float(self._images.batch(epochs[self._share], positions[self._share]))
