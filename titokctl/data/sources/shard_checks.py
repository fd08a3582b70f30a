"""Checks over all shards of a source: counts, names of labels, labels and keys.

A wrong count, a shard without images, or a label with two names is an error of the whole source. A single bad sample is
left out and reported: one with an invalid label, or with the same image and key as in another shard. One without a
label stays, with label -1.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from titokctl.data.sources.source import Rejected, passed_over_in_words
from titokctl.errors import UserError
from titokctl.formats.shard_counts import Count, recorded_counts
from titokctl.formats.shard_index import ShardIndex
from titokctl.formats.shard_scan import BESIDE
from titokctl.readable import counted

ReadImage = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Checked:
    """The indices of usable samples, the samples left out, and for each shard the prefix of its keys ("" mostly)."""

    indices: list[ShardIndex]
    problems: list[Rejected]
    prefixes: list[str]


def check_distinct(shards: Sequence[str]) -> None:
    """Raise UserError when a shard is named twice."""
    for shard, times in Counter(shards).items():
        if times > 1:
            raise UserError(f"the shard {shard} is named twice")


def check_counts(paths: Sequence[Path], indices: Sequence[ShardIndex]) -> None:
    """Raise UserError when a shard has another number of samples than the files beside it record, or no images."""
    for folder in dict.fromkeys(path.parent for path in paths):
        here = [(path, index) for path, index in zip(paths, indices, strict=True) if path.parent == folder]
        counts = recorded_counts([path.name for path, _ in here], partial(_content, folder))
        for path, index in here:
            if path.name in counts and not index.cut:
                check_count(str(path), index, counts[path.name])
            elif not len(index) and not index.problems:
                raise without_images(str(path), index.passed_over)


def without_images(shard: str, passed_over: Mapping[str, int]) -> UserError:
    """Return the error that a shard holds nothing that can be read."""
    what = passed_over_in_words(passed_over) or "nothing"
    return UserError(f"no images in the shard {shard}: it holds {what}", "copy it again, or leave it out")


def check_count(shard: str, index: ShardIndex, count: Count) -> None:
    """Raise UserError unless `count` is the number of images in `index`, or of samples with or without one."""
    if count.samples in (len(index), len(index) + left_out(index.problems)):
        return
    text = f"{shard} has {len(index):,} images, but {count.file} records {count.samples:,}"
    raise UserError(text, f"copy it again, or delete {count.file} if the count is wrong")


def left_out(problems: Sequence[tuple[str, str, str]]) -> int:
    """Return how many of these problems are samples without an image in the index."""
    return sum(kind not in BESIDE for _, kind, _ in problems)


def joined_names(shards: Sequence[str], indices: Sequence[ShardIndex]) -> dict[int, str]:
    """Return the names by label. Raises UserError when a label has two names, in one shard or in two."""
    names: dict[int, str] = {}
    said_by: dict[int, str] = {}
    for shard, index in zip(shards, indices, strict=True):
        own = [text for _, kind, text in index.problems if kind == "label-map"]
        if own:
            raise UserError(f"{shard} contradicts itself: {own[0]}", "use shards that were made together")
        for label, name in index.names.items():
            if names.setdefault(label, name) != name:
                raise UserError(
                    f"the label {label} is {names[label]!r} in {said_by[label]} and {name!r} in {shard}",
                    "use shards that were made together",
                )
            said_by.setdefault(label, shard)
    return names


def check_samples(shards: Sequence[str], indices: Sequence[ShardIndex], num_classes: int, read: ReadImage) -> Checked:
    """Leave out the samples that can't be used.

    Args:
        shards: the names of the shards.
        num_classes: labels must be below it; 0 for no limit.
        read: read(shard, i) returns the bytes of image i of a shard; called for possible duplicates only.
    """
    kept: list[np.ndarray] = []
    problems: list[Rejected] = []
    for index in indices:
        keep, wrong = usable(index, num_classes)
        kept.append(keep)
        problems += wrong
    same = _same_images(indices, kept, read) if len(indices) > 1 else _Same([], set())
    for shard, i, other in same.doubles:
        kept[shard][i] = False
        problems.append(Rejected(indices[shard].key(i), "duplicate", f"also in {shards[other]}, byte for byte"))
    prefixes = [f"{Path(name).stem}/" if shard in same.ambiguous else "" for shard, name in enumerate(shards)]
    left = [index if keep.all() else index.only(keep) for index, keep in zip(indices, kept, strict=True)]
    return Checked(left, problems, prefixes)


def usable(index: ShardIndex, num_classes: int) -> tuple[np.ndarray, list[Rejected]]:
    """Return which samples of one shard can be used, (N,) bool, and why others can't.

    Args:
        num_classes: labels must be below it; 0 for no limit.
    """
    problems = [Rejected(*problem) for problem in index.problems]
    bad = {key for key, kind, _ in index.problems if kind == "bad-label"}
    keep = np.array([index.key(i) not in bad for i in range(len(index))], bool) if bad else np.ones(len(index), bool)
    for i in np.flatnonzero(keep & (index.labels >= num_classes)).tolist() if num_classes else []:
        text = f"the label {index.labels[i]} is out of range for {counted(num_classes, 'classes')}"
        problems.append(Rejected(index.key(i), "label-range", text))
    keep &= (index.labels < num_classes) | (not num_classes)
    return keep, problems


def without_labels(index: ShardIndex) -> ShardIndex:
    """Return the index of the same images without labels, and without the problems of labels."""
    problems = [problem for problem in index.problems if problem[1] not in ("bad-label", "label-map")]
    return replace(index, labels=np.full(len(index), -1, np.int32), problems=problems, names={}, texts=[])


def numbered_names(indices: Sequence[ShardIndex]) -> tuple[list[ShardIndex], list[str]]:
    """Number labels that are names, in text order over all shards; return the indices and the names, [] for none.

    Beside shards whose labels are numbers, samples whose labels are names can't be used.
    """
    if not any(index.texts for index in indices):
        return list(indices), []
    if any(not index.texts and (index.labels >= 0).any() for index in indices):
        return [_without_names(index) if index.texts else index for index in indices], []
    names = sorted({text for index in indices for text in index.texts})
    number_of = {name: i for i, name in enumerate(names)}
    found = []
    for index in indices:
        table = np.array([*(number_of[text] for text in index.texts), -1], np.int32)
        found.append(replace(index, labels=table[index.labels], texts=[]) if index.texts else index)
    return found, names


def _without_names(index: ShardIndex) -> ShardIndex:
    labelled = np.flatnonzero(index.labels >= 0).tolist()
    problems = [
        (index.key(i), "bad-label", f"not a class index, as in other shards: {index.texts[index.labels[i]][:20]!r}")
        for i in labelled
    ]
    labels = np.full(len(index), -1, np.int32)
    return replace(index, labels=labels, texts=[], problems=index.problems + problems)


def label_remarks(labels: Sequence[np.ndarray], names: Sequence[str]) -> list[str]:
    """Return sentences about labels that are names, and about images without a label."""
    found = []
    if names:
        ends = f"{names[0]} is 0" + (f", {names[-1]} is {len(names) - 1}" if len(names) > 1 else "")
        found.append(f"the labels are {len(names):,} names, numbered in text order: {ends}")
    without = sum(int((part < 0).sum()) for part in labels)
    total = sum(len(part) for part in labels)
    if without == total:
        found.append("no labels: the samples have none")
    elif without:
        found.append(f"without a label (-1): {without:,} of {total:,} images")
    return found


@dataclass(frozen=True)
class _Same:
    """`doubles`: (shard, image, the first shard with it); `ambiguous`: shards with keys that other shards use, too."""

    doubles: list[tuple[int, int, int]]
    ambiguous: set[int]


def _same_images(indices: Sequence[ShardIndex], kept: Sequence[np.ndarray], read: ReadImage) -> _Same:
    # 64-bit hashes of the keys find the few that may agree; only those are compared.
    hashes = np.concatenate([_key_hashes(index) for index in indices])
    ends = np.cumsum([len(index) for index in indices])
    alive = np.flatnonzero(np.concatenate(kept))
    order = alive[np.argsort(hashes[alive], kind="stable")]
    equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    groups: dict[str, list[tuple[int, int]]] = {}
    for at in np.unique(order[np.concatenate([equal, equal + 1])]).tolist():
        shard = int(np.searchsorted(ends, at, side="right"))
        i = at - (int(ends[shard]) - len(indices[shard]))
        groups.setdefault(indices[shard].key(i), []).append((shard, i))
    doubles, ambiguous = [], set()
    for group in groups.values():
        different: list[tuple[int, int]] = []
        for shard, i in group:
            first = next((o for o in different if _equal(indices, read, o, (shard, i))), None)
            if first is None:
                different.append((shard, i))
            else:
                doubles.append((shard, i, first[0]))
        if len(different) > 1:
            ambiguous |= {shard for shard, _ in different}
    return _Same(doubles, ambiguous)


def _key_hashes(index: ShardIndex) -> np.ndarray:
    data, ends = index.keys.tobytes(), index.key_ends.tolist()
    return np.fromiter((hash(data[a:b]) for a, b in zip([0, *ends], ends, strict=False)), np.int64, len(ends))


def _equal(indices: Sequence[ShardIndex], read: ReadImage, a: tuple[int, int], b: tuple[int, int]) -> bool:
    facts = [(indices[s].sizes[i], indices[s].labels[i]) for s, i in (a, b)]
    return bool(facts[0] == facts[1]) and read(*a) == read(*b)


def contiguous_names(names: dict[int, str]) -> list[str]:
    """Return the class names by label if every label from 0 on has a distinct one; otherwise []."""
    counts = Counter(names.values())
    whole = sorted(names) == list(range(len(names))) and all(n == 1 for n in counts.values())
    return [names[label] for label in range(len(names))] if whole else []


def _content(folder: Path, name: str) -> bytes | None:
    try:
        return (folder / name).read_bytes()
    except OSError:
        return None
