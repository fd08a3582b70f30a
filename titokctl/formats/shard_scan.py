"""The samples of a tar shard, found by one pass over its headers: images, labels, problems, and everything else.

A sample is defined as in WebDataset: members whose names agree up to the first dot of the base name. That part is the
key, the rest the kind. A sample has one image and at most one label, in a `cls` or `json` member. A member is an image
if its kind says so (jpg, png, webp, ..., in upper or lower case); in a sample without one, the member that is an image
by its first bytes is taken. Links within the shard are followed. If a member has an image's name with several dots
(`a.b.jpg`) and the sample has no image, that is a problem of the sample. Every other member is counted by its kind. The
pass only reads forwards, so that it also works on a stream from a server.

Labels are class indices. Where all of a shard are names instead, each is numbered by its position in `Scan.texts`. A
label that is there and can't be used is a problem of its sample; metadata without a label is none.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from titokctl.formats.file_kind import HEAD_BYTES, IMAGE_SUFFIXES, image_kind
from titokctl.formats.tar_headers import FILE, HARD_LINK, BrokenTar, Member, entries

MAX_IMAGE_BYTES = 256 << 20
_MAX_LABEL_BYTES = 1 << 20
_MAX_NAME = 256  # characters of a label that is a name
_LABELS = ("cls", "json")
_JSON_KEYS = ("label", "cls", "class_id")
_JSON_NAMES = ("class_name", "label_name", "classname", "synset", "wnid")
# Problems of samples that are kept; all others mean that the sample is left out.
BESIDE = ("bad-label", "duplicate", "label-map")
HIDDEN = "hidden"


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
        texts: the labels that are names, sorted; labels are positions in it. Empty if labels are indices.
        passed_over: number of members that are neither image nor label, by kind or type.
        label_files: number of members that were read as labels.
        cut: how the tar ends too early; "" when it is whole.
    """

    found: list[Found] = field(default_factory=list)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    names: dict[int, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    passed_over: dict[str, int] = field(default_factory=dict)
    label_files: int = 0
    cut: str = ""


@dataclass(frozen=True)
class Keys:
    """The members of a sample to take.

    Args:
        image: the kind of the image, such as "image.png"; None for every kind of image.
        label: the kind of the label, or the field of a json member that holds it; None for `cls` and `json`.
    """

    image: str | None = None
    label: str | None = None


@dataclass
class _Sample:
    image: Member | None = None
    label: int | str | None = None
    problems: list[tuple[str, str]] = field(default_factory=list)
    unnamed: list[Member] = field(default_factory=list)
    dotted: list[Member] = field(default_factory=list)
    label_members: list[str] = field(default_factory=list)


def scan(
    file: BinaryIO,
    length: int,
    max_image_bytes: int = MAX_IMAGE_BYTES,
    collect: Callable[[int, bytes], None] | None = None,
    keys: Keys = Keys(),
) -> Scan:
    """Scan the shard in `file`, which is `length` bytes long. A cut tar gives its whole members.

    Args:
        max_image_bytes: larger images are left out.
        collect: called with the offset and the bytes of each image; without it no images are read.
        keys: which members are images and labels.

    Raises:
        BrokenTar: it isn't a tar.
    """
    work = _Pass(file, max_image_bytes, collect, keys)
    try:
        for member in entries(file, length):
            work.take(member)
    except BrokenTar as error:
        if not error.cut or length == 0:
            raise
        work.result.cut = str(error)
    return work.finish()


def split_name(name: str) -> tuple[str, str]:
    """Split the name of a member into key and kind; the key of a hidden one is empty."""
    folder, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return (folder + slash + stem if stem else ""), kind.lower()


class _Pass:
    """One pass over a shard; the arguments are those of `scan`."""

    def __init__(
        self, file: BinaryIO, max_image_bytes: int, collect: Callable[[int, bytes], None] | None, keys: Keys
    ) -> None:
        self._file, self._max, self._collect, self._keys = file, max_image_bytes, collect, keys
        self._samples: dict[str, _Sample] = {}
        self._files: dict[str, Member] = {}
        self._links: list[Member] = []
        self._passed: Counter[str] = Counter()
        self.result = Scan()

    def take(self, member: Member) -> None:
        """Add one member. Raises BrokenTar when the file ends inside it."""
        key, kind = split_name(member.name)
        if not key:
            self._passed[HIDDEN] += 1
        elif member.target:
            self._links.append(member)
        elif member.type != FILE:
            self._pass_over(key, kind, member.type, member.name)
        else:
            self._take_file(key, kind, member)

    def _take_file(self, key: str, kind: str, member: Member) -> None:
        if self._is_image(kind):
            if self._take_image(key, member):
                self._files[_plain(member.name)] = member
                if self._collect is not None:
                    self._read_image(key, member)
        elif self._is_label(kind):
            self._take_label(self._samples.setdefault(key, _Sample()), member, kind)
        elif self._keys.image is None and "." in kind and kind.rpartition(".")[2] in IMAGE_SUFFIXES:
            self._samples.setdefault(key, _Sample()).dotted.append(member)
        elif self._keys.image is None and self._is_image_by_bytes(member):
            self._samples.setdefault(key, _Sample()).unnamed.append(member)
        else:
            self._passed[suffix(kind)] += 1

    def _is_image(self, kind: str) -> bool:
        return kind == self._keys.image.lower() if self._keys.image is not None else kind in IMAGE_SUFFIXES

    def _is_label(self, kind: str) -> bool:
        return kind in _LABELS if self._keys.label is None else kind in (self._keys.label.lower(), "json")

    def _take_image(self, key: str, member: Member) -> bool:
        """Make a member the image of its sample; return False, with a problem, when it can't be."""
        sample = self._samples.setdefault(key, _Sample())
        if sample.image is not None:
            sample.problems.append(("duplicate", f"{member.name}: the key has an image already"))
        elif member.size > self._max:
            text = f"{member.name}: {member.size:,} bytes, more than {self._max:,}"
            sample.problems.append(("too-large", text))
        else:
            sample.image = member
        return sample.image is member

    def _read_image(self, key: str, member: Member, head: bytes = b"") -> None:
        assert self._collect is not None
        self._file.seek(member.offset + len(head))
        data = head + self._file.read(member.size - len(head))
        if len(data) < member.size:
            self._samples[key].image = None
            raise BrokenTar(f"cut after {member.offset + len(data):,} bytes: it ends inside a member", cut=True)
        self._collect(member.offset, data)

    def _is_image_by_bytes(self, member: Member) -> bool:
        """Return True if a member is an image by its first bytes; it is then collected."""
        if not 0 < member.size <= self._max:
            return False
        self._file.seek(member.offset)
        head = self._file.read(min(HEAD_BYTES, member.size))
        if image_kind(head) is None:
            return False
        if self._collect is not None:
            self._samples.setdefault(split_name(member.name)[0], _Sample())
            self._read_image(split_name(member.name)[0], member, head)
        return True

    def _take_label(self, sample: _Sample, member: Member, kind: str) -> None:
        is_own = kind == (self._keys.label or "cls").lower() and kind != "json"
        if member.size > _MAX_LABEL_BYTES:
            if is_own:
                sample.problems.append(("bad-label", f"{member.name}: a label of {member.size:,} bytes"))
            self._passed[suffix(kind)] += 1
            return
        self._file.seek(member.offset)
        data = self._file.read(member.size)
        label, name, problem = _text_label(data) if is_own else _json_label(data, self._keys.label)
        if label is None and not problem:
            self._passed[suffix(kind)] += 1
            return
        sample.label_members.append(kind)
        if problem:
            sample.problems.append(("bad-label", f"{member.name}: {problem}"))
        elif sample.label not in (None, label):
            sample.problems.append(("bad-label", f"{member.name}: the labels {sample.label} and {label}"))
        else:
            sample.label = label
            if name and isinstance(label, int) and self.result.names.setdefault(label, name) != name:
                text = f"the label {label} is {self.result.names[label]!r} and {name!r}"
                sample.problems.append(("label-map", text))

    def _pass_over(self, key: str, kind: str, what: str, name: str) -> None:
        """Count a member that is not a file: a problem if it has an image's name."""
        if self._is_image(kind):
            sample = self._samples.setdefault(key, _Sample())
            sample.problems.append(("not-a-file", f"{name} is a {what}"))
        else:
            self._passed[what] += 1

    def finish(self) -> Scan:
        """Return the content of the shard."""
        self._follow_links()
        self._decide_labels()
        for key, sample in self._samples.items():
            self._finish_sample(key, sample)
        self.result.found.sort(key=lambda one: one.offset)
        self.result.passed_over = dict(self._passed)
        return self.result

    def _follow_links(self) -> None:
        for link in self._links:
            key, kind = split_name(link.name)
            target = self._files.get(_target(link))
            if not self._is_image(kind):
                self._passed[link.type] += 1
            elif target is None:
                sample = self._samples.setdefault(key, _Sample())
                sample.problems.append(("link", f"{link.name}: a link to {link.target}, which is not an image here"))
            else:
                self._take_image(key, Member(link.name, target.offset, target.size))

    def _decide_labels(self) -> None:
        """Number the labels that are names. Beside indices, names are labels that can't be used."""
        labelled = [sample for sample in self._samples.values() if sample.label is not None]
        texts = sorted({sample.label for sample in labelled if isinstance(sample.label, str)})
        if any(isinstance(sample.label, int) for sample in labelled):
            for sample in labelled:
                if isinstance(sample.label, str):
                    text = f"not a class index, as other labels are: {sample.label[:20]!r}"
                    sample.problems.append(("bad-label", text))
            return
        self.result.texts = texts
        number_of = {text: i for i, text in enumerate(texts)}
        for sample in labelled:
            sample.label = number_of[str(sample.label)]

    def _finish_sample(self, key: str, sample: _Sample) -> None:
        result = self.result
        if sample.image is None and not any(kind in ("too-large", "link", "not-a-file") for kind, _ in sample.problems):
            self._choose_image(sample)
        self._passed.update(suffix(split_name(member.name)[1]) for member in (*sample.unnamed, *sample.dotted))
        if sample.image is not None:
            bad = [i for i, (kind, _) in enumerate(sample.problems) if kind == "bad-label"]
            # Two labels that can't be used are still one sample.
            result.problems += [(key, *one) for i, one in enumerate(sample.problems) if i not in bad[1:]]
            label = sample.label if isinstance(sample.label, int) else -1
            result.found.append(Found(sample.image.offset, sample.image.size, label, key))
            result.label_files += len(sample.label_members)
            return
        own = [problem for problem in sample.problems if problem[0] != "bad-label"]
        without = all(kind == "label-map" for kind, _ in own)
        if without and sample.label_members:
            # The first label stands for the sample that has no image.
            own.append(("no-image", "a label without an image"))
            del sample.label_members[0]
        result.problems += [(key, *problem) for problem in own]
        self._passed.update(suffix(kind) for kind in sample.label_members)

    def _choose_image(self, sample: _Sample) -> None:
        """Take the only member that is an image by its bytes, or record why the sample has none."""
        if len(sample.unnamed) == 1 and not sample.dotted:
            sample.image = sample.unnamed.pop()
        elif sample.dotted:
            first, more = sample.dotted.pop(0), len(sample.dotted)
            also = f" (and {more:,} more)" if more else ""
            kind = split_name(first.name)[1]
            text = f"{first.name}{also}: the name has several dots; one is expected, between key and kind"
            sample.problems.append(("several-dots", f"{text}, or choose the image with --image-key {kind}"))
        elif sample.unnamed:
            names = [member.name for member in sample.unnamed]
            kind = split_name(names[0])[1]
            text = f"{names[0]} and {names[1]} are both images: choose one with --image-key {kind}"
            sample.unnamed.pop(0)
            sample.problems.append(("several-images", text))


def suffix(kind: str) -> str:
    """Return the word under which members of a kind are counted."""
    return f".{kind}" if kind else "no suffix"


def _plain(name: str) -> str:
    """Return a member's path without "./" and ".."; links name their targets in either form."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def _target(link: Member) -> str:
    """Return the path in the tar that a link leads to. A hard link names it from the top of the tar."""
    folder = "" if link.type == HARD_LINK else link.name.rpartition("/")[0]
    return _plain(f"{folder}/{link.target}")


def _text_label(data: bytes) -> tuple[int | str | None, str, str]:
    """Parse the member that holds a label: the label, "", and a problem in words."""
    try:
        text = data.decode().strip()
    except UnicodeDecodeError:
        return None, "", f"not text: {data[:20]!r}"
    return _label_of(text, data[:20])


def _json_label(data: bytes, label_key: str | None) -> tuple[int | str | None, str, str]:
    """Parse a json member: its label or None, the label's name or "", and a problem in words."""
    try:
        fields: Any = json.loads(data)
    except (ValueError, RecursionError):
        return None, "", ""  # metadata that is not JSON is not a label
    if not isinstance(fields, dict):
        return None, "", ""
    names = (label_key,) if label_key is not None else _JSON_KEYS
    value = next((fields[key] for key in names if fields.get(key) is not None), None)
    if value is None:
        return None, "", ""
    name = next((fields[key] for key in _JSON_NAMES if isinstance(fields.get(key), str)), "")
    label, _, problem = _label_of(value, str(value)[:20])
    return label, name, problem


def _label_of(value: Any, shown: object) -> tuple[int | str | None, str, str]:
    problem = f"not a class index: {shown!r}"
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            is_name = 0 < len(value) <= _MAX_NAME and value.isprintable()
            return (value, "", "") if is_name else (None, "", f"neither a class index nor a name: {shown!r}")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        return None, "", problem
    return value, "", ""
