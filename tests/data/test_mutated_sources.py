"""Damaged sources of every kind are read or refused in words; a damaged index of a shard is made anew.

The mutations follow from their seeds alone, so a failure names the seed that repeats it.
"""

import io
import json
import random
import zipfile
from pathlib import Path

import pytest
from image_files import encoded, noise
from tar_files import tar_bytes

from titokctl.data.sources import open_source
from titokctl.errors import UserError
from titokctl.formats.shard_index import FOLDER

PNG = encoded(noise(6, 6))
COUNTS = pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.slow)])


def mutated(data: bytes, seed: int) -> bytes:
    draws, out = random.Random(seed), bytearray(data)
    for _ in range(draws.choice((1, 1, 2, 8))):
        at, kind = draws.randrange(len(out)), draws.random()
        if kind < 0.5:
            out[at] = draws.randrange(256)
        elif kind < 0.7:
            out[at] ^= 1 << draws.randrange(8)
        elif kind < 0.85:
            del out[at + 1 :]
        else:
            out[at:at] = draws.randbytes(draws.randrange(1, 9))
    return bytes(out)


def tar() -> bytes:
    label = b'{"label": 1, "class_name": "cat"}'
    return tar_bytes(m for i in range(4) for m in ((f"{i}.png", PNG), (f"{i}.cls", b"1"), (f"{i}.json", label)))


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as written:
        for i in range(4):
            written.writestr(f"{i}.png", PNG)
        written.writestr("dataset.json", json.dumps({"labels": [[f"{i}.png", i] for i in range(4)]}))
    return out.getvalue()


def table(suffix: str) -> bytes:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns, out = (
        {"image": pa.array([{"bytes": PNG, "path": "a.png"}] * 4), "label": pa.array([0, 1, 0, 1])},
        io.BytesIO(),
    )
    if suffix == "parquet":
        pq.write_table(pa.table(columns), out)
        return out.getvalue()
    with pa.ipc.new_stream(out, pa.table(columns).schema) as stream:
        stream.write_table(pa.table(columns))
    return out.getvalue()


KINDS = {
    "a.tar": tar,
    "a.zip": archive,
    "a.parquet": lambda: table("parquet"),
    "a.arrow": lambda: table("arrow"),
    "folder/metadata.jsonl": lambda: b"\n".join(b'{"file_name": "%d.png", "label": "a"}' % i for i in range(4)),
    "folder/dataset.json": lambda: b'{"labels": [["0.png", 1]]}',
}


@COUNTS
@pytest.mark.parametrize("name", KINDS)
def test_damaged_sources_are_read_or_refused(tmp_path: Path, name: str, count: int) -> None:
    path, whole = tmp_path / name, KINDS[name]()
    for i in range(4):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / f"{i}.png").write_bytes(PNG)
    refused = 0
    for seed in range(count):
        path.write_bytes(mutated(whole, seed))
        try:
            source = open_source([path.parent if path.parent.name == "folder" else path], keep_index=False)
            for unit in source.units:
                source.read_unit(unit)
        except UserError:
            refused += 1
    assert refused > count // 4


@COUNTS
def test_a_damaged_index_gives_the_same_images(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar())
    expected = open_source([path]).by_position().read_many(range(4))
    index = tmp_path / FOLDER / "a.tar.npz"
    whole = index.read_bytes()
    for seed in range(count):
        index.write_bytes(mutated(whole, seed))
        assert open_source([path], keep_index=False).by_position().read_many(range(4)) == expected, f"seed {seed}"
