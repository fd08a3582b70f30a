"""ImageNet as distributed: a tar of class tars, and a validation tar with labels in a text file."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, noise
from tar_files import tar_bytes, write_tar

from titokctl.data.sources import Source, open_source, reopen_source
from titokctl.data.sources.imagenet import in_sorted_synset_order
from titokctl.errors import UsageError, UserError
from titokctl.formats.shard_index import CLASS_TARS

SYNSETS = ["n01440764", "n01443537", "n02119789"]
# The devkit's order is another one: here the last synset has ILSVRC2012_ID 1.
TABLE = "n02119789\t1\nn01440764\t2\nn01443537\t3\nn00001740\t1001\n"


def picture(seed: int) -> bytes:
    return encoded(noise(6, 5, seed=seed))


def class_tar(synset: str, seeds: Sequence[int]) -> bytes:
    return tar_bytes((f"{synset}_{seed}.JPEG", picture(seed)) for seed in seeds)


def train_tar(path: Path) -> Path:
    order = [SYNSETS[2], SYNSETS[0], SYNSETS[1]]
    return write_tar(path, [(f"{s}.tar", class_tar(s, range(10 * i, 10 * i + 2 + i))) for i, s in enumerate(order)])


def val_tar(path: Path, count: int = 4) -> Path:
    names = [f"ILSVRC2012_val_{i:08d}" for i in range(1, count + 1)]
    return write_tar(path, [(f"{name}.JPEG", picture(i)) for i, name in enumerate(names)])


def labelled(path: Path, text: str, table: str | None = None) -> Source:
    labels = path.parent / "labels.txt"
    labels.write_text(text)
    if table is not None:
        (path.parent / "table.txt").write_text(table)
    return open_source([path], labels=labels, label_table=None if table is None else path.parent / "table.txt")


@pytest.mark.parametrize("given", ["ILSVRC2012_img_train.tar", ""])
def test_a_tar_of_class_tars_is_read_without_unpacking(tmp_path: Path, given: str) -> None:
    train_tar(tmp_path / "ILSVRC2012_img_train.tar")
    val_tar(tmp_path / "ILSVRC2012_img_val.tar")
    before = sorted(tmp_path.iterdir())
    source = open_source([tmp_path / given])
    assert source.class_names == SYNSETS
    assert source.labels().tolist() == [2, 2, 0, 0, 0, 1, 1, 1, 1]
    assert source.keys()[1:3] == ["n02119789/n02119789_1", "n01440764/n01440764_10"]
    assert [s.data for s in source.read_many([1, 8, 2])] == [picture(1), picture(23), picture(10)]
    assert source.description["kind"] == CLASS_TARS
    assert reopen_source(source.description).description == source.description
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != ".titokctl-index"] == before


def test_its_keys_are_those_of_class_folders(tmp_path: Path) -> None:
    path = train_tar(tmp_path / "t.tar")
    for synset, seeds in zip(
        [SYNSETS[2], SYNSETS[0], SYNSETS[1]], [range(2), range(10, 13), range(20, 24)], strict=True
    ):
        (tmp_path / "f" / synset).mkdir(parents=True)
        for seed in seeds:
            (tmp_path / "f" / synset / f"{synset}_{seed}.JPEG").write_bytes(picture(seed))
    tar, folder = open_source([path]), open_source([tmp_path / "f"])
    assert sorted(tar.keys()) == folder.keys()
    assert tar.class_names == folder.class_names


def test_the_kept_index_serves_both_readings_of_a_tar(tmp_path: Path) -> None:
    path = train_tar(tmp_path / "t.tar")
    first = open_source([path])
    again = open_source([path])
    assert again.class_names == first.class_names
    assert again.labels().tolist() == first.labels().tolist()


def test_a_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    whole = train_tar(tmp_path / "t.tar").read_bytes()
    # Inside a member, inside a header, and where the last member ends: the class tars' own ends are whole there.
    last = whole.rindex(b"n01443537.tar")
    for cut in (1000, len(whole) // 2 // 512 * 512, last + 100, last):
        path = tmp_path / f"cut{cut}.tar"
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=f"cut{cut}.tar is incomplete"):
            open_source([path])
    inner = class_tar(SYNSETS[0], range(3))
    short = write_tar(tmp_path / "inner.tar", [(f"{SYNSETS[0]}.tar", inner[:2600]), (f"{SYNSETS[1]}.tar", inner)])
    with pytest.raises(UserError, match=r"incomplete: n01440764\.tar: cut after"):
        open_source([short])
    assert len(open_source([short], accept_cut=True)) == 5


def test_a_member_that_is_not_a_tar_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("n01440764.tar", b"no tar" * 200)])
    with pytest.raises(UserError, match=r"n01440764\.tar: not a tar header"):
        open_source([path])


LINES = {
    "names": "n02119789\nn01440764\nn01443537\nn01440764\n",
    "indices": "2\n0\n1\n0\n",
    "image and name": "\n".join(
        f"ILSVRC2012_val_{i:08d}.JPEG {SYNSETS[k]}" for i, k in ((4, 0), (1, 2), (2, 0), (3, 1))
    ),
    "solution": "ImageId,PredictionString\n"
    + "\n".join(f"ILSVRC2012_val_{i:08d},{SYNSETS[k]} 85 1 49 2" for i, k in ((4, 0), (1, 2), (2, 0), (3, 1))),
}


@pytest.mark.parametrize("form", LINES)
def test_labels_of_the_validation_images(tmp_path: Path, form: str) -> None:
    source = labelled(val_tar(tmp_path / "val.tar"), LINES[form])
    assert source.labels().tolist() == [2, 0, 1, 0]
    assert source.labels().dtype == np.int32
    assert source.class_names == ([] if form == "indices" else SYNSETS)
    assert [s.label for s in source.read_many([3, 0])] == [0, 2]
    assert [s.label for unit in source.units for s in source.read_unit(unit)[0]] == [2, 0, 1, 0]
    assert reopen_source(source.description).description == source.description


def test_ilsvrc_ids_are_refused_and_mapped_with_a_table(tmp_path: Path) -> None:
    path = val_tar(tmp_path / "val.tar")
    with pytest.raises(UserError, match="ILSVRC2012_IDs: its smallest number is 1") as caught:
        labelled(path, "1\n2\n3\n2\n")
    assert "--label-table" in caught.value.hint
    for table in (TABLE, "ILSVRC2012_ID,WNID\n1,n02119789\n2,n01440764\n3,n01443537\n"):
        source = labelled(path, "1\n2\n3\n2\n", table)
        assert source.labels().tolist() == [2, 0, 1, 0]
        assert source.class_names == SYNSETS
    with pytest.raises(UserError, match="ILSVRC2012_ID 0, which is not in the table"):
        labelled(path, "1\n2\n0\n2\n", TABLE)


def test_a_table_gives_the_whole_list_of_classes(tmp_path: Path) -> None:
    source = labelled(val_tar(tmp_path / "val.tar", 1), "n01443537\n", TABLE)
    assert (source.labels().tolist(), source.class_names) == ([1], SYNSETS)


def test_a_part_of_the_images_takes_its_own_lines(tmp_path: Path) -> None:
    members = [(f"val/ILSVRC2012_val_{i:08d}.JPEG", picture(i)) for i in (3, 1)]
    source = labelled(write_tar(tmp_path / "part.tar", members), LINES["names"])
    assert [source.class_names[label] for label in source.labels()] == ["n01443537", "n02119789"]


def test_other_images_take_lines_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(picture(0))
    assert labelled(tmp_path / "in", "1\n0\n").labels().tolist() == [1, 0]
    shard = write_tar(tmp_path / "s.tar", [("b.png", picture(0)), ("a.png", picture(1))])
    assert labelled(shard, "1\n0\n").labels().tolist() == [0, 1]


BAD = {
    "": "contains no labels",
    "0\n1\n": "has 2 lines, but there is an image number 4",
    "cat\n0\n0\n0\n": "'cat' is not a label",
    "ILSVRC2012_val_00000001 0\n": "no label for ILSVRC2012_val_00000002",
}


@pytest.mark.parametrize("text", BAD)
def test_files_that_do_not_fit(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=BAD[text]):
        labelled(val_tar(tmp_path / "val.tar"), text)


def test_more_that_does_not_fit(tmp_path: Path) -> None:
    path = val_tar(tmp_path / "val.tar")
    for table, message in (
        ("", "not a table of synset"),
        ("n01440764 1\nn01443537 1\n", "maps the ILSVRC2012_ID 1 to"),
    ):
        with pytest.raises(UserError, match=message):
            labelled(path, "1\n1\n1\n1\n", table)
    with pytest.raises(UserError, match="have labels of their own"):
        labelled(train_tar(tmp_path / "t.tar"), "0\n")
    with pytest.raises(UsageError, match="needs a file of labels"):
        open_source([path], label_table=tmp_path / "table.txt")
    with pytest.raises(UserError, match="cannot read the labels"):
        open_source([path], labels=tmp_path / "nowhere.txt")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(picture(0))
    with pytest.raises(UserError, match="2 lines for 1 image"):
        labelled(tmp_path / "in", "0\n1\n")


def test_the_order_of_class_names() -> None:
    assert in_sorted_synset_order(SYNSETS) is True
    assert in_sorted_synset_order(SYNSETS[::-1]) is False
    assert in_sorted_synset_order(["cat", *SYNSETS]) is None
    assert in_sorted_synset_order([]) is None
