"""A sample set: images drawn by a generator, their ids, and a record of how they were made.

Specification: a folder with
    manifest.json   format "titokctl/sample-set", format_version 1, num_images, image_size, images (the name of the
                    file or folder that holds them, ids.h5 when none were kept), image_format, settings, and more about
                    how they were made; written last, so a folder without it holds no finished set
    images.npz, images/ or shards/
                    the images, in a form of `image_output`
    ids.h5          a token cache (`token_cache`) with the ids and labels of the same images, in the same order
    grid.png        up to 64 images, which `shown_positions` names, a row for each class where classes repeat
Results that are computed from the images may lie beside them: evaluation-<network>.json, evaluation-<network>.npz,
reproduction.json. The folder may hold other files, which are never deleted.
While a set is being written, `.unfinished/` (`unfinished`) holds settings.json, the images so far and their chunks
(`image_output`), and arrays that are computed from the images on the way (`*.raw`). The finished set is put together in
`.unfinished/assembled/`, which becomes `.unfinished/finished/` by a rename. From then on the set is complete: whoever
resumes it moves the set that it replaces to `.unfinished/replaced/`, the manifest last, and the new files into the
folder, the manifest last. `.unfinished/` is deleted when the command has finished. `.lock` locks the whole folder.
A run folder whose samples lie elsewhere holds location.json instead: {"folder": absolute path}.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from titokctl.errors import UserError
from titokctl.formats.atomic import check_version, disk_errors, flush_entry, make_folder, read_json, write_json
from titokctl.formats.evaluation import REPRODUCTION
from titokctl.formats.folder_lock import contents_of
from titokctl.formats.image_output import (
    FILE_TYPES,
    PRODUCTS,
    STAGED,
    ChunkWriter,
    OutputSpec,
    Piece,
    index_name,
    open_output,
)
from titokctl.formats.npz_stream import NpzArray
from titokctl.formats.picture import save_class_grid
from titokctl.formats.replacing import check_only_listed, delete_listed, listing_of
from titokctl.formats.run_folder import LOCATION
from titokctl.formats.token_cache import CacheHeader
from titokctl.formats.token_cache_writer import TokenCacheWriter
from titokctl.formats.unfinished import SETTINGS, Unfinished, check_made_with

FORMAT = "titokctl/sample-set"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
IDS = "ids.h5"
GRID = "grid.png"
UNFINISHED = ".unfinished"
SHOWN = "shown"
_NUM_SHOWN, _CLASSES_SHOWN = 64, 8
_ASSEMBLED, _FINISHED, _REPLACED = "assembled", "finished", "replaced"
_NOT_CONTENT = {"run.json", LOCATION}
_RESULTS = ("evaluation-*.json", "evaluation-*.npz", REPRODUCTION)

State = Literal["empty", "unfinished", "finished", "foreign"]


@dataclass(frozen=True)
class SampleSet:
    """A finished sample set."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, path: Path | str) -> "SampleSet":
        """Read a sample set, given its folder or the run folder that points to it.

        Raises UserError when there is none, or an unfinished one, or one of a newer format.
        """
        folder = _followed(Path(path))
        if not (folder / MANIFEST).is_file():
            hint = "run the `titokctl sample` command that made it again" if state_of(folder) == "unfinished" else ""
            raise UserError(f"{folder} is not a finished sample set", hint)
        manifest = read_json(folder / MANIFEST)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise UserError(f"{folder / MANIFEST} is not the manifest of a sample set")
        check_version(manifest.get("format_version", 0), FORMAT_VERSION, folder, "sample set")
        if manifest.get("images") not in (*PRODUCTS.values(), IDS):
            raise UserError(
                f"{folder / MANIFEST} names images of an unknown kind: {manifest.get('images')!r}",
                f"known: {', '.join(dict.fromkeys((*PRODUCTS.values(), IDS)))}",
            )
        return cls(folder, manifest)

    @property
    def images(self) -> Path:
        """The .npz, the folder of image files or of shards, or the ids where no images were kept."""
        return self.folder / self.manifest["images"]

    @property
    def ids(self) -> Path:
        """The token cache with the ids of the images."""
        return self.folder / IDS


def shown_positions(labels: np.ndarray) -> np.ndarray:
    """Return the positions of the images that grid.png shows, (m,) int64, sorted, m at most 64.

    They are the first images of each class, as many of each as fit; of more than 32 classes, 8 are shown that are
    spread over all. Without labels, and where most classes have a single image, they are the first images of the set.

    Args:
        labels: (n,) integers, -1 for none.
    """
    classes = np.unique(labels)
    if len(labels) <= _NUM_SHOWN or classes[0] < 0 or 2 * len(classes) > len(labels):
        return np.arange(min(len(labels), _NUM_SHOWN))
    if 2 * len(classes) > _NUM_SHOWN:
        classes = classes[np.linspace(0, len(classes) - 1, _CLASSES_SHOWN).astype(np.int64)]
    each = _NUM_SHOWN // len(classes)
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in classes]))


class SampleSetWriter(ChunkWriter):
    """Writes a sample set, or resumes an unfinished one; one process or several do it.

        with SampleSetWriter(folder, settings, spec) as writer:
            writer.begin()                          # in one process, before the others open theirs
            writer.open()                           # in each
            if first not in writer.done:
                writer.add(first, count, rows)      # in any order, in pieces that are the same in every run
            writer.commit()
            writer.finish(header, manifest)         # in one process, after the others have committed theirs
        unfinished(folder).remove()                 # when all is done that needs the arrays

    Rows that are added have `images` unless the format is "none", an array "shown" (n, H, W, 3) uint8 of the same
    images where one of them is among the `shown_positions`, and an array for each name in `widths`.

    Args:
        folder: of the set; locked by the caller.
        settings: JSON values; everything that decides about the images.
        spec: the images and the form in which they are kept.
        widths: further float32 arrays (N, width) that are kept until the set is finished.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], spec: OutputSpec, widths: Mapping[str, int] | None = None
    ) -> None:
        self.folder, self.settings, self.spec = folder, settings, spec
        self._unfinished, self._widths = unfinished(folder), dict(widths or {})
        self._shown = shown_positions(spec.labels)
        super().__init__(self._unfinished.folder, None)

    def begin(self, overwrite: bool = False) -> None:
        """Begin the set, or find out which images an earlier run finished.

        Raises UserError when the unfinished set in the folder was begun with other settings, unless `overwrite`.
        """
        self._unfinished.begin(self.settings, overwrite)
        with disk_errors(self.folder):
            self._take_back()
        self.read_chunks()
        if self.done and not self._has_images():  # a killed writer of an older version
            self._unfinished.clear()
            self._unfinished.begin(self.settings)
            self.done.clear()

    def open(self) -> None:
        """Open the files that the rows go to, after `begin` in this process or another."""
        n, edge = len(self.spec.labels), self.spec.image_size
        with disk_errors(self.folder):
            if not (self.work / _FINISHED).is_dir():
                self.output = open_output(self.work, self.spec)
            self.arrays = {SHOWN: self._array(SHOWN, (len(self._shown), edge, edge, 3), np.uint8)}
            for name, width in self._widths.items():
                self.arrays[name] = self._array(name, (n, width), np.float32)

    def place(self, name: str, first: int, values: np.ndarray) -> tuple[int, np.ndarray]:
        """As of ChunkWriter; of "shown" only the images that grid.png shows are kept."""
        if name != SHOWN:
            return first, values
        start, end = np.searchsorted(self._shown, (first, first + len(values)))
        return int(start), values[self._shown[start:end] - first]

    def finish(self, header: CacheHeader, manifest: dict[str, Any]) -> SampleSet:
        """Put the set together once every image was committed.

        Args:
            header: of ids.h5.
            manifest: JSON values to keep beside those that the format asks for.

        Raises ValueError when images are missing.
        """
        form, n = self.spec.image_format, len(self.spec.labels)
        pieces = self.in_order(n)
        own = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "num_images": n,
            "image_size": self.spec.image_size,
            "images": PRODUCTS.get(form, IDS),
            "image_format": form,
            "settings": self.settings,
        }
        with disk_errors(self.folder):
            if not (self.work / _FINISHED).is_dir():
                self._assemble(header, own | manifest, pieces)
            if (self.work / _FINISHED / MANIFEST).is_file():
                _publish(self.work, self.folder)
        return SampleSet.open(self.folder)

    def _assemble(self, header: CacheHeader, manifest: dict[str, Any], pieces: list[Piece]) -> None:
        """Put the complete set together in the folder of the unfinished one."""
        if self.output is not None:
            self.output.finish([(piece.count, piece.crc) for piece in pieces])
        shown = self.arrays[SHOWN].read(0, len(self._shown))
        save_class_grid(self.work / GRID, shown, self.spec.labels[self._shown], self.spec.class_names)
        self._write_ids(header, [piece.ids for piece in pieces])
        assembled = self.work / _ASSEMBLED
        assembled.mkdir(exist_ok=True)
        for name in (PRODUCTS.get(self.spec.image_format), IDS, GRID):
            if name is not None:
                os.replace(self.work / name, assembled / name)
        write_json(assembled / MANIFEST, manifest)
        os.replace(assembled, self.work / _FINISHED)
        flush_entry(self.work)

    def _take_back(self) -> None:
        """Move back the files of a set that was being put together when its writer was killed."""
        assembled = self.work / _ASSEMBLED
        if assembled.is_dir():
            for path in assembled.iterdir():
                os.replace(path, self.work / path.name)
            assembled.rmdir()
        name = PRODUCTS.get(self.spec.image_format, "")
        # Older versions moved the images before they wrote the manifest.
        is_moved = not any(path.exists() for path in (self.work / _FINISHED, self.folder / MANIFEST, self.work / name))
        if name and is_moved and (self.folder / name).exists():
            os.replace(self.folder / name, self.work / name)

    def _has_images(self) -> bool:
        form = self.spec.image_format
        places = (self.work / PRODUCTS.get(form, IDS), self.work / STAGED, self.work / _FINISHED)
        return form == "none" or any(path.exists() for path in places)

    def _array(self, name: str, shape: tuple[int, ...], dtype: type) -> NpzArray:
        return NpzArray(self.work / f"{name}.raw", shape, dtype)

    def _write_ids(self, header: CacheHeader, ids: list[np.ndarray]) -> None:
        n, first = len(self.spec.labels), 0
        key_bytes = n * len(index_name(0, n))
        with TokenCacheWriter(self.work / IDS, header, num_rows=n, key_bytes=key_bytes) as cache:
            for block in ids:
                last = first + len(block)
                cache.append(block, self.spec.labels[first:last], [index_name(i, n) for i in range(first, last)])
                first = last


def unfinished(folder: Path) -> Unfinished:
    """Return the unfinished set in `folder`, whose lock is that of the folder."""
    return Unfinished(folder, folder / UNFINISHED, lock=folder)


def state_of(folder: Path) -> State:
    """Return the state of a folder: it holds a finished set, an unfinished one, nothing, or something else ("foreign").

    A finished set that is being replaced is unfinished to its writers; `SampleSet.open` still reads it.
    """
    if (folder / UNFINISHED / SETTINGS).is_file():
        return "unfinished"
    if (folder / MANIFEST).is_file():
        return "finished"
    if not folder.exists():
        return "empty"
    if not folder.is_dir():
        return "foreign"
    return "foreign" if contents_of(folder) - _NOT_CONTENT - {UNFINISHED} else "empty"


def check_fits(folder: Path, settings: dict[str, Any], overwrite: bool = False) -> State:
    """Return the state of the folder in which a set with `settings` is to be written.

    If `overwrite`, a finished set, and an unfinished one with other settings, count as nothing ("empty").

    Raises UserError when it holds something else, or a finished or unfinished set with other settings.
    """
    state = state_of(folder)
    if state == "foreign":
        raise not_a_set(folder)
    if state == "finished" and overwrite:
        return "empty"
    if state == "finished":
        check_made_with(folder, SampleSet.open(folder).manifest["settings"], settings)
    if state == "unfinished" and not unfinished(folder).resumes(settings, overwrite):
        return "empty"
    return state


def not_a_set(folder: Path) -> UserError:
    """Return the error for an output folder that holds something else than a sample set."""
    return UserError(f"{folder} is not empty and is not a sample set", "choose another folder with -o")


def files_of(folder: Path) -> list[str]:
    """Return the names, relative to `folder`, of the files of the finished set in it, the manifest last; [] for none.

    Raises UserError when manifest.json belongs to something else, or when other files lie among the images.
    """
    if not (folder / MANIFEST).is_file():
        return []
    found = SampleSet.open(folder)
    names = [name for name in (IDS, GRID) if (folder / name).is_file()]
    names += sorted(path.name for pattern in _RESULTS for path in folder.glob(pattern))
    for product in dict.fromkeys(PRODUCTS.values()):
        path = folder / product
        if path.is_dir() and not path.is_symlink():
            listed = listing_of(path) or _image_names(found.manifest)
            check_only_listed(path, listed)
            names += [f"{product}/{name}" for name in sorted(listed) if os.path.lexists(path / name)]
        elif path.is_file():
            names.append(product)
    return [*names, MANIFEST]


def _publish(work: Path, folder: Path) -> None:
    """Move the complete set from `work` to `folder`; one that was interrupted is continued."""
    new, replaced = work / _FINISHED, work / _REPLACED
    for name in files_of(folder):
        (replaced / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, replaced / name)
    _remove_empty(folder)
    names = {path.name for path in new.iterdir()}
    for name in (*sorted(names - {MANIFEST}), MANIFEST):
        os.replace(new / name, folder / name)
    flush_entry(folder)


def _remove_empty(folder: Path) -> None:
    """Remove the folders of images that are empty now."""
    for product in dict.fromkeys(PRODUCTS.values()):
        if (folder / product).is_dir():
            delete_listed(folder / product, {})


def _image_names(manifest: dict[str, Any]) -> dict[str, int | None]:
    """Return the names of the image files of a set, whose sizes aren't recorded."""
    count, form = manifest.get("num_images"), manifest.get("image_format")
    if form not in FILE_TYPES or form == "wds" or not isinstance(count, int):
        return {}
    return {f"{index_name(index, count)}.{FILE_TYPES[form]}": None for index in range(count)}


def record_location(run: Path, folder: Path) -> None:
    """Make the run folder `run` point to the set in `folder`."""
    make_folder(run)
    write_json(run / LOCATION, {"folder": str(folder.absolute())})


def _followed(path: Path) -> Path:
    """Return the folder of the set: `path`, or the one that the run folder `path` points to."""
    if not (path / LOCATION).is_file() or (path / MANIFEST).exists():
        return path
    record = read_json(path / LOCATION)
    if not isinstance(record, dict) or not isinstance(record.get("folder"), str):
        raise UserError(f"{path / LOCATION} does not name a folder")
    return Path(record["folder"])
