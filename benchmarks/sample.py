"""Labels to ids to pixels with guidance, the arithmetic of `titokctl sample`, beside plain float32.

    python -m benchmarks.sample [--device cpu|cuda] [--model titok-l-32] [--batch-size 8] [--quick] [--json out.json]

Settings are the published ones of the model (8 steps for L-32 and B-64). The parts (generator, ViT decoder, pixel
decoder) are measured in the same turns. Weights are arbitrary; pixels of both ways are compared for the same ids.
"""

import torch

from benchmarks import baselines
from benchmarks.counting import counted, fill, weight_bytes
from benchmarks.decode import cost, decoder_bytes, pixel_difference
from benchmarks.measuring import BASELINE, Way, compare, default_batch, parser, report
from titokctl.config import recipe_files
from titokctl.config.sampling import SamplingConfig
from titokctl.models.inference import fastest_precision, prepared
from titokctl.models.maskgit.generator import MaskGit
from titokctl.models.noise import KeyedNoise
from titokctl.models.precision import Precision, precision
from titokctl.models.titok.tokenizer import TiTok
from titokctl.weights.known import BY_NAME

GENERATORS = {"titok-l-32": "maskgit-vit-l-32", "titok-b-64": "maskgit-vit-b-64"}


class Ours:
    """The networks as the command prepares them."""

    def __init__(self, generator: MaskGit, tokenizer: TiTok, settings: SamplingConfig, device: str) -> None:
        self.name: Precision = fastest_precision(device)
        self.device, self.settings = device, settings
        self.generator = prepared(generator, device, self.name)
        self.tokenizer = prepared(tokenizer, device, self.name, half="decoder")

    def ids(self, labels: torch.Tensor) -> torch.Tensor:
        """Return ids (B, K)."""
        with precision(self.name, self.device):
            noise = KeyedNoise(self.settings.seed, torch.arange(len(labels), device=self.device))
            return self.generator.sample(labels, self.settings, noise)

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the output of the ViT decoder."""
        with precision(self.name, self.device):
            return self.tokenizer.decode_proxy_logits(vectors)

    def pixels(self, ids: torch.Tensor) -> torch.Tensor:
        """Return images (B, 3, S, S)."""
        with precision(self.name, self.device):
            return self.tokenizer.detokenize(ids)

    def ways(self, labels: torch.Tensor, ids: torch.Tensor) -> dict[str, Way]:
        """Return the ways to measure: the whole, and its parts."""
        batch = len(labels)
        vectors = self.tokenizer.quantizer.vectors_of(ids).detach()
        generator, decoder = counted(lambda: self.ids(labels)), cost(self.tokenizer, batch, self.device)
        vit = counted(lambda: self.logits(vectors))
        both = {name: generator[name] + decoder[name] for name in generator}
        weights = weight_bytes(self.generator), decoder_bytes(self.tokenizer)
        return {
            "ours": Way(lambda: self.pixels(self.ids(labels)), self.name, **both, weights=sum(weights)),
            "  generator": Way(lambda: self.ids(labels), self.name, **generator, weights=weights[0]),
            "  ViT decoder": Way(lambda: self.logits(vectors), self.name, **vit),
            "  all of the decoder": Way(lambda: self.pixels(ids), self.name, **decoder, weights=weights[1]),
        }


def main() -> None:
    """Measure and print."""
    given = parser(__doc__, tuple(GENERATORS)).parse_args()
    device, batch = given.device, default_batch(given)
    settings: SamplingConfig = recipe_files.load(given.model, "sampling")
    tokenizer = fill(TiTok(BY_NAME[given.model].config)).to(device)
    generator = fill(MaskGit(BY_NAME[GENERATORS[given.model]].config)).to(device)
    config = generator.config
    labels = torch.arange(batch, device=device) % config.num_classes
    ids = torch.randint(config.codebook_size, (batch, config.num_latent_tokens), device=device)
    plain_generator, plain_tokenizer = baselines.PlainGenerator(generator), baselines.PlainTokenizer(tokenizer)

    def plain() -> torch.Tensor:
        drawn = baselines.sample(plain_generator, labels, settings, config.codebook_size, config.num_latent_tokens)
        return plain_tokenizer.detokenize(drawn)

    passes = 2 * settings.num_steps
    once = counted(lambda: generator.logits(generator.hidden(ids, labels)))
    needed = {name: passes * once[name] + amount for name, amount in cost(tokenizer, batch, device).items()}
    ours = Ours(generator, tokenizer, settings, device)
    ways = {BASELINE: Way(plain, **needed, weights=weight_bytes(generator) + decoder_bytes(tokenizer))}
    found = compare(ways | ours.ways(labels, ids), device, 1 if given.quick else 5)
    report(
        f"sample: {given.model}, {settings.num_steps} steps, guidance {settings.guidance_scale:g}", given, found,
        batch=batch, images_per_second=f"{batch / found['ours'].seconds:.3g}",
        pixel_difference=pixel_difference(ours.pixels(ids), plain_tokenizer.detokenize(ids)),
    )  # fmt: skip


if __name__ == "__main__":
    main()
