"""Parquet files on a server: the same images as those of copies here, read by ranges, and nothing mixed in silence."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
import tiny
from command_line import PATIENCE_S
from image_files import encoded, noise
from shard_server import Server
from test_parquet import CLASSES, picture, write

from titokctl.cli.app import run
from titokctl.data.sources import open_source
from titokctl.errors import UsageError, UserError
from titokctl.formats.token_cache import TokenCache

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def server():
    found = Server()
    yield found
    found.close()


@pytest.fixture
def files(server, tmp_path):
    """Two files on the server, and their copies here."""
    paths = [write(tmp_path / f"train-{i}.parquet", range(10 * i, 10 * i + 10)) for i in range(2)]
    server.files |= {path.name: path.read_bytes() for path in paths}
    return paths


def addresses(server, files):
    return [f"{server.url}/{path.name}" for path in files]


def all_samples(source):
    return [(sample.key, sample.label, sample.data) for sample in source.read_many(range(len(source)))]


def test_images_labels_and_keys_are_those_of_copies_here(server, files):
    there, here = open_source(addresses(server, files)), open_source(files)
    assert there.class_names == CLASSES
    assert all_samples(there) == all_samples(here)
    assert there.labels().tolist() == here.labels().tolist()
    assert [(u.index, u.first, u.count) for u in there.units] == [(u.index, u.first, u.count) for u in here.units]
    assert there.description["listing"] == here.description["listing"]
    assert there.description["paths"] == addresses(server, files)


def test_opening_reads_no_image_and_a_row_reads_its_group_alone(server, tmp_path):
    rows = [{"bytes": os.urandom(1 << 16), "path": f"{i}.png"} for i in range(40)]
    table = pa.table({"image": pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))})
    data = io.BytesIO()
    pq.write_table(table, data, row_group_size=4)
    server.files["a.parquet"] = data.getvalue()
    source = open_source([f"{server.url}/a.parquet"])
    assert sum(size(wanted, len(data.getvalue())) for _, wanted in server.asked if wanted) < 1 << 17
    before = len(server.asked)
    assert source.sample(17).data == rows[17]["bytes"]
    fetched = sum(size(wanted, len(data.getvalue())) for _, wanted in server.asked[before:])
    assert 4 << 16 <= fetched < 5 << 16


def size(wanted: str, whole: int) -> int:
    first, _, last = wanted.removeprefix("bytes=").partition("-")
    return (int(last) + 1 if last else whole) - int(first)


def test_patterns_name_files_and_queries_are_used_and_not_kept(server, files):
    source = open_source([f"{server.url}/train-{{0..1}}.parquet?signature=secret"])
    assert len(source) == 20
    assert set(server.queries) == {"signature=secret"}
    assert "secret" not in str(source.description)
    assert source.sample(0).data == picture(0)


def test_faults_of_the_connection_are_survived(server, files):
    server.refused["train-0.parquet"] = 1
    server.broken["train-0.parquet"] = [700, 3, 20]
    assert all_samples(open_source(addresses(server, files))) == all_samples(open_source(files))


def other(path: Path) -> bytes:
    """The bytes of a file with the same rows and other pictures of the same sizes."""
    table = pq.read_table(path)
    cells = [dict(cell, bytes=bytes(reversed(cell["bytes"]))) for cell in table.column("image").to_pylist()]
    out = io.BytesIO()
    index = table.schema.get_field_index("image")
    changed = table.set_column(index, "image", pa.array(cells, table.schema.field("image").type))
    pq.write_table(changed, out, row_group_size=4)
    return out.getvalue()


def test_a_file_that_changes_while_it_is_read_is_named(server, files):
    source = open_source(addresses(server, files))
    source.sample(0)
    server.files["train-0.parquet"] = other(files[0])
    with pytest.raises(UserError, match=r"train-0\.parquet changed while it was read"):
        source.sample(9)
    assert source.sample(15).data == picture(15)


def html(data: bytes) -> bytes:
    return b"<!DOCTYPE html><title>Sign in</title>"


BAD = {
    "missing": (lambda s: s.files.clear(), "not found: "),
    "a login page": (lambda s: s.files.update({"train-0.parquet": html(b"")}), "an HTML page"),
    "another kind": (lambda s: s.files.update({"train-0.parquet": encoded(noise(4, 4))}), "it is a PNG"),
    "empty": (lambda s: s.files.update({"train-0.parquet": b""}), "an empty file"),
    "cut": (lambda s: s.files.update({"train-0.parquet": s.files["train-0.parquet"][:-9]}), "can't be read as parquet"),
    "no ranges": (lambda s: setattr(s, "ranges", False), "does not support ranges"),
    "no version": (lambda s: setattr(s, "etags", False), "its version, an ETag or a date"),
    "no size": (lambda s: setattr(s, "lengths", False), "its size"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_by_ranges_is_refused_by_name(server, files, name):
    spoil, message = BAD[name]
    spoil(server)
    with pytest.raises(UserError, match=message) as caught:
        all_samples(open_source(addresses(server, files[:1])))
    assert "train-0.parquet" in caught.value.message
    assert caught.value.hint


def test_mixtures_are_refused(server, files):
    with pytest.raises(UserError, match="is not a parquet file"):
        open_source([f"{server.url}/train-0.parquet", f"{server.url}/000.tar"])
    with pytest.raises(UsageError, match="can't be mixed"):
        open_source([f"{server.url}/train-0.parquet", files[1]])
    for name in ("a.arrow", "a.zip"):
        with pytest.raises(UserError, match="can't be read from a server"):
            open_source([f"{server.url}/{name}"])


def test_from_the_server_to_a_cache_that_is_verified(server, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.tokenizer(tmp_path / "tok.safetensors")

    def call(*words, code=0):
        assert run([*map(str, words), "--json"]) == code, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    words = ["--tokenizer", "tok.safetensors", "--device", "cpu"]
    here = call("tokenize", *files, "-o", "here.h5", *words)
    there = call("tokenize", *addresses(server, files), "-o", "there.h5", *words)
    counts = ("rows", "rejected", "passed_over")
    assert [there[name] for name in counts] == [here[name] for name in counts]
    assert there["rows"] == 20
    one, other = (TokenCache.open(tmp_path / name) for name in ("here.h5", "there.h5"))
    assert (one.ids == other.ids).all()
    assert list(one.keys) == list(other.keys)
    (tmp_path / "copies").mkdir()
    for path in files:
        shutil.copy(path, tmp_path / "copies")
    for source in ("recorded", "copies"):
        call("verify", "there.h5", "--source", source, "--sample", 3, "--tokenizer", "tok.safetensors")
    data = server.files["train-1.parquet"]
    server.files["train-1.parquet"] = data.replace(b"parquet-cpp", b"parquet-app")
    assert server.files["train-1.parquet"] != data
    changed = call("verify", "there.h5", "--source", "recorded", code=1)
    assert "other versions of the files" in str(changed)


def test_a_new_version_between_two_runs_is_read_anew_and_the_rest_kept(server, files, tmp_path, capsys):
    tiny.tokenizer(tmp_path / "tok.safetensors")
    words = ["tokenize", *addresses(server, files), "-o", f"{tmp_path / 'parts'}/"]
    words += ["--tokenizer", str(tmp_path / "tok.safetensors"), "--device", "cpu", "--json"]
    assert run([*words, "--part", "0/2"]) == 0
    server.files["train-1.parquet"] = server.files["train-1.parquet"].replace(b"parquet-cpp", b"parquet-app")
    capsys.readouterr()
    assert run([*words, "--part", "1/2"]) == 0
    assert json.loads(capsys.readouterr().out)["finished"]


HUB = """
from titokctl.data.sources import open_source
from titokctl.errors import UserError
root = "hf://datasets/owner/pictures/"
for name in ("data/test-00000-of-00001.parquet", "", "data/"):
    source = open_source([root + name])
    print(len(source), len(source.sample(2).data))
try:
    open_source([root + "data/no.parquet"])
except UserError as error:
    print(error.message, error.hint)
"""


def test_a_data_set_of_the_hub_by_file_and_by_folder(python, tmp_path):
    pytest.importorskip("huggingface_hub")
    write(tmp_path / "datasets/owner/pictures/data/train-00000-of-00001.parquet", range(5))
    write(tmp_path / "datasets/owner/pictures/data/test-00000-of-00001.parquet", range(3))
    with hub_server.serve(tmp_path) as (address, _):  # the Hub's library reads its address once
        where = os.environ | hub_server.online(address) | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run([python, "-c", HUB], env=where, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    *found, refused = done.stdout.splitlines()
    assert found == [f"{count} {len(picture(2))}" for count in (3, 5, 5)]
    assert "not found: hf://datasets/owner/pictures/data/no.parquet" in refused
