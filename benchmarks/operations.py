"""Counts the operations of the published models, and what the published throughput makes of them.

    python -m benchmarks.operations

Nothing is computed but sizes: the networks are built on the meta device. Prints the table of docs/results.md.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import parser
from titokctl.config import recipe_files
from titokctl.config.recipe import GeneratorRecipe
from titokctl.config.tokenizer_recipe import DecoderRecipe
from titokctl.models import generator_kinds
from titokctl.models.titok.tokenizer import TiTok

A100_PEAK = 312e12  # operations/s in bf16 without sparsity, from the data sheet


@dataclass(frozen=True)
class Published:
    """A pair of recipes, and the images/s that the TiTok paper reports for it on an A100 (quoted)."""

    tokenizer: str
    generator: str
    steps: int
    images_per_s: float


PUBLISHED = (
    Published("titok-l-32", "maskgit-vit-l-32", 8, 101.6),
    Published("titok-b-64", "maskgit-vit-b-64", 8, 89.8),
    Published("titok-s-128", "maskgit-uvit-s-128", 64, 7.8),
    Published("titok-l-64-512", "maskgit-vit-l-64-512", 8, 41.0),
    Published("titok-b-128-512", "maskgit-vit-b-128-512", 64, 7.4),
)


@dataclass(frozen=True)
class Operations:
    """Operations to encode an image, to make pixels of ids, and of one pass of the generator over one image."""

    encode: float
    decode: float
    forward: float

    def sample(self, steps: int) -> float:
        """Return those of one image: the first step needs no unconditional pass, its guidance is 0."""
        return (2 * steps - 1) * self.forward + self.decode


def operations(pair: Published) -> Operations:
    """Count products, convolutions and attention; a multiplication and an addition are two."""
    tokenizer = recipe_files.load(f"{pair.tokenizer}-decoder", "tokenizer")
    generator = recipe_files.load(pair.generator, "generator")
    assert isinstance(tokenizer, DecoderRecipe)
    assert isinstance(generator, GeneratorRecipe)
    model, size = tokenizer.model, tokenizer.image_size
    with torch.device("meta"), torch.no_grad():
        titok, maskgit = TiTok(model), generator_kinds.build(generator.model).train()  # no ranges are checked
        images = torch.empty(1, 3, size, size)
        vectors = torch.empty(1, model.num_latent_tokens, model.token_size)
        ids = torch.zeros(1, model.num_latent_tokens, dtype=torch.int64)
        runs = (lambda: titok.encode(images), lambda: titok.decode(vectors), lambda: maskgit(ids, ids[:, 0]))
        return Operations(*(_counted(run) for run in runs))


def _counted(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def main() -> None:
    """Print the table."""
    given = parser(__doc__).parse_args()
    print(
        "| model | encode | ids to pixels | generator, one pass | one sample | images/s (quoted) | share of the peak |"
    )
    print("|---|---|---|---|---|---|---|")
    counted = {}
    for pair in PUBLISHED[:1] if given.quick else PUBLISHED:
        found = operations(pair)
        total = found.sample(pair.steps)
        counted[pair.tokenizer] = asdict(found) | {"sample": total}
        share = total * pair.images_per_s / A100_PEAK
        numbers = (f"{x / 1e9:,.1f}" for x in (found.encode, found.decode, found.forward, total))
        print(f"| {pair.tokenizer}, {pair.steps} steps | {' | '.join(numbers)} | {pair.images_per_s} | {share:.0%} |")
    if given.json:
        given.json.write_text(json.dumps(counted, indent=1))


if __name__ == "__main__":
    main()
