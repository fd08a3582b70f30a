"""What lower precision does to the ids and pixels of trained networks, with the same weights and images.

    python -m benchmarks.precision --tokenizer RUN --images SHARDS [--generator RUN] [--device cpu|cuda] [--quick]

After `titokctl demo`: --tokenizer demo/runs/tokenizer/tiny-* --images demo/shards/heldout --generator
demo/runs/generator/tiny-*. Random weights would say nothing: how many ids change depends on how near the second nearest
code is. For each precision: the share of ids that stay what they are in float32, the mean absolute difference of pixels
decoded from the same ids, and the share of equal ids after a whole decoding with the same noise. A CPU has no use for
fp16, but its arithmetic can be judged there.
"""

from argparse import Namespace
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch

from benchmarks.measuring import parser, report_numbers
from titokctl.config.sampling import SamplingConfig
from titokctl.data.images import to_float
from titokctl.data.sources import open_source
from titokctl.data.training_images import Augmentation, TrainingImages
from titokctl.models.inference import prepared
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.noise import KeyedNoise
from titokctl.models.precision import Precision, precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.load import load_generator, load_tokenizer

_BATCH, _IMAGES, _QUICK_IMAGES = 16, 1024, 128  # of a run with --quick


def main() -> None:
    """Measure and print."""
    given = _arguments()
    tokenizer = load_tokenizer(given.tokenizer, given.device)
    generator = load_generator(given.generator, given.device) if given.generator else None
    images = _images(given.images, tokenizer.config.image_size, _QUICK_IMAGES if given.quick else _IMAGES)
    ids = _tokens(tokenizer, images, "float32", given.device)
    found: dict[str, float] = {}
    for name in _lower(given.device):
        found[f"{name}_same_ids"] = _equal(_tokens(tokenizer, images, name, given.device), ids)
        found[f"{name}_pixel_difference_of_255"] = _pixel_difference(tokenizer, ids, name, given.device)
        if generator is not None:
            drawn = [_drawn(generator, len(images), one, given.device) for one in ("float32", name)]
            found[f"{name}_same_sampled_ids"] = _equal(*drawn)  # type: ignore[arg-type]
    tokens = tokenizer.config.num_latent_tokens
    report_numbers("precision: beside float32", given, found, images=len(images), ids_an_image=tokens)


def _arguments() -> Namespace:
    made = parser(__doc__)
    made.add_argument("--tokenizer", required=True, help="a trained one")
    made.add_argument("--images", required=True, type=Path, help="a source of images it was not trained on")
    made.add_argument("--generator", help="one trained on its ids")
    return made.parse_args()


def _lower(device: str) -> tuple[Precision, ...]:
    return ("bf16", "fp16") if device == "cpu" else ("tf32", "bf16", "fp16")


def _around(name: Precision, device: str) -> AbstractContextManager[None]:
    # Prepared layers convert by themselves; the context is refused for fp16 on a CPU.
    return precision("float32" if (name, device) == ("fp16", "cpu") else name, device)


def _images(path: Path, size: int, count: int) -> torch.Tensor:
    squares = TrainingImages(open_source([path]), size, Augmentation("center", flip=False))
    wanted = np.linspace(0, len(squares) - 1, min(count, len(squares))).astype(np.int64)
    return to_float(squares.batch(np.zeros_like(wanted), wanted))


@torch.inference_mode()
def _tokens(tokenizer: TiTok, images: torch.Tensor, name: Precision, device: str) -> torch.Tensor:
    ready = prepared(tokenizer, device, name, "encoder")
    with _around(name, device):
        return torch.cat([ready.tokenize(part.to(device)) for part in images.split(_BATCH)])


@torch.inference_mode()
def _pixel_difference(tokenizer: TiTok, ids: torch.Tensor, name: Precision, device: str) -> float:
    exact, ready = (prepared(tokenizer, device, one, "decoder") for one in ("float32", name))
    total = 0.0
    for part in ids.split(_BATCH):
        with precision("float32", device):
            expected = exact.detokenize(part)
        with _around(name, device):
            total += float((ready.detokenize(part) - expected).abs().mean()) * len(part)
    return 255 * total / len(ids)


def _drawn(generator: MaskGit, count: int, name: Precision, device: str) -> torch.Tensor:
    ready, settings = prepared(generator, device, name), SamplingConfig(num_steps=8, guidance_scale=2.0)
    indices = torch.arange(count, device=device)
    classes = generator.config.num_classes
    with _around(name, device):
        return torch.cat([
            ready.sample(part % classes if classes else None, settings, KeyedNoise(settings.seed, part))
            for part in indices.split(_BATCH)
        ])  # fmt: skip


def _equal(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a == b).float().mean())


if __name__ == "__main__":
    main()
