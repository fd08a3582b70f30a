"""Sample sets: written in chunks, finished or unfinished, never in between."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from titokctl.data.images import decode, encode_png, encode_webp
from titokctl.data.sources import open_source
from titokctl.errors import UserError
from titokctl.formats.image_output import OutputSpec, Rows
from titokctl.formats.sample_set import (
    SampleSet,
    SampleSetWriter,
    check_fits,
    files_of,
    record_location,
    shown_positions,
    state_of,
    unfinished,
)
from titokctl.formats.token_cache import CacheHeader, TokenCache

N, SIZE, TILE = 37, 8, 8
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (N, SIZE, SIZE, 3), dtype=np.uint8)
IDS = RANDOM.integers(0, 16, (N, 4))
LABELS = np.arange(N) % 3
SETTINGS = {"num_images": N, "sampling": {"seed": 0}}
HEADER = CacheHeader(
    tokenizer={}, encoder_sha256="0" * 64, weights_sha256="1" * 64, codebook_size=16, num_latent_tokens=4,
    image_size=SIZE, preprocessing={}, source={},
)  # fmt: skip


ENCODERS = {"png": encode_png, "webp": encode_webp, "wds": encode_png}
FORMATS = ["npz", "png", "webp", "wds", "none"]


def writer(folder, image_format="npz", overwrite=False):
    spec = OutputSpec(image_format, SIZE, LABELS, ("a", "b", "c"), ENCODERS.get(image_format))
    made = SampleSetWriter(folder, SETTINGS, spec)
    made.begin(overwrite)
    made.open()
    return made


def add(target, first, count=TILE):
    rows = slice(first, first + count)
    images = IMAGES[rows]
    kept = None if target.spec.image_format == "none" else images
    target.add(first, len(images), lambda: Rows(IDS[rows], kept, {"shown": images}))


def write(folder, image_format="npz", order=None, overwrite=False):
    with writer(folder, image_format, overwrite) as target:
        for first in order or range(0, N, TILE):
            if first not in target.done:
                add(target, first)
                target.commit(wait=False)
        target.commit()
        found = target.finish(HEADER, {"more": 1})
    unfinished(folder).remove()
    return found


def images_of(found):
    if found.images.name == "shards":
        source = open_source([found.images])
        assert (source.labels() == LABELS).all()
        return np.stack([decode(source.sample(i).data) for i in range(len(source))])
    if found.images.is_dir():
        return np.stack([decode(p.read_bytes()) for p in sorted(found.images.iterdir())])
    with np.load(found.images, allow_pickle=False) as arrays:
        return arrays["arr_0"]


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize("image_format", FORMATS)
def test_a_finished_set(tmp_path, image_format):
    folder = tmp_path / "set"
    write(folder, image_format, order=[32, 8, 0, 24, 16])
    found = SampleSet.open(folder)
    if image_format == "none":
        assert found.images == found.ids
    else:
        assert np.array_equal(images_of(found), IMAGES)
    cache = TokenCache.open(found.ids)
    assert np.array_equal(cache.ids, IDS)
    assert np.array_equal(cache.labels, LABELS)
    assert cache.key(36) == "000036"
    assert found.manifest["settings"] == SETTINGS
    assert found.manifest["more"] == 1
    assert pixels_of(folder / "grid.png").shape[1] >= 7 * SIZE
    names = {"manifest.json", "ids.h5", "grid.png", found.images.name}
    assert {p.name for p in folder.iterdir()} == names


@pytest.mark.parametrize("image_format", FORMATS[:-1])
def test_what_was_committed_is_kept_and_the_rest_drawn_again(tmp_path, image_format):
    with writer(tmp_path, image_format) as target:
        add(target, 8)
        target.commit()
        add(target, 0)
        assert (target.num_done, target.num_pending) == (8, 8)
    assert state_of(tmp_path) == "unfinished"
    with pytest.raises(UserError, match="is not a finished sample set"):
        SampleSet.open(tmp_path)
    with writer(tmp_path, image_format) as target:
        assert list(target.done) == [8]
    assert np.array_equal(images_of(write(tmp_path, image_format)), IMAGES)


def test_a_set_with_a_gap_is_not_finished(tmp_path):
    with writer(tmp_path) as target:
        for first in (0, 8, 24, 32):
            add(target, first)
        target.commit()
        with pytest.raises(ValueError, match="without a gap, got 16"):
            target.finish(HEADER, {})
    assert state_of(tmp_path) == "unfinished"


@pytest.mark.parametrize("moved", [["images.npz"], ["images.npz", "ids.h5"], ["images.npz", "ids.h5", "grid.png"]])
def test_a_writer_killed_while_it_moved_its_results(tmp_path, moved):
    """The state on disk at that moment: all chunks, and some results under their final names, but no manifest."""
    write(tmp_path / "whole")
    folder = tmp_path / "set"
    with writer(folder) as target:
        for first in range(0, N, TILE):
            add(target, first)
        target.commit()
    for name in moved:
        source = (folder / ".unfinished" if name == "images.npz" else tmp_path / "whole") / name
        os.replace(source, folder / name)
    assert state_of(folder) == "unfinished"
    assert np.array_equal(images_of(write(folder)), IMAGES)


def test_a_damaged_chunk_is_named(tmp_path):
    with writer(tmp_path) as target:
        add(target, 0)
        target.commit()
    (chunk,) = (tmp_path / ".unfinished").glob("chunk-*")
    chunk.write_bytes(chunk.read_bytes()[:100])
    with pytest.raises(UserError, match=r"chunk-000000000\.npz is damaged"), writer(tmp_path):
        pass


def test_other_settings_are_refused_and_listed(tmp_path):
    assert check_fits(tmp_path, SETTINGS) == "empty"
    with writer(tmp_path):
        pass
    assert check_fits(tmp_path, SETTINGS) == "unfinished"
    other = {"num_images": N, "sampling": {"seed": 5}}
    with pytest.raises(UserError, match=r"begun with other settings:\n  sampling\.seed: 0 -> 5"):
        check_fits(tmp_path, other)
    write(tmp_path)
    assert check_fits(tmp_path, SETTINGS) == "finished"
    with pytest.raises(UserError, match=r"made with other settings:\n  sampling\.seed: 0 -> 5"):
        check_fits(tmp_path, other)


def test_a_run_folder_may_point_to_the_set(tmp_path):
    write(tmp_path / "elsewhere")
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(UserError, match="is not a finished sample set"):
        SampleSet.open(run)
    record_location(run, tmp_path / "elsewhere")
    assert SampleSet.open(run).folder == tmp_path / "elsewhere"
    (run / "location.json").write_text("[]")
    with pytest.raises(UserError, match="does not name a folder"):
        SampleSet.open(run)


def test_states(tmp_path):
    assert state_of(tmp_path / "missing") == "empty"
    assert state_of(tmp_path) == "empty"
    (tmp_path / ".lock").touch()
    assert state_of(tmp_path) == "empty"
    (tmp_path / "thesis.tex").touch()
    assert state_of(tmp_path) == "foreign"
    assert state_of(tmp_path / "thesis.tex") == "foreign"


@pytest.mark.parametrize("before", FORMATS)
@pytest.mark.parametrize("after", FORMATS)
def test_a_new_set_replaces_the_files_of_the_old_one_alone(tmp_path, before, after):
    write(tmp_path, before)
    for name in ("notes.txt", "evaluation-lite0.json", "evaluation-lite0.npz"):
        (tmp_path / name).touch()
    replaced = files_of(tmp_path)
    assert replaced[-1] == "manifest.json"
    assert {"evaluation-lite0.json", "evaluation-lite0.npz"} < set(replaced)
    assert "notes.txt" not in replaced
    found = write(tmp_path, after, overwrite=True)
    if after != "none":
        assert np.array_equal(images_of(found), IMAGES)
    kept = {"manifest.json", "ids.h5", "grid.png", "notes.txt", found.images.name}
    assert {p.name for p in tmp_path.iterdir()} == kept


@pytest.mark.parametrize(("image_format", "name"), [("png", "holiday.jpg"), ("wds", "shard.bak"), ("webp", "a/b.webp")])
def test_a_file_among_the_images_keeps_a_set_from_being_replaced(tmp_path, image_format, name):
    found = write(tmp_path, image_format)
    (found.images / name).parent.mkdir(exist_ok=True)
    (found.images / name).touch()
    with pytest.raises(UserError, match=name):
        files_of(tmp_path)


def test_a_set_stays_readable_until_the_one_that_replaces_it_is_complete(tmp_path):
    write(tmp_path)
    with writer(tmp_path, "png", overwrite=True) as target:
        add(target, 0)
        target.commit()
    assert np.array_equal(images_of(SampleSet.open(tmp_path)), IMAGES)
    assert state_of(tmp_path) == "unfinished"


@pytest.mark.parametrize("image_format", FORMATS)
@pytest.mark.parametrize("moved", range(5))
def test_a_writer_killed_while_its_complete_set_took_its_place(tmp_path, image_format, moved):
    """The state on disk at each of these moments: the complete set in its folder, some of its files moved."""
    write(tmp_path / "whole", image_format)
    folder = tmp_path / "set"
    with writer(folder, image_format) as target:
        for first in range(0, N, TILE):
            add(target, first)
        target.commit()
    complete = folder / ".unfinished" / "finished"
    (tmp_path / "whole").rename(complete)
    for path in sorted(complete.iterdir(), key=lambda path: (path.name == "manifest.json", path.name))[:moved]:
        path.rename(folder / path.name)
    assert state_of(folder) == "unfinished"
    found = write(folder, image_format)
    if image_format != "none":
        assert np.array_equal(images_of(found), IMAGES)
    assert state_of(folder) == "finished"
    assert not (folder / ".unfinished").exists()


@pytest.mark.parametrize("contents", ['{"name": "an app"}', "[]", "{"])
def test_a_manifest_of_something_else_is_neither_read_nor_removed(tmp_path, contents):
    (tmp_path / "manifest.json").write_text(contents)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError):
        SampleSet.open(tmp_path)
    with pytest.raises(UserError):
        files_of(tmp_path)
    assert (tmp_path / "images").is_dir()


def test_a_newer_format_and_unknown_images_are_refused(tmp_path):
    write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for change, message in (
        ({"format_version": 2}, "newer titokctl"),
        ({"images": "../../etc"}, "images of an unknown kind"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(UserError, match=message):
            SampleSet.open(tmp_path)


@pytest.mark.parametrize(
    ("labels", "classes", "each"),
    [
        (np.arange(50_000) % 1000, [0, 142, 285, 428, 570, 713, 856, 999], 8),
        (np.arange(300) % 30, list(range(30)), 2),
        (np.repeat(np.arange(3), 100), [0, 1, 2], 21),
        (np.full(500, 7), [7], 64),
    ],
    ids=["1,000 classes in turn", "30 classes in turn", "one class after the other", "one class"],
)
def test_the_sheet_shows_every_class_or_some_that_are_spread_over_all(labels, classes, each):
    shown = shown_positions(labels)
    assert (np.diff(shown) > 0).all()
    assert labels[shown[np.argsort(labels[shown], kind="stable")]].tolist() == np.repeat(classes, each).tolist()
    for c in classes:
        assert shown[labels[shown] == c].tolist() == np.flatnonzero(labels == c)[:each].tolist(), "its first images"


@pytest.mark.parametrize(
    "labels",
    [np.full(100, -1), np.arange(100), np.arange(100) // 2 * 0 - 1, np.arange(64), np.arange(5) % 2],
    ids=["no labels", "one image a class", "none at all", "a small set", "a handful"],
)
def test_the_sheet_shows_the_first_images_where_there_are_no_classes_to_show(labels):
    assert shown_positions(labels).tolist() == list(range(min(len(labels), 64)))


@pytest.mark.parametrize("image_format", ["npz", "none"])
def test_the_sheet_of_many_classes_has_a_row_for_each_that_it_shows(tmp_path, image_format):
    count, num_classes = 400, 40
    labels = np.arange(count) % num_classes
    images = np.broadcast_to(labels[:, None, None, None] * 6, (count, SIZE, SIZE, 3)).astype(np.uint8)
    spec = OutputSpec(image_format, SIZE, labels, tuple(f"c{c}" for c in range(num_classes)), None)
    with SampleSetWriter(tmp_path, SETTINGS, spec) as target:
        target.begin()
        target.open()
        for first in np.random.default_rng(0).permutation(np.arange(0, count, TILE)).tolist():
            rows = slice(first, first + TILE)
            kept = None if image_format == "none" else images[rows]
            made = Rows(RANDOM.integers(0, 16, (TILE, 4)), kept, {"shown": images[rows]})
            target.add(first, TILE, lambda made=made: made)
        target.commit()
        target.finish(HEADER, {})
    sheet = pixels_of(tmp_path / "grid.png")
    right = sheet[:, -(8 * (SIZE + 2)) :]
    tops = range(2, len(sheet), SIZE + 4)
    assert [np.unique(right[top, 0::1]).tolist() for top in tops] == [
        [c * 6, 255] for c in (0, 5, 11, 16, 22, 27, 33, 39)
    ]
