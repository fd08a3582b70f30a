"""Sources: recognised by their files, stable in order, exact about what is missing."""

import os
from pathlib import Path

import pytest
from image_files import class_folders, encoded, noise

from titokctl.data.images import BadImage, decode
from titokctl.data.sources import Source, open_source, reopen_source
from titokctl.data.sources.source import difference, units_of
from titokctl.errors import UsageError, UserError
from titokctl.formats.shard_scan import MAX_IMAGE_BYTES
from titokctl.formats.shard_set import ShardSample, write_set_index, write_shard


def contents(source: Source) -> dict[str, tuple[int, bytes]]:
    return {s.key: (s.label, s.data) for unit in source.units for s in source.read_unit(unit)[0]}


def make_shards(folder: Path, counts: tuple[int, ...] = (3, 2)) -> list[Path]:
    folder.mkdir(parents=True)
    paths, n = [], 0
    for i, count in enumerate(counts):
        part = [ShardSample(f"k{n + j}", "png", encoded(noise(4, 4, seed=n + j)), (n + j) % 2) for j in range(count)]
        paths.append(folder / f"s-{i}.tar")
        write_shard(paths[-1], part)
        n += count
    return paths


def test_class_folders(tmp_path: Path) -> None:
    files = class_folders(tmp_path / "in", ("dog", "cat"))
    (tmp_path / "in/cat/notes.txt").write_text("no image")
    (tmp_path / "in/cat/._0.png").write_bytes(b"resource fork")
    (tmp_path / "in/empty").mkdir()
    source = open_source([tmp_path / "in"])
    assert source.class_names == ["cat", "dog", "empty"]
    assert source.passed_over == {".txt": 1, "hidden": 1}
    assert len(source) == 10
    found = contents(source)
    expected = {name.rpartition(".")[0]: (int(name[:3] == "dog"), data) for name, data in files.items()}
    assert found == expected
    assert list(found) == sorted(found)
    assert source.labels().tolist() == [0] * 5 + [1] * 5
    assert source.sizes().tolist() == [len(data) for _, data in found.values()]
    assert source.keys() == list(found)
    assert source.sample(7) == source.read_many([3, 7])[1]


def test_deeper_folders_belong_to_their_class(tmp_path: Path) -> None:
    (tmp_path / "a/x/y").mkdir(parents=True)
    (tmp_path / "a/x/y/1.png").write_bytes(encoded(noise(3, 3)))
    (tmp_path / "a/0.png").write_bytes(encoded(noise(3, 3)))
    assert open_source([tmp_path]).keys() == ["a/0", "a/x/y/1"]


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "c.tar.webp"):
        (tmp_path / name).write_bytes(b"x")
    source = open_source([tmp_path])
    assert (source.class_names, source.labels().tolist()) == ([], [-1, -1, -1])
    assert source.keys() == ["a", "b", "c.tar"]


def test_names_that_differ_in_their_extension_alone(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png"):
        (tmp_path / name).write_bytes(b"x")
    assert open_source([tmp_path]).keys() == ["a", "a.png"]


def test_train_is_meant_where_there_is_train(tmp_path: Path) -> None:
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "val", each=2)
    assert len(open_source([tmp_path])) == 10
    assert len(open_source([tmp_path / "val"])) == 4


def test_a_class_named_train_is_a_class(tmp_path: Path) -> None:
    class_folders(tmp_path, ("train", "bus"))
    assert open_source([tmp_path]).class_names == ["bus", "train"]


def test_the_fingerprint_follows_names_sizes_and_paths(tmp_path: Path) -> None:
    class_folders(tmp_path / "a")
    class_folders(tmp_path / "b")
    first, second = (open_source([tmp_path / name]).description for name in "ab")
    assert first["fingerprint"] != second["fingerprint"]
    assert first["listing"] == second["listing"]
    assert first["contents"] == second["contents"]
    assert difference(first, second) is None  # all bytes are compared of a small set
    assert first["paths"] == [str((tmp_path / "a").resolve())]
    (tmp_path / "b/cat/9.png").write_bytes(b"x")
    assert difference(first, open_source([tmp_path / "b"]).description) == "names, sizes or labels differ"


def test_shards_by_folder_pattern_and_path_are_the_same(tmp_path: Path) -> None:
    paths = make_shards(tmp_path / "shards")
    sources = [open_source(given) for given in ([tmp_path / "shards"], [f"{tmp_path}/shards/s-{{0..1}}.tar"], paths)]
    assert len({s.description["fingerprint"] for s in sources}) == 1
    for source in sources:
        assert source.keys() == ["k0", "k1", "k2", "k3", "k4"]
        assert source.labels().tolist() == [0, 1, 0, 1, 0]
        assert source.sample(3).data == encoded(noise(4, 4, seed=3))
        assert [s.key for s in source.read_many([4, 0, 4])] == ["k4", "k0", "k4"]
        assert [(u.first, u.count) for u in source.units] == [(0, 3), (3, 2)]


def test_class_names_come_from_index_json(tmp_path: Path) -> None:
    paths = make_shards(tmp_path / "shards")
    infos = [write_shard(p, [ShardSample("a", "png", b"1", 1)]) for p in paths]
    write_set_index(tmp_path / "shards", infos, ["cat", "dog"])
    assert open_source([tmp_path / "shards"]).class_names == ["cat", "dog"]
    write_set_index(tmp_path / "shards", infos, ["cat"])
    with pytest.raises(UserError, match=r"none of 2 samples .* label 1 is out of range for 1 class"):
        open_source([tmp_path / "shards"])


def test_a_count_that_differs_from_index_json_is_refused(tmp_path: Path) -> None:
    paths = make_shards(tmp_path / "shards")
    infos = [write_shard(p, [ShardSample("a", "png", b"1", 0)]) for p in paths]
    write_set_index(tmp_path / "shards", infos, [])
    write_shard(paths[1], [])
    with pytest.raises(UserError, match=r"s-1\.tar has 0 images, but index\.json records 1"):
        open_source([tmp_path / "shards"])


def test_an_accepted_cut_shard_is_recorded(tmp_path: Path) -> None:
    paths = make_shards(tmp_path / "shards")
    paths[1].write_bytes(paths[1].read_bytes()[:2000])
    with pytest.raises(UserError, match=r"s-1\.tar is incomplete"):
        open_source([tmp_path / "shards"])
    source = open_source([tmp_path / "shards"], accept_cut=True)
    assert len(source) == 4
    assert source.description["accepted_cut_shards"] == [str(paths[1])]


def test_all_cut_shards_are_named(tmp_path: Path) -> None:
    paths = make_shards(tmp_path / "shards")
    for path, length in zip(paths, (1100, 2000), strict=False):
        path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=r"2 shards are incomplete: .*s-0\.tar \(cut after .*s-1\.tar \(cut") as error:
        open_source([tmp_path / "shards"])
    assert "--accept-cut" in str(error.value.hint)


@pytest.mark.parametrize("name", [b"\xff", b"dog"])
def test_class_folders_of_any_name_have_names_that_can_be_written(tmp_path: Path, name: bytes) -> None:
    folder = os.fsencode(tmp_path) + b"/images/" + name
    os.makedirs(folder)
    Path(os.fsdecode(folder + b"/a\xfe.png")).write_bytes(b"1")
    source = open_source([tmp_path / "images"])
    assert source.class_names == [name.decode("utf-8", "backslashreplace")]
    assert source.keys() == [f"{source.class_names[0]}/a\\xfe"]
    assert source.sample(0).data == b"1"


def test_a_pipe_named_like_an_image_is_named(tmp_path: Path) -> None:
    class_folders(tmp_path, ("cat",), each=1)
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    (tmp_path / "cat" / "zero.jpg").symlink_to("/dev/zero")
    source = open_source([tmp_path])
    assert [(p.key, p.kind) for p in source.problems] == [
        ("cat/pipe.jpg", "not-a-file"),
        ("cat/zero.jpg", "not-a-file"),
    ]
    assert len(source) == 1


def test_the_source_of_a_merged_cache_is_refused() -> None:
    with pytest.raises(UserError, match="merged from several caches"):
        reopen_source({"kind": "merged", "paths": ["/a.h5", "/b.h5"]})


def test_units_hold_at_most_1024_and_span_no_two_parts() -> None:
    units = units_of([("a", 2500), ("b", 0), ("c", 10)])
    assert [(u.index, u.first, u.count) for u in units] == [
        (0, 0, 1024),
        (1, 1024, 1024),
        (2, 2048, 452),
        (3, 2500, 10),
    ]
    assert units[1].name == "a[1024:2048]"


BAD = {
    "missing": "no such file or folder: .*missing",
    "empty": "the folder .*empty is empty",
    "texts": "no images in .*texts",
    "both": "holds 1 image itself and others in 1 folder",
    "mixed": "contains both tar shards and images",
}


@pytest.mark.parametrize("name", BAD)
def test_other_folders_are_refused(tmp_path: Path, name: str) -> None:
    for folder in ("empty", "texts", "both/cat", "mixed"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "texts/a.txt").write_text("x")
    for image in ("both/a.png", "both/cat/b.png", "mixed/a.png"):
        (tmp_path / image).write_bytes(b"x")
    (tmp_path / "mixed/a.tar").write_bytes(bytes(1024))
    with pytest.raises(UserError, match=BAD[name]):
        open_source([tmp_path / name])


def test_a_single_file_that_is_neither_an_image_nor_a_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x")
    with pytest.raises(UserError, match="is not a tar shard"):
        open_source([tmp_path / "a.txt"])


def test_wrong_words(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown kind of source: 'rar'"):
        open_source([tmp_path], kind="rar")
    with pytest.raises(UsageError, match="no source was named"):
        open_source([])
    with pytest.raises(UserError, match="braces"):
        open_source([f"{tmp_path}/{{0..3.tar"])
    with pytest.raises(UserError, match="more than 1,000,000 shards"):
        open_source([f"{tmp_path}/{{0..999999999}}.tar"])
    path = make_shards(tmp_path / "s")[0]
    with pytest.raises(UserError, match="named twice"):
        open_source([path, path])


def test_a_file_too_large_for_an_image_is_not_read_whole(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    class_folders(folder)
    with (folder / "dog" / "huge.jpg").open("wb") as file:
        file.write(b"\xff\xd8\xff")
        file.truncate(MAX_IMAGE_BYTES + (1 << 30))
    source = open_source([folder])
    huge = source.sample(source.keys().index("dog/huge"))
    assert len(huge.data) == MAX_IMAGE_BYTES + 1
    with pytest.raises(BadImage, match="more than 256 MiB"):
        decode(huge.data)


def test_a_folder_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"pict\xfcres")
    class_folders(folder)
    with pytest.raises(UserError, match="not UTF-8"):
        open_source([folder])
