"""Ids as JSON: the lines of `titokctl export --to jsonl`, or the list that `titokctl tokenize --json` prints.

Specification: UTF-8 text, a JSON object a line, with `tokens`, the K ids of an image (the same K in each), and,
where they are known, `class_id`, its label, and `key`, its name. The official trainer reads such lines, and passes over
the names. A JSON list of such objects holds the same.
"""

import array
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from titokctl.errors import UserError
from titokctl.readable import counted

SUFFIXES = (".jsonl", ".json")
_MOST_BYTES_A_LINE = 1 << 20
_MOST_BYTES_OF_A_LIST = 64 << 20
_MOST_TOKENS = 1 << 16
_LARGEST = (1 << 32) - 1
_NAME = re.compile(r"[^\0-\x1f\x7f]{1,200}")


@dataclass(frozen=True)
class IdsLines:
    """The ids of some images.

    Args:
        rows: (N, K) uint32.
        labels: (N,) int32, -1 for none.
        names: of the images, usable as paths below a folder; () unless each has one of its own.
        sha256: of the file.
    """

    path: Path
    rows: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]
    sha256: str

    def __len__(self) -> int:
        return len(self.rows)


def read_ids_lines(path: Path) -> IdsLines:
    """Read `path`. Raises UserError, with the number of the line, for anything else than the specification says."""
    ids, labels, names = array.array("I"), array.array("i"), []
    width = None
    try:
        with path.open("rb") as file:
            for number, record in _records(file, path):
                tokens = _tokens(record, f"line {number} of {path}")
                width = width or len(tokens)
                if len(tokens) != width:
                    raise UserError(
                        f"line {number} of {path} has {counted(len(tokens), 'ids')}, but the first has {width:,}"
                    )
                ids.extend(tokens)
                labels.append(_label(record))
                names.append(record.get("key"))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "check the path") from error
    if not width:
        raise UserError(f"no ids in {path}", "expected lines as `titokctl export TOKENS --to jsonl` writes them")
    rows = np.frombuffer(ids, np.uint32).reshape(-1, width)
    return IdsLines(path, rows, np.frombuffer(labels, np.int32), _usable(names), digest)


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each object with its number, from 1 on."""
    start = file.read(1)
    file.seek(0)
    if start == b"[":
        data = file.read(_MOST_BYTES_OF_A_LIST + 1)
        if len(data) > _MOST_BYTES_OF_A_LIST:
            raise UserError(
                f"{path} is a list of more than {_MOST_BYTES_OF_A_LIST:,} bytes", "write one line per image"
            )
        found = _parsed(data, str(path))
        yield from enumerate(found, 1)
        return
    number = 0
    while line := file.readline(_MOST_BYTES_A_LINE + 1):
        number += 1
        if len(line) > _MOST_BYTES_A_LINE:
            raise UserError(f"line {number} of {path} is longer than {_MOST_BYTES_A_LINE:,} bytes")
        if line.strip():
            yield number, _parsed(line, f"line {number} of {path}")


def _parsed(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        hint = "expected lines as `titokctl export TOKENS --to jsonl` writes them"
        raise UserError(f"{where} is not JSON", hint) from error


def _tokens(record: Any, where: str) -> list[int]:
    tokens = record.get("tokens") if isinstance(record, dict) else None
    tokens = tokens if isinstance(tokens, list) and len(tokens) <= _MOST_TOKENS else []
    if tokens and all(type(one) is int and 0 <= one <= _LARGEST for one in tokens):
        return tokens
    raise UserError(f"{where} has no `tokens`, a list of ids", 'expected e.g. {"class_id": 0, "tokens": [12, 5]}')


def _label(record: dict[str, Any]) -> int:
    label = record.get("class_id")
    return label if type(label) is int and -1 <= label < 1 << 31 else -1


def _usable(names: list[Any]) -> tuple[str, ...]:
    """Return the names if each image has its own, and all are paths that stay below a folder; else ()."""
    if not all(isinstance(name, str) and _NAME.fullmatch(name) and _stays_below(name) for name in names):
        return ()
    folders = {name[:i] for name in names for i, letter in enumerate(name) if letter == "/"}
    # A file can't have the name of a folder that another file is in.
    return tuple(names) if len(set(names)) == len(names) and not folders & set(names) else ()


def _stays_below(name: str) -> bool:
    parts = name.split("/")
    return all(part not in ("", ".", "..") and not part.startswith(".") for part in parts)
