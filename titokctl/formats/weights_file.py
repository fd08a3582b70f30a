"""Weights of one network: a safetensors file with a description in its metadata.

Specification: a safetensors file whose metadata holds the strings format="titokctl/weights", format_version="1", kind
("tokenizer", "generator" or "proxy"), config (the network's configuration as JSON), checksum, metadata_sha256, and
further keys of the writer ("inputs", "source_sha256", ...). Metadata keys are sorted. The data begins at a multiple of
64 bytes, as does every tensor whose size allows it, so that equal weights give equal files and memory-mapped tensors
are aligned. checksum is SHA-256 over, for every tensor in the order of its name, a line "name dtype shape" (torch's
names), the sums of its little-endian 64-bit words modulo 2^64 at equal offsets in consecutive 32 KiB blocks, and the
bytes behind the last whole block: it detects a change of any byte at the speed of memory. metadata_sha256 is SHA-256
over all metadata but itself and checksum, as compact UTF-8 JSON with sorted keys; the first files lack it, and it is
checked if present. Readers ignore unknown metadata.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from titokctl.errors import UserError
from titokctl.formats.atomic import atomic_path, check_version, disk_errors
from titokctl.formats.file_kind import head_of, mistaken

FORMAT = "titokctl/weights"
FORMAT_VERSION = 1
KINDS = ("tokenizer", "generator", "proxy")
_ALIGNMENT = 64
_BLOCK = 32 << 10
CHECKSUM, METADATA_CHECKSUM = "checksum", "metadata_sha256"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write(path: Path, kind: str, config: str, tensors: Mapping[str, torch.Tensor], extra: Mapping[str, str]) -> None:
    """Write a weights file atomically.

    Args:
        kind: one of KINDS.
        config: the network's configuration as JSON.
        tensors: by our names, on any device.
        extra: further metadata strings.

    Raises:
        UserError: the disk is full, or permission is denied.
        ValueError: `extra` uses a key of the specification.
    """
    own = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "kind": kind, "config": config}
    taken = sorted((own.keys() | {CHECKSUM, METADATA_CHECKSUM}) & extra.keys())
    if taken:
        raise ValueError(f"reserved metadata keys: {', '.join(taken)}")
    metadata = {**extra, **own}
    sums = {CHECKSUM: checksum(tensors), METADATA_CHECKSUM: metadata_checksum(metadata)}
    write_tensors(path, tensors, metadata | sums)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, one tensor at a time; equal content gives equal bytes."""
    # Tensors with sizes that keep the next tensor aligned come first.
    names = sorted(tensors, key=lambda name: (tensors[name].nbytes % _ALIGNMENT != 0, -tensors[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in names:
        tensor = tensors[name]
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-(len(encoded) + 8) % _ALIGNMENT)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            file.write(_bytes(tensors[name]).numpy().data)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata strings of a safetensors file; empty when it has none. Tensors are not read.

    Raises:
        UserError: it is missing, truncated, not a safetensors file, or was written by a newer titokctl.
    """
    with _open(path) as file:
        metadata = file.metadata() or {}
    if is_ours(metadata):
        version = metadata.get("format_version", "")
        check_version(int(version) if version.isdecimal() else 0, FORMAT_VERSION, path, "weights format")
    return metadata


def is_ours(metadata: Mapping[str, str]) -> bool:
    """Return True if `metadata` is that of a weights file by this specification."""
    return metadata.get("format") == FORMAT


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a safetensors file, memory-mapped: pages are read when first used.

    Writes to the tensors don't change the file. Raises UserError when the file is damaged or was edited.
    """
    metadata = read_metadata(path)
    with _open(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    if is_ours(metadata):
        if metadata.get(METADATA_CHECKSUM) not in (None, metadata_checksum(metadata)):
            raise _edited(path, "metadata does")
        if checksum(tensors) != metadata.get(CHECKSUM):
            raise _edited(path, "tensors do")
    return tensors


def metadata_checksum(metadata: Mapping[str, str]) -> str:
    """Return the metadata checksum of the specification, 64 hex digits."""
    covered = {name: text for name, text in metadata.items() if name not in (CHECKSUM, METADATA_CHECKSUM)}
    text = json.dumps(covered, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the checksum of the specification, 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        data = _bytes(tensor)
        whole = len(data) // _BLOCK * _BLOCK
        if whole:
            digest.update(_words(data[:whole]).view(-1, _BLOCK // 8).sum(0).numpy().data)
        digest.update(data[whole:].numpy().data)
    return digest.hexdigest()


def _edited(path: Path, what: str) -> UserError:
    message = f"{path} is damaged or was edited: its {what} not match the recorded checksum"
    return UserError(message, "download or write it again")


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _words(data: torch.Tensor) -> torch.Tensor:
    aligned = data if data.storage_offset() % 8 == 0 else data.clone()
    return aligned.view(torch.int64)


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        if not path.is_file():
            raise UserError(f"weights not found: {path}", "`titokctl weights ls` lists known names") from error
        head, hint = head_of(path), "it may be truncated: download or write it again"
        if other := mistaken(head, "json"):  # a header of 123 bytes begins with {, too
            raise UserError(f"{path} is {other.words}, not a safetensors file", other.hint or hint) from error
        raise UserError(f"{path} is not a complete safetensors file ({error})", hint) from error
