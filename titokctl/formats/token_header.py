"""What a token cache says about itself, read from a file's attributes (`token_cache` has the specification)."""

import json
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np

from titokctl.errors import UserError
from titokctl.formats import hdf5_checks
from titokctl.formats.atomic import check_version

FORMAT = "titokctl/token-cache"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class CacheHeader:
    """What a token cache says about itself.

    Args:
        tokenizer: the tokenizer's configuration, plain JSON values.
        encoder_sha256: what decides the ids (64 hex digits).
        weights_sha256: the whole tokenizer (64 hex digits).
        codebook_size: V; 0 for a Gaussian tokenizer.
        num_latent_tokens: K.
        image_size: edge of the square crop in pixels.
        preprocessing: how an image became that crop, plain JSON values.
        source: where the images came from, plain JSON values.
        views: name of each further view -> its own preprocessing.
        class_names: name of each label from 0 on; () when there are none.
        created_by: program and version.
        made_with: versions, device kind, precision and tile; {} when not recorded.
        num_rejected: images of the source that have no row; None when not recorded.
        token_size: C of a Gaussian tokenizer, whose rows are latents; 0 for ids.
        terms: under which the images stand, and so the ids, in words for people; "" when nothing was said.
    """

    tokenizer: dict[str, Any]
    encoder_sha256: str
    weights_sha256: str
    codebook_size: int
    num_latent_tokens: int
    image_size: int
    preprocessing: dict[str, Any]
    source: dict[str, Any]
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    created_by: str = ""
    made_with: dict[str, Any] = field(default_factory=dict)
    num_rejected: int | None = None
    token_size: int = 0
    terms: str = ""

    @property
    def main(self) -> str:
        """The dataset of the plain crops: "tokens" or "latents"."""
        return "latents" if self.token_size else "tokens"

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one row: (K,) ids or (K, C) latents."""
        return (self.num_latent_tokens, self.token_size) if self.token_size else (self.num_latent_tokens,)

    @property
    def row_dtype(self) -> np.dtype:
        """The type of a row on disk: ids take two bytes as long as they suffice."""
        return np.dtype("<f2") if self.token_size else id_dtype(self.codebook_size)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in all views together."""
        return (1 + len(self.views)) * int(np.prod(self.row_shape)) * self.row_dtype.itemsize


def id_dtype(codebook_size: int) -> np.dtype:
    """Little-endian uint16 for V up to 65,536, else uint32."""
    return np.dtype("<u2" if codebook_size <= 1 << 16 else "<u4")


def read_header(file: h5py.File) -> CacheHeader:
    """The header of an open token cache. Raises UserError when it is another file, unfinished, newer, or damaged."""
    path = file.filename
    if file.attrs.get("format") is None:
        raise UserError(f"{path} is an HDF5 file, but not a token cache")
    found = hdf5_checks.attribute(file, "format", str)
    if found != FORMAT:
        raise UserError(f"{path} holds {found!r}, not a token cache")
    check_version(hdf5_checks.attribute(file, "format_version", int), FORMAT_VERSION, path, "token cache")
    if "complete" not in file.attrs or not hdf5_checks.attribute(file, "complete", int):
        raise UserError(f"{path} was never finished", "make it again with `titokctl tokenize`")
    hdf5_checks.names_of(file)
    views = hdf5_checks.subgroup(file, "views")
    names = [] if views is None else hdf5_checks.names_of(views)
    token_size = _positive(file, "token_size") if "latents" in file else 0
    return CacheHeader(
        tokenizer=_json_attribute(file, "tokenizer"),
        encoder_sha256=str(hdf5_checks.attribute(file, "encoder_sha256", str)),
        weights_sha256=str(hdf5_checks.attribute(file, "weights_sha256", str)),
        codebook_size=0 if token_size else _positive(file, "codebook_size"),
        num_latent_tokens=_positive(file, "num_latent_tokens"),
        image_size=_positive(file, "image_size"),
        preprocessing=_json_attribute(file, "preprocessing"),
        source=_json_attribute(file, "source"),
        views={name: _json_attribute(hdf5_checks.dataset(views, name), "preprocessing") for name in names},
        class_names=_class_names(file),
        created_by=str(hdf5_checks.attribute(file, "created_by", str)),
        made_with=_json_attribute(file, "made_with") if "made_with" in file.attrs else {},
        num_rejected=int(hdf5_checks.attribute(file, "num_rejected", int)) if "num_rejected" in file.attrs else None,
        token_size=token_size,
        terms=str(hdf5_checks.attribute(file, "terms", str)) if "terms" in file.attrs else "",
    )


def _positive(file: h5py.File, name: str) -> int:
    value = int(hdf5_checks.attribute(file, name, int))
    if value < 1:
        raise UserError(f"attribute {name} of {file.filename} is {value}, expected at least 1")
    return value


def _json_attribute(owner: h5py.Group | h5py.Dataset, name: str) -> dict[str, Any]:
    text = str(hdf5_checks.attribute(owner, name, str))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"attribute {name} of {owner.file.filename} is not JSON") from error
    if not isinstance(value, dict):
        raise UserError(f"attribute {name} of {owner.file.filename} is not a JSON object")
    return value


def text_dataset(group: h5py.Group, name: str, num_rows: int | None) -> h5py.Dataset:
    """The checked dataset `name` of fixed-length text, of `num_rows` rows if given. Raises UserError otherwise."""
    found = hdf5_checks.dataset(group, name)
    if found.dtype.kind != "S" or len(found.shape) != 1 or num_rows not in (None, found.shape[0]):
        rows = "n" if num_rows is None else num_rows
        got = f"{found.dtype.str} {found.shape}"
        raise UserError(f"/{name} of {group.file.filename} is {got}, expected fixed-length text ({rows},)")
    return found


def _class_names(file: h5py.File) -> tuple[str, ...]:
    if "class_names" not in file:
        return ()
    try:
        return tuple(name.decode() for name in text_dataset(file, "class_names", None)[...])
    except UnicodeDecodeError as error:
        raise UserError(f"/class_names of {file.filename} is not UTF-8") from error
