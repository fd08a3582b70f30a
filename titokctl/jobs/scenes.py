"""`titokctl scenes`: rendered scenes as WebDataset shards, for training and held out."""

from dataclasses import dataclass
from pathlib import Path

from titokctl.context import Context
from titokctl.data.scenes.factors import CLASS_NAMES
from titokctl.data.scenes.shards import HELD_OUT_FROM, SceneSet, count_done, write_scene_shards
from titokctl.errors import UsageError
from titokctl.formats.replacing import check_name
from titokctl.jobs.plan import WritePlan

TRAIN, HELD_OUT = "train", "heldout"
_BYTES_AN_IMAGE = 0.43  # per pixel, of the PNG, the factors and their headers, at 64 px
_SIZES = (16, 1024)


@dataclass(frozen=True)
class WrittenScenes:
    """Folders of shards and the number of images in each."""

    train: Path
    held_out: Path | None
    images: int
    held_out_images: int
    class_names: list[str]


@dataclass(frozen=True)
class Scenes:
    """Render scenes into `<output>/train`, and others into `<output>/heldout`.

    A scene depends on the seed and its index alone: the first images of a larger set are those of a smaller one.

    Args:
        output: the folder; finished shards of the same scenes in it are kept.
        num_images: training images.
        num_held_out: held-out images; 0 for none.
        size: edge in pixels.
        seed: of all scenes.
        overwrite: replace other scenes in the folder.
    """

    output: Path
    num_images: int = 10_000
    num_held_out: int = 1_000
    size: int = 64
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.num_images < 1 or self.num_held_out < 0:
            raise UsageError("at least one scene must be rendered", "e.g. -n 10000 --heldout 1000")
        low, high = _SIZES
        if not low <= self.size <= high:
            raise UsageError(f"--size must be {low} to {high} pixels, not {self.size}", "e.g. --size 64")

    def plan(self, context: Context) -> WritePlan:
        """Return what would be rendered. Raises UserError when the output holds anything else."""
        sets = self._sets()
        count = sum(scenes.count for scenes in sets.values())
        return WritePlan(
            reads={},
            output=self.output,
            count=count,
            done=sum(count_done(folder, scenes, self.overwrite) for folder, scenes in sets.items()),
            num_bytes=int(count * self.size**2 * _BYTES_AN_IMAGE),
            settings={"size": self.size, "classes": len(CLASS_NAMES), "seed": self.seed},
        )

    def run(self, context: Context) -> WrittenScenes:
        """Render. Raises as `plan`; Stopped after a signal, with the finished shards kept."""
        for folder, scenes in self._sets().items():
            write_scene_shards(folder, scenes, context, self.overwrite)
        held_out = self.output / HELD_OUT if self.num_held_out else None
        return WrittenScenes(self.output / TRAIN, held_out, self.num_images, self.num_held_out, CLASS_NAMES)

    def _sets(self) -> dict[Path, SceneSet]:
        check_name(self.output)
        sets = {self.output / TRAIN: SceneSet(self.num_images, self.seed, self.size)}
        if self.num_held_out:
            sets[self.output / HELD_OUT] = SceneSet(self.num_held_out, self.seed, self.size, HELD_OUT_FROM)
        return sets
