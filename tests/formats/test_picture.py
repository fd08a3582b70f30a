"""Grids and labelled rows: every pixel in its position, and files complete or absent."""

import numpy as np
import pytest
from PIL import Image

from titokctl.formats.picture import grid, labelled_rows, save_class_grid, save_png


def tiles(n: int, height: int = 8, width: int = 6) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 200, (n, height, width, 3), dtype=np.uint8)


def test_images_are_in_rows_from_left_to_right():
    images = tiles(5)
    picture = grid(images, columns=3, pad=2)
    assert picture.shape == (2 * 10 + 2, 3 * 8 + 2, 3)
    for i, image in enumerate(images):
        y, x = 2 + i // 3 * 10, 2 + i % 3 * 8
        assert np.array_equal(picture[y : y + 8, x : x + 6], image)
    assert (picture[12:, 2 + 2 * 8 :] == 255).all()
    assert (picture[:2] == 255).all()


def test_rows_have_their_text_on_the_left():
    rows = [("tall", tiles(3, 30, 10)), ("a longer name", tiles(2, 20, 16))]
    picture = labelled_rows(rows)
    assert picture.shape[0] == 34 + 24
    for (_, images), top, width in ((rows[0], 0, 38), (rows[1], 34, 38)):
        strip = grid(images, len(images))
        left = next(x for x in range(picture.shape[1]) if np.array_equal(
            picture[top : top + len(strip), x : x + strip.shape[1]], strip))  # fmt: skip
        text = picture[top : top + len(strip), :left]
        assert (text < 128).any()
        assert strip.shape[1] == width


def test_different_texts_look_different():
    images = tiles(1, 24, 24)
    a, b = labelled_rows([("asia", images)]), labelled_rows([("africa", images)])
    assert a.shape != b.shape or not np.array_equal(a, b)


def test_a_saved_picture_reads_back_and_leaves_no_other_file(tmp_path):
    picture = grid(tiles(4), 2)
    save_png(tmp_path / "a.png", picture)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), picture)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)]
)
def test_anything_but_bytes_is_refused(bad):
    with pytest.raises(ValueError, match="uint8, not"):
        grid(bad, 2)
    with pytest.raises(ValueError, match="no rows"):
        labelled_rows([])


def test_a_row_for_each_class_where_classes_repeat(tmp_path):
    images = np.zeros((6, 20, 20, 3), np.uint8)
    save_class_grid(tmp_path / "rows.png", images, np.array([0, 2, 0, 2, 0, 2]), ["ant", "bee", "cat"])
    save_class_grid(tmp_path / "plain.png", images, np.arange(6), ())
    save_class_grid(tmp_path / "none.png", images, np.full(6, -1), ())
    sizes = []
    for name in ("rows", "plain", "none"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            sizes.append(picture.size)
    rows, plain, none = sizes
    assert rows[1] < plain[1] + 4
    assert rows[0] > 3 * 20 + 20, "three images and a name"
    assert plain == none


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Grüße aus Köln", "Grusse aus Koln"),
        ("Gru\u0308\u00dfe", "Grusse"),  # as macOS decomposes names
        ("Łódź, smørrebrød, Ærø", "Lodz, smorrebrod, AEro"),
        ("naïve & co.", "naive & co."),
        ("鳥 bird", "? bird"),
    ],
)
def test_names_with_accents_are_drawn_as_letters(name, shown):
    """Pillow's own font has few of them, and draws the same box for all others."""
    images = np.zeros((1, 40, 40, 3), np.uint8)
    assert (labelled_rows([(name, images)]) == labelled_rows([(shown, images)])).all()


def test_a_name_without_a_letter_that_can_be_drawn_is_its_number(tmp_path):
    images, labels = np.zeros((4, 16, 16, 3), np.uint8), np.array([0, 0, 1, 1])
    for file, names in (("a.png", ["鳥", "猫"]), ("b.png", ["class 0", "class 1"])):
        save_class_grid(tmp_path / file, images, labels, names)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
