"""The images of every training step, in an order found by arithmetic and the same for any number of processes."""

import torch

from titokctl.config.tokenizer_recipe import TokenizerRecipe
from titokctl.data.images import to_float
from titokctl.data.order import batch_positions
from titokctl.data.prefetch import Prefetch
from titokctl.data.sources.source import Rejected, Source
from titokctl.data.training_images import TrainingImages
from titokctl.distributed.group import Group
from titokctl.distributed.reduce import slice_of


class StepImages:
    """This process's share of every step's batch as floats: a permutation of the images per epoch, by the seed."""

    def __init__(self, source: Source, recipe: TokenizerRecipe, group: Group) -> None:
        self._share = slice_of(recipe.training.global_batch_size, group)
        self._seed, self._size = recipe.training.seed, recipe.training.global_batch_size
        augmentation = recipe.augmentation
        self._images = TrainingImages(
            source, recipe.image_size, crop=augmentation.crop, flip=augmentation.flip, seed=self._seed
        )
        self._prefetch = Prefetch(self._make)

    def batch(self, step: int) -> torch.Tensor:
        """(b, 3, S, S) float32 in [0, 1]."""
        return self._prefetch.get(step)

    @property
    def rejected(self) -> list[Rejected]:
        """Images of this process's share that can't be decoded; another one stood in for each."""
        return self._images.rejected

    def _make(self, step: int) -> torch.Tensor:
        epochs, positions = batch_positions(self._seed, step, self._size, len(self._images))
        return to_float(self._images.batch(epochs[self._share], positions[self._share]))
