"""Checks of untrusted HDF5 files, made before any value is used.

An HDF5 file may point to other files (soft and external links, external storage, virtual datasets), name filters that
load code, or declare terabytes in a kilobyte. Our files need none of this, so each is refused. Whatever a file
contains, the functions here raise no other error than UserError.
"""

import contextlib
import errno
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from titokctl.errors import UserError, fault_in_words
from titokctl.formats.file_kind import described, head_of, hint_for
from titokctl.formats.hdf5_guard import check_can_be_opened

# Deflate compresses to about 1/1,032 at best; a higher ratio means that the declared size is wrong.
_MAX_RATIO = 1100
_SMALL_BYTES = 1 << 20
_MAX_CHUNK_BYTES = 64 << 20
_MAX_TEXT_BYTES = 64 << 20
_FAULTS = (errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOLCK, errno.EACCES)
_MAX_NAMES = 100  # in a group; our files have fewer, and thousands of them cost minutes
_MAKES = "`titokctl tokenize IMAGES -o tokens.h5` makes a token cache"
_CUT = re.compile(r"truncated file: eof = (\d+),.* stored_eof = (\d+)")
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """Open `path`, which should be a token cache, for reading. Raises UserError in place of all errors of h5py."""
    if not path.exists():
        raise UserError(f"file not found: {path}", f"check the path; {_MAKES}")
    if not path.is_file():
        raise UserError(f"{path} is not a file, so it is not a token cache", _MAKES)
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty, not a token cache", _MAKES)
    try:
        check_can_be_opened(path)
        # A finished file is never changed, so no lock is needed, which some network file systems refuse.
        with h5py.File(path, "r", locking=False) as file:
            if file.userblock_size:
                raise UserError(f"{path} has a user block, which is refused")
            yield file
    except UserError as error:
        raise UserError(error.message, error.hint or f"use a file that was written completely; {_MAKES}") from error
    except PermissionError as error:
        raise UserError(f"no permission to read {path}", "make it readable: chmod +r") from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        fault = fault_in_words(error, path)
        if fault is not None and (getattr(error, "errno", None) in _FAULTS or "errno = " in reason):
            raise fault from error  # a failing disk is not damage to the file
        if "signature not found" in reason:
            head = head_of(path)
            raise UserError(
                f"{path} is not an HDF5 file, so it is not a token cache, but {described(head)}",
                hint_for(head, path, _MAKES),
            ) from error
        if cut := _CUT.search(reason):
            reason = f"truncated: it has {int(cut[1]):,} of {int(cut[2]):,} bytes"
        raise UserError(
            f"{path} is damaged or unfinished ({reason})", f"download or make it again; {_MAKES}"
        ) from error


def names_of(group: h5py.Group) -> list[str]:
    """Return the names in `group`, sorted. Raises UserError for a soft or external link."""
    if len(group) > _MAX_NAMES:
        raise UserError(f"{group.name} of {group.file.filename} holds {len(group):,} names, more than {_MAX_NAMES}")
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            kind = "an external link" if isinstance(link, h5py.ExternalLink) else "a soft link"
            raise UserError(f"{_where(group, name)} is {kind}, which is refused")
    return sorted(group)


def subgroup(group: h5py.Group, name: str) -> h5py.Group | None:
    """Return the group `name` in `group`, or None when it doesn't exist."""
    if name not in names_of(group):
        return None
    found = group[name]
    if not isinstance(found, h5py.Group):
        raise UserError(f"{_where(group, name)} is not a group")
    return found


def dataset(group: h5py.Group, name: str) -> h5py.Dataset:
    """Return the dataset `name` in `group`. Raises UserError when it is missing, or its storage or size is refused."""
    if name not in names_of(group):
        raise UserError(f"{_where(group, name)} is missing")
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise UserError(f"{_where(group, name)} is not a dataset")
    _check_storage(found, _where(group, name))
    return found


def attribute(owner: h5py.Group | h5py.Dataset, name: str, kind: type[int] | type[str]) -> int | str:
    """Return the scalar attribute `name` of `owner`. Raises UserError when it is missing or has another type."""
    where = f"attribute {name} of {owner.file.filename}{'' if owner.name == '/' else owner.name}"
    if name not in owner.attrs:
        raise UserError(f"{where} is missing")
    found = owner.attrs.get_id(name)
    wanted = found.dtype.kind in ("OS" if kind is str else "biu")
    if found.shape != () or not wanted:
        raise UserError(f"{where} is not a single {'string' if kind is str else 'integer'}")
    value = owner.attrs[name]
    try:
        return kind(value.decode() if isinstance(value, bytes) else value)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8") from error


def attributes(owner: h5py.Group, names: Collection[str]) -> dict[str, Any]:
    """Return those attributes `names` that `owner` has, as plain Python values whose types are yet to be checked."""
    found: dict[str, Any] = {}
    for name in names:
        if name in owner.attrs:
            value = owner.attrs[name]
            if isinstance(value, np.ndarray | np.generic):
                value = value.tolist()
            try:
                found[name] = value.decode() if isinstance(value, bytes) else value
            except UnicodeDecodeError as error:
                raise UserError(f"attribute {name} of {owner.file.filename} is not UTF-8") from error
    return found


def text(group: h5py.Group, name: str) -> str:
    """Return a text that is stored as a dataset of UTF-8 bytes. Raises UserError when it is anything else."""
    found = dataset(group, name)
    if found.dtype != np.dtype("u1") or len(found.shape) != 1 or len(found) > _MAX_TEXT_BYTES:
        raise UserError(f"{_where(group, name)} is {found.dtype.str} {found.shape}, expected bytes of text")
    try:
        return found[:].tobytes().decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{_where(group, name)} is not UTF-8") from error


def rows(path: Path, found: h5py.Dataset) -> np.ndarray:
    """Return all of a checked dataset: memory-mapped if contiguous, otherwise read into memory.

    The map is copy-on-write: pages are shared, the file never changes, and torch accepts the array without a warning.
    """
    if found.id.get_offset() is not None and found.size:
        return np.memmap(path, dtype=found.dtype, mode="c", offset=found.id.get_offset(), shape=found.shape)
    return np.asarray(found[...])


def _check_storage(found: h5py.Dataset, where: str) -> None:
    settings = found.id.get_create_plist()
    if settings.get_layout() == h5py.h5d.VIRTUAL:
        raise UserError(f"{where} is a virtual dataset, which is refused")
    if settings.get_external_count():
        raise UserError(f"{where} stores its data in another file, which is refused")
    if found.dtype.hasobject:
        raise UserError(f"{where} has a type of variable length, which is refused")
    if found.shape is None:
        raise UserError(f"{where} has no shape")
    filters = {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}
    if filters - _FILTERS:
        raise UserError(f"{where} uses filter {min(filters - _FILTERS)}; only gzip, shuffle and fletcher32 are allowed")
    _check_size(found, where)


def _check_size(found: h5py.Dataset, where: str) -> None:
    declared = int(np.prod([int(n) for n in found.shape], dtype=object)) * found.dtype.itemsize
    stored, file_size = found.id.get_storage_size(), Path(found.file.filename).stat().st_size
    layout = found.id.get_create_plist().get_layout()
    if layout == h5py.h5d.CONTIGUOUS:
        offset = found.id.get_offset()
        fits = declared == 0 or (offset is not None and offset + declared <= file_size)
    elif layout == h5py.h5d.COMPACT:
        fits = declared == stored
    else:
        fits = stored <= file_size and declared <= _MAX_RATIO * stored + _SMALL_BYTES
        fits = fits and int(np.prod(found.chunks, dtype=object)) * found.dtype.itemsize <= _MAX_CHUNK_BYTES
    if not fits:
        raise UserError(f"{where} declares {declared:,} bytes, out of proportion to the file's {file_size:,}")


def _where(group: h5py.Group, name: str) -> str:
    return f"{group.name.rstrip('/')}/{name} of {group.file.filename}"
