"""Arrow files, as `Dataset.save_to_disk` of the Hub's library writes them, with the interface of a parquet file.

A folder that was saved holds state.json, which lists its files in order. Files are memory-mapped; only the images that
are asked for are read. Needs pyarrow, from the `parquet` extra.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from titokctl.errors import UserError
from titokctl.formats.local_file import read_file

SUFFIX = ".arrow"
_STATE = "state.json"
ABOUT = (_STATE, "dataset_info.json")
_MAX_STATE_BYTES = 16 << 20


def saved_files(folder: Path) -> list[Path]:
    """Return the arrow files of a saved data set in their order; [] if the folder is none.

    Raises UserError if the list of its files is damaged.
    """
    path = folder / _STATE
    if not path.is_file():
        return []
    try:
        entries = json.loads(read_file(path, _MAX_STATE_BYTES))["_data_files"]
        names = [entry["filename"] for entry in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} does not list the files of a saved data set", "save it again") from error
    if not all(isinstance(name, str) and name.endswith(SUFFIX) and "/" not in name for name in names):
        raise UserError(f"{path} lists files that are not beside it", "save the data set again")
    return [folder / name for name in names]


@dataclass(frozen=True)
class _Group:
    num_rows: int
    total_byte_size: int


class ArrowFile:
    """One arrow file; a context manager. Its record batches are its row groups."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._map = pa.memory_map(str(path))
        try:
            self._batches = list(pa.ipc.open_stream(self._map))
        except pa.ArrowInvalid:
            self._map.seek(0)
            file = pa.ipc.open_file(self._map)
            self._batches = [file.get_batch(i) for i in range(file.num_record_batches)]
        for batch in self._batches:
            batch.validate(full=True)  # Arrow itself trusts offsets, and would read outside of the file
        if not self._batches:
            raise UserError("it has no rows", "name a data set with rows")
        self.schema_arrow = self._batches[0].schema

    def __enter__(self) -> "ArrowFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._batches = []
        self._map.close()

    @property
    def metadata(self) -> "ArrowFile":
        """The numbers of rows and groups, as `ParquetFile.metadata` has them."""
        return self

    @property
    def num_rows(self) -> int:
        """Number of rows in all groups."""
        return sum(batch.num_rows for batch in self._batches)

    @property
    def num_row_groups(self) -> int:
        """Number of record batches."""
        return len(self._batches)

    def row_group(self, number: int) -> _Group:
        """Return the size of one record batch."""
        batch = self._batches[number]
        return _Group(batch.num_rows, batch.nbytes)

    def read(self, columns: Sequence[str], use_threads: bool = False) -> Any:
        """Return a table of all rows with these columns; "image.path" is a column that holds only that field.

        No threads are used in any case.
        """
        return self._table(self._batches, columns)

    def read_row_group(self, number: int, columns: Sequence[str], use_threads: bool = False) -> Any:
        """Return a table of the rows of one record batch with these columns."""
        return self._table(self._batches[number : number + 1], columns)

    def _table(self, batches: Sequence[Any], columns: Sequence[str]) -> Any:
        import pyarrow as pa

        table, found = pa.Table.from_batches(batches, self.schema_arrow), {}
        for name in columns:
            whole, _, part = name.partition(".")
            column = table.column(name if name in table.column_names else whole)
            if name not in table.column_names:
                arrays = [pa.StructArray.from_arrays([chunk.field(part)], [part]) for chunk in column.chunks]
                column = pa.chunked_array(arrays)
            found[name if name in table.column_names else whole] = column
        return pa.table(found)
