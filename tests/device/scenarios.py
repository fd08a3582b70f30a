"""Work on a pretend GPU, for test_device_paths: `python scenarios.py NAME... FOLDER` prints what waits, and mixes."""

import json
import os
import shutil
import sys
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / each) for each in ("training", ".")]

import pretend_gpu  # noqa: E402

with pretend_gpu.pretend():  # before anything keeps one of torch's functions that it replaces
    import numpy as np
    import tiny
    import toy_features
    import trained
    from caches import write_cache
    from conftest import AUTOREGRESSIVE, SMALL
    from stages import TEXTS, Leave, write_recipe

    from titokctl.context import Context
    from titokctl.evaluation.extractors import FeatureNetwork
    from titokctl.jobs.decode import Decode
    from titokctl.jobs.evaluate.fid import Fid
    from titokctl.jobs.evaluate.reconstruct import Reconstruct
    from titokctl.jobs.evaluate.reproduce import Reproduce
    from titokctl.jobs.sample.request import Sample
    from titokctl.jobs.tokenize.request import Tokenize
    from titokctl.jobs.train.generator import TrainGenerator
    from titokctl.jobs.train.tokenizer import TrainTokenizer


FLOW = f"""
kind: generator
model: {{kind: flow, num_latent_tokens: {tiny.TOKENS}, token_size: 4, num_classes: 2, width: 32, num_layers: 2,
        num_heads: 2}}
views: [plain]
optimizer: {{learning_rate: 1e-3}}
schedule: {{warmup_steps: 5}}
training: {{steps: 20, global_batch_size: 16, ema_decay: 0.9, log_every: 5, evaluate_every: 10, checkpoint_every: 5}}
"""


def stages(folder: Path, *more: str) -> None:
    """Each stage of training a tokenizer, begun and resumed, with held-out pictures."""
    data = tiny.class_folder(folder / "pictures", 4)
    for stage, text in TEXTS.items():
        for steps in (3, 4):  # the first codes are found after one step, the discriminator joins after two
            words = [f"training.steps={steps}", "training.precision=bf16", "training.micro_batch_size=4",
                     "training.log_every=1000", *more]  # fmt: skip
            words += ["codebook.continuous_steps=1"] if "continuous_steps" in text else []
            words += ["adversary.start=2"] if "adversary" in text else []
            words += ["cached_crops=2"] if stage == "proxy" else []
            request = TrainTokenizer(
                [data], str(write_recipe(folder, stage)), tuple(words), name=stage, validation=[data]
            )
            request.run(context(folder))


def generators(folder: Path) -> None:
    """All kinds of generators and both bodies, begun and resumed; samples of those that `products` does not draw."""
    cache = write_cache(folder / "tokens.h5", 200)
    for body in ("vit", "uvit"):
        _trained(folder, body, cache, SMALL.replace("architecture: vit", f"architecture: {body}"))
    data, no_codes = tiny.class_folder(folder / "pictures", 12), {"quantizer": "gaussian", "codebook_size": None}
    causal = AUTOREGRESSIVE.replace("codebook_size: 16", f"codebook_size: {tiny.CODES}")
    for kind, text, changes in (("autoregressive", causal, {}), ("flow", FLOW, no_codes)):
        tokenizer, cache = folder / f"{kind}.safetensors", folder / f"{kind}.h5"
        tiny.tokenizer(tokenizer, **changes)
        Tokenize([data], cache, str(tokenizer)).run(context(folder))
        generator = _trained(folder, kind, cache, text)
        few = {"num_steps": 2} if kind == "flow" else {}
        request = Sample(generator, str(tokenizer), num_images=2, settings=few, output=folder / f"{kind}-samples")
        request.run(context(folder))


def _trained(folder: Path, name: str, cache: Path, text: str) -> str:
    """Begin and resume the training of a generator by the recipe `text`; returns its run folder."""
    path = folder / f"{name}.yaml"
    path.write_text(text)
    for steps in (2, 3):
        words = (f"training.steps={steps}", "training.precision=bf16", "training.log_every=1000",
                 "training.micro_batch_size=8", "val_fraction=0.2", "schedule.kind=constant")  # fmt: skip
        TrainGenerator(cache, str(path), words, name=name).run(context(folder))
    return str(folder / "runs" / "generator" / name)


def deterministic_stages(folder: Path) -> None:
    """The same with kernels that add in a fixed order."""
    stages(folder, "training.deterministic=true")


def products(folder: Path) -> None:
    """Tokenize in each precision; then a generator, samples with scores, fid, decode and reconstruct."""
    data, tokenizer = tiny.class_folder(folder / "pictures", 2), folder / "tokenizer.safetensors"
    tiny.tokenizer(tokenizer)
    for name in ("float32", "tf32", "bf16", "fp16", None):
        cache = folder / f"{name}.h5"
        Tokenize([data], cache, str(tokenizer), precision=name).run(context(folder))  # type: ignore[arg-type]
    path, toy = folder / "generator.yaml", FeatureNetwork(toy_features.NAME)
    toy_features.install(folder / "package")  # lite0 takes 128 images at once, however few there are
    sys.path.insert(0, str(folder / "package"))
    path.write_text(SMALL.replace("codebook_size: 16", f"codebook_size: {tiny.CODES}"))
    TrainGenerator(cache, str(path), ("training.steps=2", "training.global_batch_size=4"), name="g").run(
        context(folder)
    )
    generator, samples = str(folder / "runs" / "generator" / "g"), folder / "samples"
    request = Sample(
        generator, str(tokenizer), num_images=4, output=samples, fid=data, features=toy.name, image_format="npz"
    )
    request.run(context(folder))
    Fid(samples, data, network=toy, tokenizer=str(tokenizer)).run(context(folder))
    if pretend_gpu.KIND == "cuda":
        fast = FeatureNetwork("lite0", tf32=True)
        found = Fid(samples, _gaussian(folder, 1280), network=fast, tokenizer=str(tokenizer)).run(context(folder))
        assert found.extractor["precision"] == "tf32"
    Decode(cache, folder / "decoded.npz", tokenizer=str(tokenizer)).run(context(folder))
    Reconstruct([data], str(tokenizer), folder / "reconstructed", features="none").run(context(folder))
    _reproduce(folder)


def _gaussian(folder: Path, width: int) -> Path:
    """A reference that needs no pass through the network."""
    np.savez(folder / "gaussian.npz", mu=np.zeros(width), sigma=np.eye(width))
    return folder / "gaussian.npz"


def _reproduce(folder: Path) -> None:
    """A published pair in its published precision, with small networks under its names."""
    hashes = trained.tokenizer_run(folder / "trained")
    trained.generator_run(folder / "trained", hashes)
    weights = Path(os.environ["TITOKCTL_WEIGHTS"])
    weights.mkdir()
    for run, name in (("tokenizer/tok", "titok-l-32"), ("generator/gen", "maskgit-vit-l-32")):
        shutil.copy(folder / "trained" / run / "weights.safetensors", weights / f"{name}.safetensors")
    found = Reproduce("titok-l-32", _gaussian(folder, 9), 8, FeatureNetwork(toy_features.NAME)).run(context(folder))
    precision = "tf32" if pretend_gpu.KIND == "cuda" else "float32"
    assert found.precision == precision
    manifest = json.loads((Path(found.samples) / "manifest.json").read_text())
    assert manifest["settings"]["precision"] == precision


def context(folder: Path) -> Context:
    """A context on the pretend device."""
    return Context(folder / "runs", str(pretend_gpu.GPU) if pretend_gpu.GPU.index else pretend_gpu.KIND, Leave())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    with pretend_gpu.pretend():
        for name in sys.argv[1:-1]:
            (folder := Path(sys.argv[-1]) / name).mkdir()
            globals()[name](folder)
    print(json.dumps({"waits": pretend_gpu.WAITS, "mixed": pretend_gpu.MIXED}))
