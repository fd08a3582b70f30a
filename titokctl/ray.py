"""Steps for Ray Data pipelines: images to ids, ids to a token cache, and back to a data set. Needs the extra `ray`.

ray.data.DataContext.get_current().execution_options.preserve_order = True
header = titokctl.ray.header_for("titok-l-32", settings)
images = ray.data.read_parquet("images/")  # columns bytes, key, label
rows = images.map_batches(
    titokctl.ray.Tokenize,
    fn_constructor_args=("titok-l-32", settings),
    batch_format="pyarrow",
    batch_size=1024,
    num_gpus=1,
)
rows.write_datasink(titokctl.ray.TokenSink("tokens/", header))
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from titokctl.data.sources.source import Sample, SeekableSource, Unit
from titokctl.distributed.ray_cluster import check_installed
from titokctl.formats.object_store import path_of
from titokctl.formats.token_cache import PLAIN, TokenCache
from titokctl.jobs.tokenize.encode import TileEncoder, UnitSettings, tokenize_unit
from titokctl.weights.load import load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from titokctl.jobs.tokenize.sink import PartsSink as TokenSink
    from titokctl.jobs.tokenize.sink import header_for

__all__ = ["TokenSink", "Tokenize", "header_for", "read_tokens"]


def __getattr__(name: str) -> Any:
    """Load what needs Ray itself on first use. Raises UserError, which says what to install, where Ray is missing."""
    if name not in ("TokenSink", "header_for"):
        raise AttributeError(f"module 'titokctl.ray' has no attribute {name!r}")
    check_installed()
    from titokctl.jobs.tokenize import sink

    return getattr(sink, name)


class Tokenize:
    """A class for `ray.data.Dataset.map_batches`: batches of image files in, batches of rows out.

    Batches are Arrow tables (`batch_format="pyarrow"`). In: `bytes` (binary), and if there are such columns `key`
    (string) and `label` (integer, null or -1 for none). Out: `key`, `label` (int32), `tokens` (a fixed-size list of K
    uint16 or uint32), a column like it for each further view, and `rejected`: null, or why an image has no row; its
    lists are then null.

    Args:
        tokenizer: as for `load_tokenizer`; every machine must be able to load it.
        settings: of the rows; those of `titokctl tokenize` by default.
        fetch: allow a download.
    """

    def __init__(self, tokenizer: str, settings: UnitSettings | None = None, fetch: bool = True) -> None:
        self._settings = settings or UnitSettings()
        self._encoder = TileEncoder(load_tokenizer(tokenizer, "cpu", fetch=fetch), self._settings)

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        """Return the rows of a batch, in its order."""
        import numpy as np
        import pyarrow as pa

        count, columns = batch.num_rows, set(batch.column_names)
        labels = [-1] * count
        if "label" in columns:
            labels = [-1 if one is None else int(one) for one in batch.column("label").to_pylist()]
        # Positions name the rows: keys may be missing or repeat.
        files = batch.column("bytes").to_pylist()
        source = _Batch(
            class_names=[],
            description={},
            units=[Unit(0, 0, count, "a batch")],
            samples=[Sample(str(i), labels[i], files[i] or b"") for i in range(count)],
        )
        part = tokenize_unit(source, source.units[0], self._encoder, self._settings)
        made = np.array([int(key) for key in part.keys.tolist()], np.int64)
        reasons: list[str | None] = [None] * count
        for one in part.rejected:
            reasons[int(one["key"])] = f"{one['kind']}: {one['reason']}"
        out = {"key": batch.column("key") if "key" in columns else pa.nulls(count, pa.string())}
        out["label"] = pa.array(labels, pa.int32())
        for name, rows in {"tokens": part.ids, **part.views}.items():
            whole = np.zeros((count, *rows.shape[1:]), rows.dtype)
            whole[made] = rows
            out[name] = _lists(whole, np.isin(np.arange(count), made, invert=True))
        return pa.table(out | {"rejected": pa.array(reasons, pa.string())})


def read_tokens(path: Path | str, view: str = PLAIN) -> Any:
    """Return a token cache as a `ray.data.Dataset` of `row`, `key`, `label` and `tokens`; workers read it in blocks.

    Args:
        path: a file, a folder of parts, or its address in an object store; every machine must see it.
        view: the view to read.

    Raises UserError when it is not a token cache, or has no such view.
    """
    check_installed()
    import ray.data

    cache = TokenCache.open_whole(path)
    cache.view(view)
    where = str(cache.path.absolute())
    return ray.data.range(len(cache)).map_batches(
        functools.partial(_rows_of, where, view), batch_format="numpy", batch_size=16_384
    )


@dataclass
class _Batch(SeekableSource):
    """The images of one batch."""

    samples: list[Sample] = field(default_factory=list)

    def read_many(self, positions: "Sequence[int] | np.ndarray") -> list[Sample]:
        return [self.samples[i] for i in positions]

    def labels(self) -> "np.ndarray":
        import numpy as np

        return np.array([one.label for one in self.samples], np.int32)

    def keys(self) -> list[str]:
        return [one.key for one in self.samples]

    def sizes(self) -> "np.ndarray":
        import numpy as np

        return np.array([len(one.data) for one in self.samples], np.int64)


def _rows_of(path: str, view: str, batch: dict[str, Any]) -> "pa.Table":
    import pyarrow as pa

    cache, rows = _opened(path), batch["id"]
    keys = pa.array([cache.key(int(row)) for row in rows], pa.string())
    labels = pa.array(cache.labels[rows], pa.int32())
    return pa.table({"row": pa.array(rows), "key": keys, "label": labels, "tokens": _lists(cache.view(view)[rows])})


@functools.lru_cache(maxsize=1)
def _opened(path: str) -> TokenCache:
    return TokenCache.open(path_of(path), check_ids=False)


def _lists(rows: "np.ndarray", missing: "np.ndarray | None" = None) -> "pa.FixedSizeListArray":
    import pyarrow as pa

    width = int(rows[0].size) if len(rows) else 1
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), width, mask=mask)
