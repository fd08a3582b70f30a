"""Rows, rejected images, and what was passed over are everything in a source of any kind, and are added up again."""

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import hub_server
import pytest
import tiny
from caches import with_header
from command_line import PATIENCE_S
from image_files import encoded, noise
from shard_server import Server
from tar_files import tar_bytes, write_tar

from titokctl.context import Context
from titokctl.data.sources import open_source
from titokctl.formats.token_cache import TokenCache
from titokctl.jobs.caches.verify import Verify
from titokctl.jobs.tokenize.request import Tokenize

PNG, BMP = encoded(noise(32, 32)), encoded(noise(32, 32), "BMP")
BROKEN = PNG[:60]
# A source: what is named, and the number of everything in it.
Made = tuple[list[Path | str], int]


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def files_below(root: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(root))


def class_folders(folder: Path, server: Server) -> Made:
    for name, data in {
        "cat/0.png": PNG, "cat/1.bmp": BMP, "cat/odd": PNG, "cat/bad.png": BROKEN, "cat/empty.webp": b"",
        "dog/0.png": PNG, "dog/notes.txt": b"x", "dog/.DS_Store": b"x", "dog/.thumbs/0.png": PNG, "dog/a.npy": b"x",
    }.items():  # fmt: skip
        put(folder / name, data)
    (folder / "dog/gone.png").symlink_to("nowhere.png")
    return [folder], files_below(folder)


def listed_folder(folder: Path, server: Server) -> Made:
    for name, data in {"0.png": PNG, "1.png": BROKEN, "2.PNG": PNG, "about.md": b"x", "metadata.csv": b"x"}.items():
        put(folder / name, data)
    rows = [{"file_name": name, "label": label} for name, label in (("0.png", "a"), ("2.PNG", "b"))]
    put(folder / "metadata.jsonl", "\n".join(map(json.dumps, rows)).encode())
    return [folder], files_below(folder)


def named_files(folder: Path, server: Server) -> Made:
    for name in ("album/0.png", "album/deep/1.png", "own.png"):
        put(folder / name, PNG)
    put(folder / "album/bad.jpg", BROKEN)
    put(folder / "album/notes.txt", b"x")
    return [folder / "album", folder / "own.png"], files_below(folder)


def shard_members(number: int) -> list[tuple[str, bytes]]:
    found = {
        "a.png": PNG, "a.cls": b"0", "a.txt": b"a caption", "b.png": BROKEN, "b.cls": b"1", "c.json": b"{}",
        "d.bmp": BMP, "d.json": b'{"label": 1}', ".e.png": PNG, "f.png": PNG, "f.cls": b"-7", "README": b"x",
    }  # fmt: skip
    return [(f"{name[0]}{number}{name[1:]}", data) for name, data in found.items()]


def shards(folder: Path, server: Server) -> Made:
    for number in range(2):
        write_tar(folder / f"{number}.tar", shard_members(number))
    put(folder / "sizes.json", b"{}")  # counts of the shards
    for name in ("notes.txt", ".hidden", "more.json", "below/notes.txt"):
        put(folder / name, b"x")
    return [folder], 2 * len(shard_members(0)) + 4


def shards_in_two_folders(folder: Path, server: Server) -> Made:
    for number in range(2):
        write_tar(folder / f"{number}" / "0.tar", shard_members(number))
        put(folder / f"{number}" / "notes.txt", b"x")
    return [folder / "0", folder / "1"], 2 * len(shard_members(0)) + 2


def class_tars(folder: Path, server: Server) -> Made:
    inner = {
        "cat.tar": tar_bytes([("1.png", PNG), ("2.txt", b"x"), (".5", b"x"), ("3", PNG)]),
        "dog.tar": tar_bytes([("1.png", PNG), ("2.png", BROKEN)]),
    }
    return [write_tar(folder / "all.tar", [*inner.items(), ("LICENSE", b"x")])], 7


def table(rows: int, batches: int = 1) -> object:
    pa = pytest.importorskip("pyarrow")
    cells = [{"bytes": (PNG, BMP, None, BROKEN)[i % 4], "path": f"{i}.png"} for i in range(rows)]
    image = pa.array(cells, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    return pa.table({"image": image, "label": pa.array([i % 2 for i in range(rows)], pa.int64())})


def parquet_bytes(rows: int) -> bytes:
    pytest.importorskip("pyarrow.parquet").write_table(table(rows), out := io.BytesIO(), row_group_size=3)
    return out.getvalue()


def parquet(folder: Path, server: Server) -> Made:
    for name, rows in (("train-0", 6), ("train-1", 5), ("test-0", 4)):
        put(folder / "data" / f"{name}.parquet", parquet_bytes(rows))
    for name in ("README.md", ".gitattributes", "data/notes.txt", "more/picture.txt"):
        put(folder / name, b"x")
    return [folder], 11 + 1 + 4


def arrow(folder: Path, server: Server) -> Made:
    pa = pytest.importorskip("pyarrow")
    for name in ("data-00000-of-00001.arrow", "cache-1.arrow"):
        with io.BytesIO() as out:
            with pa.ipc.new_stream(out, table(1).schema) as stream:
                stream.write_table(table(7))
            put(folder / name, out.getvalue())
    put(folder / "state.json", b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    put(folder / "dataset_info.json", b"{}")
    return [folder], 7 + 1


def archive(folder: Path, server: Server) -> Made:
    folder.mkdir(parents=True)
    members = {
        "00000/img0.png": PNG, "00000/img1.png": BROKEN, "00000/img2.bmp": BMP, "odd": PNG, "notes.txt": b"x",
        "__MACOSX/._a.png": b"x", "dataset.json": b'{"labels": [["00000/img0.png", 1]]}',
    }  # fmt: skip
    with zipfile.ZipFile(folder / "a.zip", "w") as out:
        out.mkdir("00000")
        for name, data in members.items():
            out.writestr(name, data)
    return [folder / "a.zip"], len(members)


def remote_shards(folder: Path, server: Server) -> Made:
    folder.mkdir(parents=True)
    server.files = {f"{number}.tar": tar_bytes(shard_members(number)) for number in range(2)}
    return [f"{server.url}/{{0..1}}.tar"], 2 * len(shard_members(0))


def remote_parquet(folder: Path, server: Server) -> Made:
    folder.mkdir(parents=True)
    server.files = {f"{number}.parquet": parquet_bytes(6 - number) for number in range(2)}
    return [f"{server.url}/{{0..1}}.parquet"], 11


EVERY = (
    class_folders, listed_folder, named_files, shards, shards_in_two_folders, class_tars, parquet, arrow, archive,
    remote_shards, remote_parquet,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tokenizer") / "tok.safetensors"
    tiny.tokenizer(path, layers=1)
    return str(path)


@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
def test_everything_is_a_row_or_rejected_or_counted_and_verify_adds_it_up_again(
    make: Callable[[Path, Server], Made], tmp_path: Path, server: Server, tokenizer: str
) -> None:
    paths, found = make(tmp_path / "in", server)
    cache, context = tmp_path / "t.h5", Context(tmp_path / "runs")
    done = Tokenize(paths, cache, tokenizer, views=(), max_rejected=0.9).run(context)
    assert done.rows >= 2
    assert done.rejected >= 1
    assert done.rows + done.rejected + sum(done.passed_over.values()) + done.label_files == found
    recorded = TokenCache.open(cache).header.source
    assert (recorded["passed_over"], recorded["label_files"]) == (done.passed_over, done.label_files)
    verify = Verify(cache, source="recorded")
    assert verify.run(context).problems == []
    with_header(cache, num_rejected=done.rejected - 1)
    assert len(verify.run(context).problems) == 1
    with_header(cache, num_rejected=done.rejected, source=recorded | {"passed_over": {".txt": 9}})
    assert len(verify.run(context).problems) == (make is not remote_shards)  # those are known when they are read


@pytest.mark.parametrize("make", [shards, parquet, arrow], ids=lambda make: make.__name__)
def test_what_appears_beside_shards_and_tables_is_noticed(
    make: Callable[[Path, Server], Made], tmp_path: Path, server: Server, tokenizer: str
) -> None:
    """The recorded paths are those of the files that were read, and a further one would go unnoticed."""
    paths, _ = make(tmp_path / "in", server)
    cache, context = tmp_path / "t.h5", Context(tmp_path / "runs")
    Tokenize(paths, cache, tokenizer, views=(), max_rejected=0.9).run(context)
    write_tar(tmp_path / "in" / "9.tar", [("z.png", PNG)])
    (problem,) = Verify(cache, source="recorded").run(context).problems
    assert "1 .tar" in problem
    assert str(tmp_path / "in") in TokenCache.open(cache).header.source["folders"]


def test_files_that_are_named_are_all_there_is(tmp_path: Path, server: Server) -> None:
    shards(tmp_path / "in", server)
    here = open_source([tmp_path / "in" / "0.tar", tmp_path / "in" / "1.tar"])
    assert "folders" not in here.description
    assert sum(here.passed_over.values()) + 4 == sum(open_source([tmp_path / "in"]).passed_over.values())


def test_links_to_shards_are_read_and_not_counted_beside_them(tmp_path: Path, server: Server) -> None:
    shards(tmp_path / "elsewhere", server)
    (tmp_path / "in").mkdir()
    for number in range(2):
        (tmp_path / "in" / f"{number}.tar").symlink_to(tmp_path / "elsewhere" / f"{number}.tar")
    assert open_source([tmp_path / "in"]).description["beside"] == {}


HUB = """
import json
from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.pipeline import decode_units
from titokctl.data.sources import open_source, reopen_source
source = open_source(["hf://datasets/owner/pictures/"])
units = list(decode_units(source, source.units, PreprocessingConfig(size=4)))
again = reopen_source(source.description)
print(json.dumps([sum(len(u.keys) for u in units), sum(len(u.rejected) for u in units), again.passed_over]))
"""


@pytest.mark.slow
def test_a_data_set_on_the_hub(python: str, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    for name, rows in (("train-00000", 6), ("test-00000", 3)):
        put(tmp_path / f"datasets/owner/pictures/data/{name}.parquet", parquet_bytes(rows))
    put(tmp_path / "datasets/owner/pictures/README.md", b"x")
    put(tmp_path / "datasets/owner/pictures/.gitattributes", b"x")
    with hub_server.serve(tmp_path) as (address, _):
        where = os.environ | hub_server.online(address) | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([python, "-c", HUB], env=where, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [4, 2, {".md": 1, ".parquet": 1, "hidden": 1}]
