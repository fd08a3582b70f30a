"""Labels of image files in a list beside them: StyleGAN's and EDM's dataset.json, and the Hub's metadata files.

dataset.json is {"labels": [[name, label], ...]}, or {"labels": null} for images without labels. metadata.jsonl and
metadata.csv have a column file_name and, for classes, a column `label` (or another one of `LABEL_COLUMNS`). Labels are
class indices, or names, which are numbered in text order.
"""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from titokctl.errors import UserError
from titokctl.readable import counted

LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")
FILES = ("dataset.json", "metadata.jsonl", "metadata.csv")
MAX_BYTES = 1 << 30
Label = int | str | None
Read = Callable[[str], bytes | None]


@dataclass(frozen=True)
class LabelList:
    """Labels by image name; `file` is the list, `column` where they are in it. None for a list without labels."""

    file: str
    column: str
    labels: Mapping[str, Label] | None

    def of(self, names: Sequence[str]) -> list[Label]:
        """Return the label of each image. Raises UserError if the list names images that are not there."""
        if self.labels is None:
            return [None] * len(names)
        missing = self.labels.keys() - set(names)
        if missing:
            raise UserError(
                f"{self.file} lists {counted(len(missing), 'images')} that can't be found, such as {min(missing)}",
                "copy the images again, or remove them from the list",
            )
        return [self.labels.get(name) for name in names]

    def remark(self, labels: Sequence[Label]) -> str:
        """Return a sentence about where the labels come from."""
        if self.labels is None:
            return f"no labels: {self.file} has none"
        without = sum(label is None for label in labels)
        more = f"; {counted(without, 'images')} without one (-1)" if without else ""
        return f"labels from {self.column} in {self.file}{more}"


def find_list(read: Read, label_key: str | None) -> LabelList | None:
    """Return the labels in the first of FILES that is there; None without any.

    Args:
        read: returns the content of a file beside the images, None if there is none.
        label_key: the column that holds the label; None finds one of LABEL_COLUMNS.

    Raises UserError for a list that is damaged.
    """
    for file in FILES:
        data = read(file)
        if data is None:
            continue
        if file == "dataset.json":
            found = _of_tool(data)
            if found is not None:
                return found
            continue
        rows = _json_lines(file, data) if file.endswith(".jsonl") else _csv_rows(file, data)
        return _of_rows(file, rows, label_key)
    return None


def numbered(values: Sequence[Label], where: str) -> tuple[np.ndarray, list[str]]:
    """Return labels (n,) int32, -1 for None, and the class names: names are numbered in text order, [] for indices.

    Raises UserError for a value that is neither, or if both occur.
    """
    texts = {value for value in values if isinstance(value, str)}
    if texts and all(text.isdecimal() and len(text) < 10 for text in texts):
        values = [int(value) if isinstance(value, str) else value for value in values]
        texts = set()
    for value in values:
        is_index = isinstance(value, int) and not isinstance(value, bool) and -1 <= value < 1 << 31
        if value is not None and not is_index and not isinstance(value, str):
            raise UserError(f"{str(value)[:40]!r} in {where} is not a label", "expected class indices or names")
        if texts and isinstance(value, int):
            raise UserError(f"{where} holds both numbers and names as labels: {value} and {min(texts)!r}")
    order = sorted(texts)
    number_of = {name: i for i, name in enumerate(order)}
    numbers = [-1 if v is None else number_of[v] if isinstance(v, str) else v for v in values]
    return np.array(numbers, np.int32).reshape(-1), order


def _of_tool(data: bytes) -> LabelList | None:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"dataset.json is damaged: {error}", "copy it again") from error
    if not isinstance(record, dict) or "labels" not in record:
        return None
    pairs = record["labels"]
    if pairs is None:
        return LabelList("dataset.json", "labels", None)
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise UserError("the labels of dataset.json are not [name, class index]", "make it again with dataset_tool")
    return LabelList("dataset.json", "labels", dict(map(tuple, pairs)))


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and _is_label(pair[1])


def _is_label(value: Any) -> bool:
    return value is None or (isinstance(value, int | str) and not isinstance(value, bool))


def _of_rows(file: str, rows: list[dict[str, Any]], label_key: str | None) -> LabelList | None:
    if any(not isinstance(row.get("file_name"), str) for row in rows):
        raise UserError(f"{file} has a row without file_name", "every row names its image in a column file_name")
    columns = {name for row in rows[:1000] for name in row}
    if label_key is not None and label_key not in columns:
        raise UserError(f"{file} has no column {label_key}", f"it has: {', '.join(sorted(columns))}")
    column = label_key or next((name for name in LABEL_COLUMNS if name in columns), None)
    if column is None:
        return None
    labels: dict[str, Label] = {}
    for row in rows:
        value = row.get(column)
        value = None if value == "" else value
        if not _is_label(value):
            raise UserError(
                f"{str(value)[:40]!r} in {column} of {file} is not a label", "name another with --label-key"
            )
        labels[row["file_name"]] = value
    if len(labels) < len(rows):
        raise UserError(f"{file} lists an image twice")
    return LabelList(file, column, labels)


def _json_lines(file: str, data: bytes) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"line {number} of {file} is not JSON", "copy the file again") from error
        if not isinstance(row, dict):
            raise UserError(f"line {number} of {file} is not a JSON object")
        rows.append(row)
    return rows


def _csv_rows(file: str, data: bytes) -> list[dict[str, Any]]:
    try:
        return list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file} is not a CSV table: {error}") from error
