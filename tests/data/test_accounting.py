"""Everything in a source is a row, a named rejection, or counted."""

import errno
import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from image_files import encoded, noise
from tar_files import tar_bytes, write_tar

from titokctl.config.preprocessing import PreprocessingConfig
from titokctl.data.pipeline import decode_units
from titokctl.data.sources import Source, open_source
from titokctl.errors import UserError

CONFIG = PreprocessingConfig(size=4)
PNG = encoded(noise(6, 6))


def put(path: Path, data: bytes = PNG) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def accounted(source: Source) -> tuple[int, int, int]:
    """Rows; rejected; other files, those with labels included."""
    units = list(decode_units(source, source.units, CONFIG))
    rejected = sum(len(unit.rejected) for unit in units) + len(source.problems)
    others = sum(source.passed_over.values()) + source.description["label_files"]
    return sum(len(unit.keys) for unit in units), rejected, others


def files_below(root: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(root))


ODD = {
    "cat/photo.bmp": encoded(noise(6, 6), "BMP"),
    "cat/moving.gif": encoded(noise(6, 6), "GIF"),
    "cat/scan.TIFF": encoded(noise(6, 6), "TIFF"),
    "cat/no_suffix": PNG,
    "cat/wrong.dat": encoded(noise(6, 6), "JPEG"),
    "cat/download.tmp": encoded(noise(6, 6), "WEBP"),
}
NOT_IMAGES = {
    "cat/notes.txt": b"text",
    "cat/more.TXT": b"text",
    "dog/labels.json": b"{}",
    "dog/README": b"read me",
    "dog/empty.xml": b"",
    "dog/.DS_Store": b"x",
    "dog/.thumbs/1.jpg": PNG,
    "dog/archive.zip": b"PK\x03\x04",
}
BROKEN = {
    "dog/half.png": PNG[:60],
    "dog/pointer.jpg": b"version https://git-lfs.github.com/spec/v1\n",
    "dog/0.webp": b"",
}


def test_everything_in_a_folder_is_accounted_for(tmp_path: Path) -> None:
    for name, data in {"dog/good.png": PNG, **ODD, **NOT_IMAGES, **BROKEN}.items():
        put(tmp_path / name, data)
    (tmp_path / "dog/gone.png").symlink_to("nowhere.png")
    (tmp_path / "dog/gone.txt").symlink_to("nowhere.txt")
    (tmp_path / "dog/again.png").symlink_to("good.png")
    os.mkfifo(tmp_path / "dog/pipe.png")
    os.mkfifo(tmp_path / "dog/pipe")
    source = open_source([tmp_path])
    assert source.passed_over == {
        ".txt": 2, ".json": 1, "no suffix": 1, ".xml": 1, ".zip": 1, "hidden": 2, "links that lead nowhere": 1,
        "pipes, sockets or devices": 1,
    }  # fmt: skip
    rows, rejected, others = accounted(source)
    assert (rows, rejected) == (len(ODD) + 2, len(BROKEN) + 2)
    assert rows + rejected + others == files_below(tmp_path)


def test_links_are_followed_and_cycles_are_named(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "1.png")
    put(tmp_path / "in" / "cat" / "0.png")
    (tmp_path / "in" / "cat" / "loop").symlink_to(tmp_path / "in" / "cat")
    (tmp_path / "in" / "cat" / "self").symlink_to("self")
    (tmp_path / "in" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    source = open_source([tmp_path / "in"])
    assert source.by_position().keys() == ["cat/0", "cat/more/1", "dog/1"]
    assert source.passed_over == {"links to a folder above": 1, "links that lead nowhere": 1}
    said = "; ".join(source.remarks)
    assert "following 2 links out of" in said
    assert "not following 1 link back to a folder above: cat/loop" in said


def test_everything_in_a_shard_is_accounted_for(tmp_path: Path) -> None:
    members = [
        ("a.png", PNG), ("a.cls", b"0"), ("a.txt", b"a caption"), ("a.json", b'{"url": "x"}'),
        ("b.bmp", encoded(noise(6, 6), "BMP")), ("b.cls", b"1"), ("b.json", b'{"label": 1}'),
        ("c.data", PNG), ("c.mask", b"nothing"),
        ("d.png", b"broken"), ("d.cls", b"1"),
        ("e.cls", b"1"), ("e.npy", b"\x93NUMPY"),
        ("f.x.jpg", PNG), ("f.y.jpg", PNG), ("f.cls", b"0"),
        ("g.png", PNG), ("g.cls", b"-7"), ("g.seg.png", PNG),
        ("h.one", PNG), ("h.two", PNG),
        (".hidden.png", PNG), ("dir/._i.png", PNG), ("README", b"x"),
        ("j.jpg", PNG), ("j.png", PNG),
    ]  # fmt: skip
    source = open_source([write_tar(tmp_path / "s.tar", members)])
    assert source.by_position().keys() == ["a", "b", "c", "d", "j"]
    assert Counter(p.kind for p in source.problems) == {
        "no-image": 1, "several-dots": 1, "bad-label": 1, "several-images": 1, "duplicate": 1,
    }  # fmt: skip
    assert source.passed_over == {
        ".txt": 1, ".json": 1, ".mask": 1, ".npy": 1, ".y.jpg": 1, ".cls": 1, ".seg.png": 1, ".two": 1, "hidden": 2,
        "no suffix": 1,
    }  # fmt: skip
    assert sum(accounted(source)) == len(members)


def add_link(tar: tarfile.TarFile, name: str, target: str, kind: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    tar.addfile(info)


def test_links_in_a_shard_are_followed_or_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("cat/a.png", "cat/b.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            tar.addfile(info, io.BytesIO(PNG))
        add_link(tar, "cat/hard.png", "cat/a.png", tarfile.LNKTYPE)
        add_link(tar, "dog/soft.png", "../cat/b.png", tarfile.SYMTYPE)
        add_link(tar, "dog/out.png", "/etc/passwd", tarfile.SYMTYPE)
        add_link(tar, "dog/note.txt", "../cat/b.png", tarfile.SYMTYPE)
        add_link(tar, "dog/pipe.png", "", tarfile.FIFOTYPE)
        add_link(tar, "dog/disk", "", tarfile.BLKTYPE)
        add_link(tar, "folder", "", tarfile.DIRTYPE)
    source = open_source([tmp_path / "s.tar"]).by_position()
    assert sorted(source.keys()) == ["cat/a", "cat/b", "cat/hard", "dog/soft"]
    assert all(sample.data == PNG for sample in source.read_many(range(4)))
    assert sorted((p.key, p.kind) for p in source.problems) == [("dog/out", "link"), ("dog/pipe", "not-a-file")]
    assert source.passed_over == {"symbolic link": 1, "device": 1}


def test_everything_in_class_tars_is_accounted_for(tmp_path: Path) -> None:
    cat = tar_bytes([("1.png", PNG), ("2.gif", encoded(noise(6, 6), "GIF")), ("3", PNG), ("4.txt", b"x"), (".5", b"x")])
    path = write_tar(
        tmp_path / "all.tar", [("cat.tar", cat), ("dog.tar", tar_bytes([("1.png", PNG)])), ("LICENSE", b"x")]
    )
    source = open_source([path])
    assert source.by_position().keys() == ["cat/1", "cat/2", "cat/3", "dog/1"]
    assert source.passed_over == {".txt": 1, "hidden": 1, "no suffix": 1}


def test_a_folder_that_cannot_be_listed_ends_the_command(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may list every folder")
    put(tmp_path / "cat" / "0.png")
    put(tmp_path / "dog" / "0.png")
    (tmp_path / "cat").chmod(0)
    try:
        with pytest.raises(UserError, match=r"cannot list .*cat: Permission denied"):
            open_source([tmp_path])
    finally:
        (tmp_path / "cat").chmod(0o755)


def test_a_folder_below_that_cannot_be_listed_ends_the_command_too(tmp_path: Path) -> None:
    put(tmp_path / "cat" / "0.png")
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):  # a path longer than the system takes
        os.mkdir("d" * 250, dir_fd=at)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    with pytest.raises(UserError, match=rf"cannot (list|read) .*{os.strerror(errno.ENAMETOOLONG)}"):
        open_source([tmp_path])


def test_a_file_that_disappears_is_not_an_empty_one(tmp_path: Path) -> None:
    for i in range(3):
        put(tmp_path / "cat" / f"{i}.png")
    source = open_source([tmp_path]).by_position()
    (tmp_path / "cat" / "1.png").unlink()
    with pytest.raises(UserError, match=rf"cannot read .*1\.png: {os.strerror(errno.ENOENT)}"):
        source.read_many(range(3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (bytes(1024), "it holds nothing"),
        (tar_bytes([("a.txt", b"x"), ("b.txt", b"x"), ("c.csv", b"x")]), r"it holds 2 \.txt, 1 \.csv"),
        (b"<!doctype html><p>please log in", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"\x1f\x8b\x08" + bytes(2000), "is damaged in its first"),
        (b"PAR1" + bytes(600), "a parquet file"),
        (b"", "the file is empty"),
    ],
)
def test_a_shard_without_images_is_an_error_that_names_it(tmp_path: Path, data: bytes, message: str) -> None:
    put(tmp_path / "bad.tar", data)
    write_tar(tmp_path / "good.tar", [("a.png", PNG)])
    with pytest.raises(UserError, match=rf"bad\.tar.*{message}"):
        open_source([tmp_path])


def test_a_shard_that_is_recorded_as_empty_may_be_empty(tmp_path: Path) -> None:
    put(tmp_path / "0.tar", bytes(1024))
    write_tar(tmp_path / "1.tar", [("a.png", PNG)])
    (tmp_path / "sizes.json").write_text('{"0.tar": 0, "1.tar": 1}')
    assert len(open_source([tmp_path])) == 1


def test_a_shard_that_is_a_link_to_nowhere_is_not_left_out(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [("a.png", PNG)])
    (tmp_path / "1.tar").symlink_to("elsewhere.tar")
    with pytest.raises(UserError, match=r"cannot read .*1\.tar"):
        open_source([tmp_path])
