"""The end of a Ray Data pipeline that makes a token cache: write tasks write parts, the driver completes the folder."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from titokctl.context import Context
from titokctl.distributed.ray_cluster import Connection
from titokctl.errors import UserError
from titokctl.formats.object_store import path_of
from titokctl.formats.replacing import exists_already
from titokctl.formats.token_folder import finish_folder
from titokctl.formats.token_header import CacheHeader
from titokctl.formats.token_keys import Keys
from titokctl.formats.token_parts import PartsFolder, TokenPart, summaries
from titokctl.formats.token_store import parts_at
from titokctl.formats.token_tally import Tally
from titokctl.jobs.tokenize.encode import UnitSettings, header_of, settings_here
from titokctl.jobs.tokenize.output import check_output, check_rejected
from titokctl.readable import counted
from titokctl.weights.load import load_tokenizer

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_PART = 4096
_ORDER_HINT = (
    "set ray.data.DataContext.get_current().execution_options.preserve_order = True before the data set is made, or "
    "pass any_order=True"
)


class PartsSink:
    """Writes a data set as a token cache in parts: `rows.write_datasink(titokctl.ray.TokenSink("tokens/", header))`.

    `TokenSink` is this class and a `ray.data.Datasink`.

    Rows have the columns of `titokctl.ray.Tokenize`: `key`, `tokens`, a column for each further view of the header,
    and if there are such columns `label` and `rejected`. A row that was rejected is listed with its reason, and has no
    ids. The cache's rows are in the order of the data set. Ray keeps that order only with `preserve_order`; without it
    a write task refuses, unless `any_order`.

    Args:
        path: of the folder, or its address in an object store; every machine must see it. A folder that an earlier run
            with the same header began is written again.
        header: of the cache, as `header_for` returns it.
        max_rejected: the largest share of images that may be unusable; None for that of `titokctl tokenize`.
        rows_per_part: the least number of rows of a part, but for the last one.
        any_order: accept the order in which Ray happens to finish its work, which changes from run to run.

    Raises UserError when the output exists already.
    """

    def __init__(
        self,
        path: Path | str,
        header: CacheHeader,
        *,
        max_rejected: float | None = None,
        rows_per_part: int = ROWS_PER_PART,
        any_order: bool = False,
    ) -> None:
        self._path, self._header, self._max_rejected = path_of(path), header, max_rejected
        self._rows, self._any_order = rows_per_part, any_order
        self._lock = contextlib.ExitStack()
        check_output(self._folder, overwrite=False)
        if self._folder.is_complete():
            raise exists_already(self._path)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the lock, which the driver holds."""
        return self.__dict__ | {"_lock": contextlib.ExitStack()}

    @property
    def _folder(self) -> PartsFolder:
        return parts_at(self._path, keep=True)

    @property
    def min_rows_per_write(self) -> int:
        """The least number of rows that Ray gives to a write task, but for the last one."""
        return self._rows

    def on_write_start(self, schema: Any = None) -> None:
        """Lock and begin the folder. Raises UserError when it was begun with another header."""
        self._lock.enter_context(self._folder.locked())
        self._folder.begin(self._header, 0)

    def write(self, blocks: Iterable[Any], ctx: Any) -> tuple[int, int]:
        """Write one part, and return its number and its rows; a write task of Ray."""
        import pyarrow as pa
        from ray.data import DataContext
        from ray.data.block import BlockAccessor

        if not self._any_order and not DataContext.get_current().execution_options.preserve_order:
            raise UserError("the order of the rows would be that in which Ray finishes its work", _ORDER_HINT)
        tables = [BlockAccessor.for_block(block).to_arrow() for block in blocks]
        part = part_of(pa.concat_tables(tables), self._header, int(ctx.task_idx))
        self._folder.write(part)
        return part.unit, len(part)

    def on_write_complete(self, write_result: Any) -> None:
        """Complete the folder. Raises UserError when too many images were rejected, or parts are missing."""
        folder, progress = self._folder, Context().progress
        with self._lock:
            units = sorted(unit for unit, _ in write_result.write_returns)
            if units != list(range(len(units))) or not units:
                raise UserError(
                    f"{len(units):,} parts were written, but they are not numbered 0 to {len(units) - 1:,}",
                    "run the pipeline again",
                )
            for left in folder.finished() - set(units):  # of an earlier run, whose data set was divided in another way
                folder.discard(left)
            tally = Tally()
            for summary in summaries(folder, len(units)):
                tally.add(summary)
            try:
                check_rejected(folder, len(units), (), tally, self._max_rejected, progress)
            except UserError as error:
                hint = "run the pipeline again with a larger max_rejected of TokenSink"
                raise UserError(error.message, hint) from error
            finish_folder(folder, self._header, len(units), tally.rejected, lambda rows: None)

    def on_write_failed(self, error: Exception) -> None:
        """Release the folder, in which the finished parts stay until the pipeline runs again."""
        self._lock.close()


def __getattr__(name: str) -> Any:
    """Make `TokenSink` on first use: its base is Ray's, and this module can be imported without Ray."""
    if name != "TokenSink":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ray.data.datasource import Datasink

    made = type(name, (PartsSink, Datasink), {"__doc__": PartsSink.__doc__, "__module__": __name__})
    return globals().setdefault(name, made)


def header_for(
    tokenizer: str,
    settings: UnitSettings | None = None,
    *,
    class_names: Sequence[str] = (),
    source: dict[str, Any] | None = None,
    terms: str = "",
    fetch: bool = True,
) -> CacheHeader:
    """Return the header of the cache of a pipeline.

    With a GPU in `settings.device`, a task on a machine with a free GPU says which kernels it has, so call this before
    the pipeline takes all GPUs.

    Args:
        tokenizer, settings, fetch: as for `titokctl.ray.Tokenize`.
        class_names: by label.
        source: the record of the images' origin, JSON values.
        terms: terms of use of the images.
    """
    chosen = settings or UnitSettings()
    kind = "cuda" if chosen.device.startswith("cuda") else "cpu"
    makers = Connection(kind, 1, 1, 1).call(settings_here, chosen.tile, chosen.precision, kind)
    model = load_tokenizer(tokenizer, "cpu", fetch=fetch)
    return header_of(model, chosen, makers, source or {"kind": "pipeline"}, class_names, terms)


def part_of(table: "pa.Table", header: CacheHeader, unit: int) -> TokenPart:
    """Return rows as a part of a cache.

    Args:
        table: the columns of `titokctl.ray.Tokenize`.
        unit: number of the part.

    Raises UserError for rows that don't fit the header.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    count, names = table.num_rows, set(table.column_names)
    missing = {"key", "tokens", *header.views} - names
    if missing:
        raise UserError(f"the rows have no column {min(missing)}", "they need those that titokctl.ray.Tokenize makes")
    keys = _column(table, "key")
    if keys.null_count:
        raise UserError(f"{counted(keys.null_count, 'rows')} without a key", "give every image a key that names it")
    reasons = _column(table, "rejected") if "rejected" in names else pa.nulls(count, pa.string())
    good = pc.is_null(reasons)
    labels = pc.fill_null(_column(table, "label").cast(pa.int32()), -1) if "label" in names else pa.array([-1] * count)
    rows = {name: _ids(_column(table, name).filter(good), name, header) for name in ("tokens", *header.views)}
    rejected = []
    for key, text in zip(keys.filter(pc.invert(good)).to_pylist(), reasons.drop_null().to_pylist(), strict=True):
        kind, _, reason = text.partition(": ")
        rejected.append({"key": key, "kind": kind, "reason": reason})
    texts = Keys.of([key.encode() for key in keys.filter(good).to_pylist()])
    return TokenPart(
        unit=unit,
        first=-1,
        count=count,
        name=f"part {unit} of the pipeline",
        ids=rows.pop("tokens"),
        labels=labels.filter(good).to_numpy(zero_copy_only=False).astype("<i4"),
        keys=np.array(texts.tolist(), dtype=None if len(texts) else "S1"),
        views=rows,
        rejected=rejected,
    )


def _column(table: "pa.Table", name: str) -> "pa.Array":
    import pyarrow as pa

    column = table.column(name).combine_chunks()
    return column.storage if isinstance(column.type, pa.ExtensionType) else column


def _ids(column: "pa.Array", name: str, header: CacheHeader) -> np.ndarray:
    """Return a column of lists as (n, K) ids or (n, K, C) latents. Raises UserError for others."""
    import pyarrow.compute as pc

    shape, dtype = (len(column), *header.row_shape), header.row_dtype
    found = pc.list_flatten(column).to_numpy(zero_copy_only=False)
    if column.null_count or found.size != np.prod(shape, dtype=np.int64):
        raise UserError(f"the column {name} has rows of other lengths than {header.row_shape}", "check the tokenizer")
    if header.codebook_size and len(found) and not 0 <= found.min() <= found.max() < header.codebook_size:
        raise UserError(
            f"the column {name} holds {found.min()} to {found.max()}, but ids are 0 to {header.codebook_size - 1}",
            "check the tokenizer",
        )
    return np.ascontiguousarray(found.astype(dtype).reshape(shape))
