"""Sections "env", "kernels" and "equal": the device, and its numbers beside the CPU's."""

import platform
import shutil

import numpy as np
import torch

from benchmarks.gpu.inputs import GENERATOR, TOKENIZER, generator, pictures, tokenizer
from benchmarks.gpu.record import Record
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.config.sampling import SamplingConfig
from titokctl.distributed.place import available_cores
from titokctl.formats.run_folder import versions
from titokctl.jobs.tokenize.encode import TileEncoder, UnitSettings
from titokctl.models.fused import triton_problem
from titokctl.models.inference import prepared
from titokctl.models.noise import keyed_uniforms
from titokctl.models.precision import Precision, precision
from titokctl.sampling.decoding import sample_ids
from titokctl.training.speed import matrix_peak

# Shares of ids that must be those of the CPU's float32; means of pixel differences in levels of 255; relative errors.
_LEAST_AGREEMENT: dict[Precision, float] = {"float32": 0.998, "tf32": 0.97, "fp16": 0.985, "bf16": 0.93}
_MOST_LEVELS: dict[Precision, float] = {"float32": 0.02, "fp16": 0.5, "bf16": 2.0}
_MOST_ERROR: dict[Precision, float] = {"float32": 1e-4, "tf32": 3e-3, "bf16": 3e-2}


def env(record: Record) -> None:
    """Versions, and the peaks that shares are shares of."""
    record.facts |= versions() | {"python": platform.python_version(), "cores": available_cores()}
    if record.device != "cuda":
        record.speed("peak", bf16=1e12)
        return
    properties = torch.cuda.get_device_properties(0)
    record.facts |= {
        "gpu": properties.name, "memory_gb": round(properties.total_memory / 1e9), "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(), "cc": shutil.which("cc") or shutil.which("gcc"),
    }  # fmt: skip
    types = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}
    with precision("float32", "cuda"):
        peaks = {name: matrix_peak("cuda", dtype) for name, dtype in types.items()}
    with precision("tf32", "cuda"):
        peaks["tf32"] = matrix_peak("cuda", torch.float32)
    x = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    y, host = torch.empty_like(x), torch.empty(1 << 28, dtype=torch.uint8, pin_memory=True)
    peaks["copy_bytes"] = 2.0 * x.numel() / record.seconds_of(lambda: y.copy_(x))
    peaks["from_host_bytes"] = host.numel() / record.seconds_of(lambda: x[: 1 << 28].copy_(host, non_blocking=True))
    record.speed("peak", **peaks)


def kernels(record: Record) -> None:
    """The Triton kernels compile, and agree with torch."""
    problem = triton_problem()
    record.check("Triton kernels compile and agree with torch", not problem, said=problem)
    if not problem:
        from titokctl.models.triton_attention import problem as attention_problem

        for dtype in (torch.bfloat16, torch.float16):
            said = attention_problem(33, 16, 48, dtype, 0.1)  # L-32's
            record.check(f"attention in one kernel agrees with torch, {dtype}", not said, said=said)


def equal(record: Record) -> None:
    """The same numbers on both devices, within what the precision allows; and independence of the batch."""
    index = torch.arange(1000) * 987_654_321
    same = torch.equal(
        keyed_uniforms(2**63 + 5, index, 8, 32), keyed_uniforms(2**63 + 5, index.to(record.device), 8, 32).cpu()
    )
    record.check("noise is the same on both devices", same)
    model = tokenizer(record)
    with record.part("ids and pixels"):
        _ids_and_pixels(record, model)
    with record.part("logits and sampled ids"):
        _logits(record)
    with record.part("batch independence"):
        _tiles(record, model)


def _ids_and_pixels(record: Record, model: torch.nn.Module) -> None:
    device, images = record.device, pictures(4 if record.small else 32)
    with precision("float32", "cpu"):
        ready = prepared(model, "cpu", "float32")
        latents, ids = ready.latents(images), ready.tokenize(images)
        pixels = ready.detokenize(ids[:4])
        del ready
    for name in _available(_LEAST_AGREEMENT, device):
        ready = prepared(model, device, name, "encoder")
        with precision(name, device):
            found, made = ready.latents(images.to(device)).cpu(), ready.tokenize(images.to(device)).cpu()
        agree = float((made == ids).float().mean())
        error = float((found - latents).norm() / latents.norm())
        rows = len(torch.unique(ids, dim=0))
        record.check(
            f"ids of {TOKENIZER} in {name}",
            agree >= _LEAST_AGREEMENT[name],
            agree=agree,
            latents_error=error,
            distinct_rows=rows,
        )
    for name in _available(_MOST_LEVELS, device):
        with precision(name, device):
            made = prepared(model, device, name, "decoder").detokenize(ids[:4].to(device)).cpu()
        levels = (made - pixels).abs() * 255
        record.check(
            f"pixels in {name}",
            float(levels.mean()) <= _MOST_LEVELS[name],
            mean_levels=float(levels.mean()),
            max_levels=float(levels.max()),
        )


def _logits(record: Record) -> None:
    device, model = record.device, generator(record)
    ids = torch.randint(0, 4097, (16, 32), generator=torch.Generator().manual_seed(1))
    labels, settings = torch.arange(16), SamplingConfig()
    with torch.inference_mode(), precision("float32", "cpu"):
        exact = model(ids, labels)
        expected = sample_ids(model, labels, settings)
    for name in _available(_MOST_ERROR, device):
        ready = prepared(model, device, name)
        with torch.inference_mode(), precision(name, device):
            found = ready(ids.to(device), labels.to(device)).cpu()
            drawn = sample_ids(ready, labels.to(device), settings).cpu()
        error = float((found - exact).norm() / exact.norm())
        record.check(f"logits of {GENERATOR} in {name}", error <= _MOST_ERROR[name], error=error)
        agree = float((drawn == expected).float().mean())
        if name == "float32":
            record.check("sampled ids in float32", agree >= 0.9, agree=agree)


def _tiles(record: Record, model: torch.nn.Module) -> None:
    numbers = (1, 3, 8) if record.small else (1, 37, 512)
    pixels = (pictures(numbers[-1]) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    for name in _available(_LEAST_AGREEMENT, record.device):
        if name == "tf32":
            continue
        tile = 4 if record.small else 128
        settings = UnitSettings(PreprocessingConfig(size=256), (), name, tile, record.device)
        encoder = TileEncoder(model, settings)  # type: ignore[arg-type]
        rows = [encoder.rows([pixels[:n]], lambda images: None)["plain"] for n in (*numbers, numbers[-1])]
        for n, found in zip(numbers, rows, strict=False):
            same = np.array_equal(found, rows[-1][:n])
            record.check(f"{n} pictures as among {numbers[-1]} in tiles, {name}", same)


def _available(names: dict[Precision, float], device: str) -> list[Precision]:
    return [name for name in names if device == "cuda" or name not in ("fp16", "tf32")]
