"""A tar of class tars, the form in which ImageNet is distributed (ILSVRC2012_img_train.tar), read without unpacking it.

Every member `<class>.tar` holds the images of one class. A label is the position of the class name in sorted order,
which for ImageNet's synset names is the order that every model uses.
"""

from collections import Counter
from pathlib import Path
from typing import BinaryIO

from titokctl.formats.file_kind import HEAD_BYTES, IMAGE_SUFFIXES, image_kind
from titokctl.formats.shard_scan import HIDDEN, MAX_IMAGE_BYTES, Found, Scan, suffix
from titokctl.formats.tar_headers import FILE, BrokenTar, Member, entries, members

_SUFFIX = ".tar"


def is_class_tars(path: Path) -> bool:
    """Return True if the first member of a tar is itself a tar."""
    try:
        with path.open("rb") as file:
            return starts_with_tar(file, path.stat().st_size)
    except OSError:
        return False


def starts_with_tar(file: BinaryIO, length: int) -> bool:
    """Return True if the first member of the tar in `file` is itself a tar."""
    try:
        first = next(members(file, length), None)
    except BrokenTar:
        return False
    return first is not None and first.name.endswith(_SUFFIX)


def scan_class_tars(file: BinaryIO, length: int) -> Scan:
    """List the images of all class tars in `file`, `length` bytes long, in the order of the file.

    Of a file that is cut short, the complete class tars count. Raises BrokenTar if it, or a tar in it, is not a tar.
    """
    result = Scan()
    classes: list[Member] = []
    passed: Counter[str] = Counter()
    try:
        for member in entries(file, length):
            if member.type == FILE and member.name.endswith(_SUFFIX):
                classes.append(member)
            else:
                passed[_word(member)] += 1
    except BrokenTar as error:
        if not error.cut or length == 0:
            raise
        result.cut = str(error)
    names = [_class_name(member) for member in classes]
    for name, times in Counter(names).items():
        if times > 1:
            raise BrokenTar(f"it holds the class {name} twice", cut=False)
    result.names = dict(enumerate(sorted(names)))
    label_of = {name: label for label, name in result.names.items()}
    for member, name in zip(classes, names, strict=True):
        _scan_class(file, member, (name, label_of[name]), result, passed)
    result.passed_over = dict(passed)
    return result


def _class_name(member: Member) -> str:
    return member.name.rpartition("/")[2].removesuffix(_SUFFIX)


def _word(member: Member) -> str:
    """Return the word under which a member that is not an image is counted."""
    if member.type != FILE:
        return member.type
    base = member.name.rpartition("/")[2]
    stem, dot, kind = base.rpartition(".")
    return HIDDEN if base.startswith(".") else suffix(kind.lower() if dot and stem else "")


def _scan_class(file: BinaryIO, outer: Member, named: tuple[str, int], result: Scan, passed: Counter[str]) -> None:
    """Add the images of one class tar; `named` are the name and the label of the class."""
    name, label = named
    taken: set[str] = set()
    try:
        for member in entries(file, outer.offset + outer.size, outer.offset):
            base = member.name.rpartition("/")[2]
            stem, _, kind = base.rpartition(".")
            key = f"{name}/{stem or base}"
            if base.startswith(".") or member.type != FILE:
                passed[_word(member)] += 1
            elif kind.lower() not in IMAGE_SUFFIXES and not _is_image(file, member):
                passed[suffix(kind.lower() if stem else "")] += 1
            elif key in taken:
                result.problems.append((key, "duplicate", f"{outer.name}: it holds {member.name} twice"))
            elif member.size > MAX_IMAGE_BYTES:
                result.problems.append((key, "too-large", f"{member.name}: {member.size:,} bytes"))
            else:
                taken.add(key)
                result.found.append(Found(member.offset, member.size, label, key))
    except BrokenTar as error:
        if not error.cut:
            raise BrokenTar(f"{outer.name}: {error}", cut=False) from error
        result.cut = result.cut or f"{outer.name}: {error}"


def _is_image(file: BinaryIO, member: Member) -> bool:
    file.seek(member.offset)
    return image_kind(file.read(min(HEAD_BYTES, member.size))) is not None
