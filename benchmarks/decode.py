"""Ids to pixels, as `titokctl sample` and `decode` do it, beside plain float32.

    python -m benchmarks.decode [--device cpu|cuda] [--model titok-l-32] [--batch-size 8] [--quick] [--json out.json]

Weights are arbitrary; the pixels of both ways are compared for the same ids.
"""

import torch

from benchmarks.baselines import PlainTokenizer
from benchmarks.counting import counted, fill, weight_bytes
from benchmarks.encode import MODELS
from benchmarks.measuring import BASELINE, Way, compare, default_batch, parser, report
from titokctl.models.inference import fastest_precision, prepared
from titokctl.models.precision import precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.known import BY_NAME


def main() -> None:
    """Measure and print."""
    given = parser(__doc__, MODELS).parse_args()
    config, device, batch = BY_NAME[given.model].config, given.device, default_batch(given)
    name = fastest_precision(device)
    plain = fill(TiTok(config)).to(device)
    ready = prepared(plain, device, name, half="decoder")
    baseline = PlainTokenizer(plain)
    ids = torch.randint(config.codebook_size, (batch, config.num_latent_tokens), device=device)

    def ours() -> torch.Tensor:
        with precision(name, device):
            return ready.detokenize(ids)

    ways = {
        BASELINE: Way(lambda: baseline.detokenize(ids), **cost(plain, batch, device), weights=decoder_bytes(plain)),
        "ours": Way(ours, name, **cost(ready, batch, device), weights=decoder_bytes(ready)),
    }
    found = compare(ways, device, 2 if given.quick else 5)
    difference = pixel_difference(ours(), baseline.detokenize(ids))
    report(f"decode: {given.model}, ids to pixels", given, found, batch=batch, pixel_difference=difference)


def cost(tokenizer: TiTok, batch: int, device: str) -> dict[str, float]:
    """Return the operations and bytes of decoding a batch."""
    vectors = torch.zeros(batch, tokenizer.config.num_latent_tokens, tokenizer.config.token_size, device=device)
    return counted(lambda: tokenizer.decode(vectors))


def decoder_bytes(tokenizer: TiTok) -> int:
    """Return the bytes of the weights that decoding reads."""
    return weight_bytes(tokenizer.decoder, *filter(None, [tokenizer.proxy_pixels]))


def pixel_difference(found: torch.Tensor, expected: torch.Tensor) -> str:
    """Return the mean absolute difference of images in [0, 1], in levels."""
    return f"{255 * float((found - expected).abs().mean()):.3f} of 255"


if __name__ == "__main__":
    main()
