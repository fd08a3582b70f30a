"""Images to latents, the arithmetic of `titokctl tokenize`: float32 and the fastest precision beside the plain way.

    python -m benchmarks.encode [--device cpu|cuda] [--model titok-l-32] [--batch-size 8] [--quick] [--json out.json]

Weights are arbitrary and images random; reading and decoding files are measured by benchmarks.tokenize.
"""

import torch

from benchmarks.baselines import PlainTokenizer
from benchmarks.counting import counted, fill, weight_bytes
from benchmarks.measuring import BASELINE, Way, compare, default_batch, parser, report
from titokctl.models.inference import fastest_precision, prepared
from titokctl.models.precision import Precision, precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.known import BY_NAME

MODELS = ("titok-l-32", "titok-b-64", "titok-s-128", "titok-bl-64-vq", "titok-bl-128-vq", "titok-sl-256-vq")


def main() -> None:
    """Measure and print."""
    given = parser(__doc__, MODELS).parse_args()
    config, device, batch = BY_NAME[given.model].config, given.device, default_batch(given)
    plain = fill(TiTok(config)).to(device)
    baseline = PlainTokenizer(plain)
    images = torch.rand(batch, 3, config.image_size, config.image_size, device=device)
    needed = counted(lambda: plain.encode(images))
    ways = {BASELINE: Way(lambda: baseline.encode(images), **needed, weights=weight_bytes(plain.encoder))}
    for name in dict.fromkeys(("float32", fastest_precision(device))):
        ways[f"ours, {name}"] = _way(plain, images, name, device)
    found = compare(ways, device, 2 if given.quick else 5)
    report(f"encode: {given.model}, images to latents", given, found, batch=batch)


def _way(plain: TiTok, images: torch.Tensor, name: Precision, device: str) -> Way:
    ready = prepared(plain, device, name, half="encoder")

    def encode() -> torch.Tensor:
        with precision(name, device):
            return ready.encode(images)

    return Way(encode, name, **counted(encode), weights=weight_bytes(ready.encoder))


if __name__ == "__main__":
    main()
