"""Labels in a text file, for images without labels such as ILSVRC2012_img_val.tar.

A line is a label, in the order of the sorted image names (`ILSVRC2012_val_00000042` takes line 42); or an image name
and its label, separated by blanks, tabs or a comma (only the first word of the label is used; a line with an invalid
label is a heading). A label is a synset name, or the index of its synset in sorted order. The devkit's
ILSVRC2012_validation_ground_truth.txt has neither: its ILSVRC2012_IDs count from 1 in an order of their own. They are
accepted only with a table of synset and ILSVRC2012_ID (two columns in either order, made from the devkit's meta.mat),
and never as indices.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from titokctl.data.sources.imagenet import is_synset
from titokctl.data.sources.source import Sample, SeekableSource
from titokctl.errors import UserError
from titokctl.formats.file_kind import IMAGE_SUFFIXES
from titokctl.formats.local_file import read_file
from titokctl.readable import counted

_MAX_BYTES = 256 << 20
_LEAVES = 1000  # the rest of the devkit's table are inner nodes of the tree, which are not labels of images
_NUMBERED = re.compile(r"(?:.*/)?ILSVRC2012_(?:val|test)_(\d{8})")
_ID_HINT = (
    "ILSVRC2012_IDs are not class indices; use a file of synset names, or name the devkit's table of synset and "
    "ILSVRC2012_ID (from meta.mat) with --label-table"
)


@dataclass
class LabelledSource(SeekableSource):
    """The samples of `images` with the labels (len,) int32 of a file in place of their own."""

    images: SeekableSource = field(kw_only=True)
    given: np.ndarray = field(kw_only=True)

    def read_many(self, positions: Sequence[int] | np.ndarray) -> list[Sample]:
        samples = self.images.read_many(positions)
        return [replace(s, label=int(self.given[p])) for s, p in zip(samples, positions, strict=True)]

    def labels(self) -> np.ndarray:
        return self.given.copy()

    def keys(self) -> list[str]:
        return self.images.keys()

    def sizes(self) -> np.ndarray:
        return self.images.sizes()


def with_labels(source: SeekableSource, labels: Path, table: Path | None = None) -> LabelledSource:
    """Return `source` with the labels of a text file.

    Raises:
        UserError: the images have labels already, the file doesn't fit them, or it has ILSVRC2012_IDs without a table.
    """
    if (source.labels() >= 0).any():
        raise UserError(f"the images have labels of their own, so {labels} can't be used", "leave out --labels")
    words = _label_words(labels, source)
    ids = _read_table(table) if table is not None else {}
    numbers, class_names = _as_indices(labels, words, ids)
    description = source.description | {"labels": str(labels.resolve())}
    if table is not None:
        description["label_table"] = str(table.resolve())
    for name in ("fingerprint", "listing"):
        description[name] = _digest(source.description[name], numbers, class_names)
    return LabelledSource(
        class_names,
        description,
        source.units,
        source.problems,
        [f"labels from {labels}"],
        images=source,
        given=numbers,
    )


def _digest(fingerprint: str, numbers: np.ndarray, class_names: list[str]) -> str:
    parts = (fingerprint.encode(), numbers.astype("<i4").tobytes(), "\n".join(class_names).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _label_words(path: Path, source: SeekableSource) -> list[str]:
    """Return the label of every image as written in the file, in the order of the source."""
    lines = [line.replace(",", " ").replace("\t", " ").split() for line in _text(path).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} contains no labels")
    keys = source.keys()
    if any(len(words) > 1 for words in lines):
        named = {_stem(words[0]): words[1] for words in lines if len(words) > 1 and _is_label(words[1])}
        missing = [key for key in keys if _stem(key) not in named]
        if missing:
            raise UserError(f"{path} has no label for {missing[0]} (and {len(missing) - 1:,} more)")
        return [named[_stem(key)] for key in keys]
    plain = [words[0] for words in lines]
    matches = [_NUMBERED.fullmatch(key) for key in keys]
    numbers = [int(match[1]) for match in matches if match is not None]
    if len(numbers) == len(keys):
        if max(numbers) > len(plain) or min(numbers) < 1:
            raise UserError(f"{path} has {counted(len(plain), 'lines')}, but there is an image number {max(numbers):,}")
        return [plain[number - 1] for number in numbers]
    if len(plain) != len(keys):
        raise UserError(
            f"{path} has {counted(len(plain), 'lines')} for {counted(len(keys), 'images')}",
            "expected one label per line",
        )
    order = sorted(range(len(keys)), key=keys.__getitem__)
    words_at = dict(zip(order, plain, strict=True))
    return [words_at[i] for i in range(len(keys))]


def _as_indices(path: Path, words: list[str], ids: dict[int, str]) -> tuple[np.ndarray, list[str]]:
    """Return the labels, (n,) int32, and the class names if they are known."""
    in_table = sorted(ids.values())
    if all(map(is_synset, words)):
        class_names = in_table or sorted(set(words))
        unknown = set(words) - set(class_names)
        if unknown:
            raise UserError(f"{path} names the synset {min(unknown)}, which is not in the table")
    else:
        wrong = next((word for word in words if not word.isdecimal()), None)
        if wrong is not None:
            raise UserError(f"{path}: {wrong!r} is not a label", "expected synset names (n01440764) or class indices")
        numbers = [int(word) for word in words]
        if ids:
            unknown_ids = set(numbers) - set(ids)
            if unknown_ids:
                raise UserError(f"{path} contains the ILSVRC2012_ID {min(unknown_ids)}, which is not in the table")
            words, class_names = [ids[number] for number in numbers], in_table
        elif 0 not in numbers:
            # Indices of a whole validation set begin with 0; the devkit's IDs begin with 1.
            raise UserError(f"{path} seems to contain ILSVRC2012_IDs: its smallest number is {min(numbers)}", _ID_HINT)
        else:
            return np.array(numbers, np.int32), []
    index = {name: i for i, name in enumerate(class_names)}
    return np.array([index[word] for word in words], np.int32), class_names


def _read_table(path: Path) -> dict[int, str]:
    """Read synsets by ILSVRC2012_ID, from lines with both."""
    ids: dict[int, str] = {}
    for line in _text(path).splitlines():
        words = line.replace(",", " ").replace("\t", " ").split()
        synset = next((word for word in words if is_synset(word)), None)
        number = next((int(word) for word in words if word.isdecimal()), None)
        if synset is None or number is None or not 1 <= number <= _LEAVES:
            continue
        if ids.setdefault(number, synset) != synset:
            raise UserError(f"{path} maps the ILSVRC2012_ID {number} to {ids[number]} and to {synset}")
    if not ids or len(set(ids.values())) < len(ids):
        raise UserError(f"{path} is not a table of synset and ILSVRC2012_ID", "expected lines such as `n02119789 1`")
    return ids


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is {path.stat().st_size:,} bytes, too large for a list of labels")
        return read_file(path, _MAX_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read the labels {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: {error.reason}") from error


def _stem(name: str) -> str:
    """Return an image's name without folder and extension."""
    base = name.rpartition("/")[2]
    stem, dot, extension = base.rpartition(".")
    return stem if dot and extension.lower() in IMAGE_SUFFIXES else base


def _is_label(word: str) -> bool:
    return is_synset(word) or word.isdecimal()
