"""Labels to ids of S-128: rar-b-s-128 with its cache of keys and values, beside the published UViT in 64 steps.

    python -m benchmarks.autoregressive [--device cpu|cuda] [--images 16] [--uvit-images 1] [--quick] [--json FILE]

Both draw with guidance in their own settings, prepared as `titokctl sample` prepares them; weights are arbitrary. The
UViT's cost grows in proportion to the images, so few of them are drawn; the autoregressive generator reads its weights
once for each id of the whole batch, so it draws a canonical tile. Numbers are for one image, without its pixels.
"""

import time

import torch

from benchmarks.counting import fill
from benchmarks.measuring import parser, report_numbers, synchronize
from titokctl.config import recipe_files
from titokctl.config.recipe import GeneratorRecipe
from titokctl.models import generator_kinds
from titokctl.models.generator import Generator
from titokctl.models.inference import fastest_precision, prepared
from titokctl.models.noise import KeyedNoise
from titokctl.models.precision import precision

RAR, UVIT = "rar-b-s-128", "maskgit-uvit-s-128"


def main() -> None:
    """Measure and print."""
    options = parser(__doc__)
    options.add_argument(
        "--images", type=int, default=16, help="images that the autoregressive generator draws at once"
    )
    options.add_argument("--uvit-images", type=int, default=1, help="images that the UViT draws at once")
    given = options.parse_args()
    name = fastest_precision(given.device)
    found: dict[str, object] = {}
    per_image = {}
    for recipe_name, images in ((RAR, given.images), (UVIT, given.uvit_images)):
        recipe: GeneratorRecipe = recipe_files.load(recipe_name, "generator")
        model = fill(generator_kinds.build(recipe.model)).eval()
        ready = prepared(model, given.device, name)
        del model
        seconds, used = _timed(ready, _short(recipe, given.quick), images, given.device)
        per_image[recipe_name] = seconds / images, used / images
        found[f"{recipe_name}: images at once"] = images
        found[f"{recipe_name}: seconds an image"] = seconds / images
        found[f"{recipe_name}: processor seconds an image"] = used / images
    (ours, ours_used), (theirs, theirs_used) = per_image[RAR], per_image[UVIT]
    found["times as fast, by seconds"] = theirs / ours
    found["times as fast, by processor seconds"] = theirs_used / ours_used
    report_numbers("ids of S-128", given, found, precision=name)


def _short(recipe: GeneratorRecipe, quick: bool) -> GeneratorRecipe:
    """Return the recipe, with 2 steps instead of 64 for --quick."""
    if not quick or not hasattr(recipe.sampling, "num_steps"):
        return recipe
    return recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"num_steps": 2})})


def _draw(model: Generator, recipe: GeneratorRecipe, images: int, device: str) -> torch.Tensor:
    indices = torch.arange(images, device=device)
    return model.sample(indices % recipe.model.num_classes, recipe.sampling, KeyedNoise(0, indices))


def _timed(model: Generator, recipe: GeneratorRecipe, images: int, device: str) -> tuple[float, float]:
    """Return seconds, and processor seconds of all threads."""
    with precision(fastest_precision(device), device):
        synchronize(device)
        began, used = time.perf_counter(), time.process_time()
        _draw(model, recipe, images, device)
        synchronize(device)
    return time.perf_counter() - began, time.process_time() - used


if __name__ == "__main__":
    main()
