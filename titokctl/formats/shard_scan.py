"""The samples of a tar shard, found by one pass over its headers: images, labels and problems.

A sample is defined as in WebDataset: members whose names agree up to the first dot of the base name. That part is the
key, the rest the kind. A sample has one image (jpg, jpeg, png, webp, in upper or lower case) and at most one label, in
a `cls` or `json` member. Other members are never read. If one of them has an image's name (`a.b.jpg`) and the sample
has no image, that is a problem of the sample, so that names with several dots are reported and not ignored. The pass
only reads forwards, so that it also works on a stream from a server.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from titokctl.formats.tar_headers import BrokenTar, Member, members

MAX_IMAGE_BYTES = 256 << 20
IMAGES = ("jpg", "jpeg", "png", "webp")
_MAX_LABEL_BYTES = 1 << 20
_LABELS = ("cls", "json")
_JSON_KEYS = ("label", "cls", "class_id")
_JSON_NAMES = ("class_name", "label_name", "classname", "synset", "wnid")
# Problems of samples that are kept; all others mean that the sample is left out.
BESIDE = ("bad-label", "duplicate", "label-map")


@dataclass(frozen=True, slots=True)
class Found:
    """One image: `size` bytes at `offset`; label -1 without one."""

    offset: int
    size: int
    label: int
    key: str


@dataclass
class Scan:
    """The content of a shard.

    Args:
        found: the images, in order.
        problems: (key, kind, text) of each.
        names: names of labels, from json members.
        cut: how the tar ends too early; "" when it is whole.
    """

    found: list[Found] = field(default_factory=list)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    cut: str = ""


@dataclass
class _Sample:
    image: Member | None = None
    label: int | None = None
    problem: tuple[str, str] | None = None
    extra: list[tuple[str, str]] = field(default_factory=list)
    dotted: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[tuple[str, str]]:
        """Kind and text of each problem. A sample without an image has one, the reason, whatever its labels are."""
        if self.image is not None:
            return ([] if self.problem is None else [self.problem]) + _once(self.extra)
        if self.problem is None and self.dotted:
            more = f" (and {len(self.dotted) - 1:,} more)" if len(self.dotted) > 1 else ""
            return [
                (
                    "several-dots",
                    f"{self.dotted[0]}{more}: the name has several dots; one is expected, between key and kind",
                )
            ]
        return [problem for problem in self.extra if problem[0] == "label-map"] + [
            self.problem or ("no-image", "a label without an image")
        ]


def scan(
    file: BinaryIO,
    length: int,
    max_image_bytes: int = MAX_IMAGE_BYTES,
    collect: Callable[[int, bytes], None] | None = None,
) -> Scan:
    """Scan the shard in `file`, which is `length` bytes long. A cut tar gives its whole members.

    Args:
        max_image_bytes: larger images are left out.
        collect: called with the offset and the bytes of each image; without it no images are read.

    Raises:
        BrokenTar: it isn't a tar.
    """
    samples: dict[str, _Sample] = {}
    result = Scan()
    try:
        for member in members(file, length):
            is_image = _take(samples, member, file, max_image_bytes, result.names)
            if is_image and collect is not None:
                file.seek(member.offset)
                data = file.read(member.size)
                if len(data) < member.size:
                    samples[_split(member.name)[0]].image = None
                    raise BrokenTar(f"cut after {member.offset + len(data):,} bytes: it ends inside a member", cut=True)
                collect(member.offset, data)
    except BrokenTar as error:
        if not error.cut or length == 0:
            raise
        result.cut = str(error)
    for key, sample in samples.items():
        result.problems += [(key, *problem) for problem in sample.problems]
        if sample.image is not None:
            label = -1 if sample.label is None else sample.label
            result.found.append(Found(sample.image.offset, sample.image.size, label, key))
    result.found.sort(key=lambda one: one.offset)
    return result


def _once(problems: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Remove all but the first problem of a bad label: two bad members are still one sample."""
    bad = [problem for problem in problems if problem[0] == "bad-label"]
    return [problem for problem in problems if problem not in bad[1:]]


def _split(name: str) -> tuple[str, str]:
    """Split the name of a member into key and kind."""
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return (folder + slash + stem if stem else ""), kind.lower()


def _take(
    samples: dict[str, _Sample], member: Member, file: BinaryIO, max_image_bytes: int, names: dict[int, str]
) -> bool:
    """Add a member to its sample; return True for the sample's image."""
    key, kind = _split(member.name)
    dotted = "." in kind and kind.rpartition(".")[2] in IMAGES
    if not key or not (dotted or kind in IMAGES + _LABELS):
        return False
    sample = samples.setdefault(key, _Sample())
    if dotted:
        sample.dotted.append(member.name)
        return False
    if kind in _LABELS:
        _take_label(sample, member, kind, file, names)
    elif sample.image is not None:
        sample.extra.append(("duplicate", f"{member.name}: the key has an image already"))
    elif member.size > max_image_bytes:
        sample.problem = ("too-large", f"{member.name}: {member.size:,} bytes, more than {max_image_bytes:,}")
    else:
        sample.image = member
        return True
    return False


def _take_label(sample: _Sample, member: Member, kind: str, file: BinaryIO, names: dict[int, str]) -> None:
    if member.size > _MAX_LABEL_BYTES:
        sample.extra.append(("bad-label", f"{member.name}: a label of {member.size:,} bytes"))
        return
    file.seek(member.offset)
    label, name = _label(kind, file.read(member.size))
    if isinstance(label, str):
        sample.extra.append(("bad-label", f"{member.name}: {label}"))
    elif label is not None and sample.label not in (None, label):
        sample.extra.append(("bad-label", f"{member.name}: the labels {sample.label} and {label}"))
    elif label is not None:
        sample.label = label
        if name and names.setdefault(label, name) != name:
            sample.extra.append(("label-map", f"the label {label} is {names[label]!r} and {name!r}"))


def _label(kind: str, data: bytes) -> tuple[int | str | None, str]:
    """Parse a cls or json member: the label, None if a json has none, or a problem in words; and its name or ""."""
    try:
        value: Any = int(data) if kind == "cls" else json.loads(data)
    except (ValueError, RecursionError):
        return f"not {'a whole number' if kind == 'cls' else 'JSON'}: {data[:20]!r}", ""
    name = ""
    if kind == "json":
        fields = value if isinstance(value, dict) else {}
        value = next((fields[k] for k in _JSON_KEYS if k in fields), None)
        name = next((fields[k] for k in _JSON_NAMES if isinstance(fields.get(k), str)), "")
        if value is None:
            return None, ""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        return f"not a class index: {str(value)[:20]!r}", ""
    return value, name
