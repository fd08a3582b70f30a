"""Writing a sample set (`sample_set` has its specification), by one process or by several.

with SampleSetWriter(folder, settings, labels, (), image_size=256, image_format="npz") as writer:
    writer.begin()                          # in one process, before the others open theirs
    if first not in writer.done:
        writer.add(first, count, rows)      # in any order, in pieces that are the same in every run
    writer.commit()
    writer.finish(header, manifest)         # in one process, after the others have committed theirs
"""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from titokctl.formats.atomic import disk_errors, write_json
from titokctl.formats.chunk_writer import ChunkWriter
from titokctl.formats.image_output import PRODUCTS, Encode, ImageFormat, index_name, open_output, take_back
from titokctl.formats.npz_stream import NpzArray
from titokctl.formats.picture import grid, save_png
from titokctl.formats.sample_set import FORMAT, FORMAT_VERSION, GRID, IDS, MANIFEST, SETTINGS, UNFINISHED, SampleSet
from titokctl.formats.token_cache import CacheHeader
from titokctl.formats.token_cache_writer import TokenCacheWriter

NUM_SHOWN = 64
SHOWN = "shown"


class SampleSetWriter(ChunkWriter):
    """Writes a sample set, or goes on with an unfinished one.

    Rows that are added have `images` unless the format is "none", an array "shown" (n, H, W, 3) uint8 of the same
    images for as long as one of them is among the first 64, and an array for each name in `widths`.

    Args:
        folder: of the set; locked by the caller. It must be empty or hold an unfinished set with equal settings.
        settings: JSON values; everything that decides about the images.
        labels: (N,) integers, -1 for none.
        class_names: of the labels; () when unknown.
        image_size: edge of an image in pixels.
        encode: (H, W, 3) uint8 to the bytes of an image file, where the format has files.
        widths: further float32 arrays (N, width) that are kept until the set is finished.
    """

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any],
        labels: np.ndarray,
        class_names: Sequence[str],
        *,
        image_size: int,
        image_format: ImageFormat,
        encode: Encode | None = None,
        widths: Mapping[str, int] | None = None,
    ) -> None:
        self.folder, self.settings, self.labels = folder, settings, labels
        self.image_size, self.image_format = image_size, image_format
        self._class_names, self._encode, self._widths = class_names, encode, dict(widths or {})
        super().__init__(folder / UNFINISHED, None)

    def begin(self) -> None:
        """Make the folder of the unfinished set, or take note of what is done in it."""
        with disk_errors(self.folder):
            self.work.mkdir(parents=True, exist_ok=True)
            write_json(self.work / SETTINGS, self.settings)
            take_back(self.image_format, self.folder, self.work)
        self.read_chunks()

    def open(self) -> None:
        """Open what takes the rows, after `begin` in this process or another."""
        n, edge = len(self.labels), self.image_size
        with disk_errors(self.folder):
            self.output = open_output(self.image_format, self.work, edge, self.labels, self._class_names, self._encode)
            self.arrays = {SHOWN: self._array(SHOWN, (min(n, NUM_SHOWN), edge, edge, 3), np.uint8)}
            for name, width in self._widths.items():
                self.arrays[name] = self._array(name, (n, width), np.float32)

    def finish(self, header: CacheHeader, manifest: dict[str, Any]) -> SampleSet:
        """Put the set together once every image was committed.

        Args:
            header: of ids.h5.
            manifest: JSON values to keep beside those that the format asks for.

        Raises ValueError when images are missing.
        """
        pieces = self.in_order(len(self.labels))
        own = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "num_images": len(self.labels),
            "image_size": self.image_size,
            "images": PRODUCTS.get(self.image_format, IDS),
            "image_format": self.image_format,
            "settings": self.settings,
        }
        written = own | manifest
        with disk_errors(self.folder):
            if self.output is not None:
                self.output.finish([(piece.count, piece.crc) for piece in pieces])
            shown = self.arrays[SHOWN].read(0, self.arrays[SHOWN].shape[0])
            save_png(self.work / GRID, grid(shown, columns=math.isqrt(len(shown) - 1) + 1))
            self._write_ids(header, [piece.ids for piece in pieces])
            for name in (PRODUCTS.get(self.image_format), IDS, GRID):
                if name is not None:
                    os.replace(self.work / name, self.folder / name)
            write_json(self.folder / MANIFEST, written)
            shutil.rmtree(self.work)
        return SampleSet(self.folder, written)

    def _array(self, name: str, shape: tuple[int, ...], dtype: type) -> NpzArray:
        return NpzArray(self.work / f"{name}.raw", shape, dtype)

    def _write_ids(self, header: CacheHeader, ids: list[np.ndarray]) -> None:
        n, first = len(self.labels), 0
        key_bytes = len(index_name(0, n))
        with TokenCacheWriter(self.work / IDS, header, num_rows=n, key_bytes=key_bytes) as cache:
            for block in ids:
                last = first + len(block)
                cache.append(block, self.labels[first:last], [index_name(i, n) for i in range(first, last)])
                first = last
