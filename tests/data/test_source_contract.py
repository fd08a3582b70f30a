"""The contract of `Source` and `SeekableSource`: every kind of source passes the same assertions."""

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, noise
from shard_server import Server
from tar_files import tar_bytes, write_tar

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.pipeline import decode_units
from titokctl.data.sources import KINDS, UNIT_SIZE, Sample, SeekableSource, Source, open_source, reopen_source
from titokctl.errors import UserError

CONFIG = PreprocessingConfig(size=4)
CLASSES = ("cat", "dog")
Made = tuple[list[Path | str], dict[str, Path], list[Sample]]  # paths, options of open_source, expected samples


def picture(i: int) -> bytes:
    return encoded(noise(6, 5 + i, seed=i))


def members(samples: list[Sample]) -> list[tuple[str, bytes]]:
    return [part for s in samples for part in ((f"{s.key}.png", s.data), (f"{s.key}.cls", str(s.label).encode()))]


def labelled(first: int, last: int) -> list[Sample]:
    return [Sample(f"{i:04d}", i % 2, picture(i)) for i in range(first, last)]


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def class_folders(folder: Path, server: Server) -> Made:
    samples = [Sample(f"{name}/{i}", label, picture(i)) for label, name in enumerate(CLASSES) for i in range(3)]
    for sample in samples:
        put(folder / f"{sample.key}.png", sample.data)
    return [folder], {}, samples


def flat_folder(folder: Path, server: Server) -> Made:
    samples = [Sample(f"{i}", -1, picture(i)) for i in range(5)]
    for sample in samples:
        put(folder / f"{sample.key}.png", sample.data)
    return [folder], {}, samples


def named_files(folder: Path, server: Server) -> Made:
    samples = [Sample(f"album/{i}", -1, picture(i)) for i in range(3)] + [Sample("own", -1, picture(3))]
    for sample in samples:
        put(folder / f"{sample.key}.png", sample.data)
    return [folder / "album", folder / "own.png"], {}, samples


def one_shard(folder: Path, server: Server) -> Made:
    samples = labelled(0, 5)
    return [write_tar(folder / "0.tar", members(samples))], {}, samples


def several_shards(folder: Path, server: Server) -> Made:
    samples = labelled(0, 7)
    for name, part in (("0", samples[:3]), ("1", samples[3:4]), ("2", samples[4:])):
        write_tar(folder / f"{name}.tar", members(part))
    return [f"{folder}/{{0..2}}.tar"], {}, samples


def class_tars(folder: Path, server: Server) -> Made:
    samples = [Sample(f"{name}/{i}", label, picture(i)) for label, name in enumerate(CLASSES) for i in range(3)]
    tars = [
        (f"{name}.tar", tar_bytes((f"{s.key.split('/')[1]}.png", s.data) for s in samples if s.label == label))
        for label, name in enumerate(CLASSES)
    ]
    return [write_tar(folder / "all.tar", tars)], {}, samples


def label_file(folder: Path, server: Server) -> Made:
    paths, _, samples = flat_folder(folder / "images", server)
    put(folder / "labels.txt", b"\n".join(str(i).encode() for i in range(5)))
    return paths, {"labels": folder / "labels.txt"}, [Sample(s.key, i, s.data) for i, s in enumerate(samples)]


def parquet(folder: Path, server: Server) -> Made:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    samples = labelled(0, 7)
    folder.mkdir(parents=True)
    for name, part in (("a", samples[:5]), ("b", samples[5:])):
        rows = [{"bytes": s.data, "path": f"{s.key}.png"} for s in part]
        image = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        table = pa.table({"image": image, "label": pa.array([s.label for s in part], pa.int64())})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=2)
    return [folder], {}, samples


def zip_archive(folder: Path, server: Server) -> Made:
    samples = [Sample(f"0000{i // 3}/img{i}", i % 2, picture(i)) for i in range(5)]
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for sample in samples:
            archive.writestr(f"{sample.key}.png", sample.data)
        archive.writestr("dataset.json", json.dumps({"labels": [[f"{s.key}.png", s.label] for s in samples]}))
    return [folder / "images.zip"], {}, samples


def remote_shards(folder: Path, server: Server) -> Made:
    folder.mkdir(parents=True)
    samples = labelled(0, 7)
    server.files = {"0.tar": tar_bytes(members(samples[:4])), "1.tar": tar_bytes(members(samples[4:]))}
    return [f"{server.url}/{{0..1}}.tar"], {}, samples


SEEKABLE = (
    class_folders,
    flat_folder,
    named_files,
    one_shard,
    several_shards,
    class_tars,
    label_file,
    parquet,
    zip_archive,
)
EVERY = (*SEEKABLE, remote_shards)


@pytest.fixture
def made(tmp_path: Path, server: Server, request: pytest.FixtureRequest) -> Made:
    make: Callable[[Path, Server], Made] = request.param
    return make(tmp_path / "in", server)


def opened(made: Made, keep_index: bool = True) -> Source:
    paths, options, _ = made
    return open_source(paths, keep_index=keep_index, **options)  # type: ignore[arg-type]


every = pytest.mark.parametrize("made", EVERY, indirect=True, ids=lambda make: make.__name__)
seekable = pytest.mark.parametrize("made", SEEKABLE, indirect=True, ids=lambda make: make.__name__)


@every
def test_units_cover_the_samples_in_order(made: Made) -> None:
    source, expected = opened(made), made[2]
    assert len(source) == len(expected)
    assert [unit.index for unit in source.units] == list(range(len(source.units)))
    assert [unit.first for unit in source.units] == np.cumsum([0, *(u.count for u in source.units)])[:-1].tolist()
    assert all(0 < unit.count <= UNIT_SIZE for unit in source.units)
    read = [source.read_unit(unit) for unit in source.units]
    assert [sample for samples, _ in read for sample in samples] == expected
    assert not any(rejected for _, rejected in read)
    assert not source.problems


@every
def test_an_open_unit_is_read_in_pieces(made: Made) -> None:
    source = opened(made)
    unit = source.units[0]
    piecewise = source.open_unit(unit)
    assert piecewise.count == unit.count
    pieces = [sample for i in range(unit.count) for sample in piecewise.read(i, i + 1)]
    assert pieces == source.read_unit(unit)[0]


@every
def test_a_source_is_read_in_other_processes(made: Made) -> None:
    """Engines send an open source to their workers, also after files were read from it."""
    source = opened(made)
    expected = [source.read_unit(unit) for unit in source.units]
    elsewhere = pickle.loads(pickle.dumps(source))
    assert [elsewhere.read_unit(unit) for unit in elsewhere.units] == expected
    assert elsewhere.description == source.description


@every
def test_the_description_is_json_that_reopens_the_source(made: Made) -> None:
    source = opened(made)
    recorded = json.loads(json.dumps(source.description))
    assert recorded["kind"] in KINDS
    assert recorded["num_samples"] == len(source)
    assert len(recorded["fingerprint"]) == 64
    again = reopen_source(recorded)
    assert again.description == source.description
    assert (again.class_names, again.units) == (source.class_names, source.units)


@every
def test_all_samples_are_the_whole_source(made: Made) -> None:
    source = opened(made)
    assert source.is_whole(len(source))
    assert not source.is_whole(len(source) - 1)


@every
def test_every_source_goes_through_the_pipeline(made: Made) -> None:
    source, expected = opened(made), made[2]
    units = list(decode_units(source, source.units, CONFIG, workers=2))
    assert [key for unit in units for key in unit.keys] == [sample.key for sample in expected]
    assert np.concatenate([unit.labels for unit in units]).tolist() == [sample.label for sample in expected]
    assert np.concatenate([unit.positions for unit in units]).tolist() == list(range(len(expected)))
    assert all(unit.pixels.shape == (len(unit.keys), 4, 4, 3) for unit in units)
    last = next(decode_units(source, source.units[-1:], CONFIG))
    np.testing.assert_array_equal(last.pixels, units[-1].pixels)


@every
def test_without_an_index_nothing_is_written(made: Made, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    source = opened(made, keep_index=False)
    assert reopen_source(source.description, keep_index=False).description == source.description
    assert sorted(tmp_path.rglob("*")) == before


@seekable
def test_samples_are_read_by_position(made: Made) -> None:
    source, expected = opened(made).by_position(), made[2]
    assert isinstance(source, SeekableSource)
    last = len(expected) - 1
    for order in (range(len(expected)), [last, 0, 2, last], np.array([1, 0]), []):
        assert source.read_many(order) == [expected[i] for i in order]
    assert source.sample(last) == expected[last]
    for position in (-1, len(expected)):
        with pytest.raises(IndexError):
            source.sample(position)


@seekable
def test_keys_labels_and_sizes_are_known_in_advance(made: Made) -> None:
    source, expected = opened(made).by_position(), made[2]
    assert source.keys() == [sample.key for sample in expected]
    assert source.labels().tolist() == [sample.label for sample in expected]
    assert source.sizes().tolist() == [len(sample.data) for sample in expected]
    assert (source.labels().dtype, source.sizes().dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("made", [remote_shards], indirect=True)
def test_a_source_without_positions_says_what_to_do(made: Made) -> None:
    source = opened(made)
    assert not isinstance(source, SeekableSource)
    with pytest.raises(UserError, match="only be read from front to end") as caught:
        source.by_position()
    assert "titokctl tokenize" in caught.value.hint
