"""Which image gets which label, and which images are drawn together."""

import pytest
import torch

from titokctl.errors import UsageError
from titokctl.sampling.plan import Plan, classes_of, parse_classes, unlearnt


def test_labels_cycle_through_the_classes():
    plan = Plan(7, (4, 0, 2), 16)
    assert plan.labels(torch.arange(7)).tolist() == [4, 0, 2, 4, 0, 2, 4]
    assert plan.labels(torch.tensor([6, 1])).tolist() == [4, 0]
    assert Plan(7, None, 16).labels(torch.arange(7)) is None


@pytest.mark.parametrize("n", [1, 15, 16, 17, 50])
def test_tiles_hold_every_image_once_and_have_one_size(n):
    tiles = Plan(n, None, 16).tiles()
    assert [i for t in tiles for i in range(t.first, t.first + t.count)] == list(range(n))
    assert all(t.first % 16 == 0 and len(t.image_indices()) == 16 for t in tiles)
    assert all(t.image_indices()[0] == t.first for t in tiles)


def test_classes_as_people_write_them():
    assert parse_classes("207, 360") == (207, 360)
    assert parse_classes("0-3,7") == (0, 1, 2, 3, 7)
    assert parse_classes(None) is None
    assert classes_of(None, 3) == classes_of(parse_classes("all"), 3) == (0, 1, 2)
    assert classes_of(parse_classes("none"), 3) is None, "the null label for every image"
    assert classes_of((2, 0), 3) == (2, 0)
    assert classes_of(None, 0) is None


def test_classes_by_name():
    names = ["blue-cone", "red-ball", "7"]
    assert parse_classes("red-ball, 0") == ("red-ball", 0)
    assert classes_of(("red-ball", 0), 3, names) == (1, 0)
    assert classes_of(("blue-cone",) * 3, 3, names) == (0, 0, 0), "from Python, a class may come several times"
    with pytest.raises(UsageError, match="names 1 twice"):
        classes_of(("red-ball", 1), 3, names)
    with pytest.raises(UsageError, match="no class named 'red-bal'") as caught:
        classes_of(("red-bal",), 3, names)
    assert "red-ball" in caught.value.hint
    with pytest.raises(UsageError, match="records no class names"):
        classes_of(("cat",), 3)


def test_only_classes_with_rows_are_drawn_by_default():
    rows = [4, 0, 1, 0]
    assert classes_of(None, 4, (), rows) == (0, 2)
    assert classes_of(None, 6, (), rows) == (0, 2), "classes beyond the counts had no rows"
    assert classes_of("all", 4, (), rows) == (0, 1, 2, 3)
    assert classes_of((1,), 4, (), rows) == (1,)
    assert unlearnt((1, 2, 5), rows) == [1, 5]
    assert unlearnt((1, 2, 5), ()) == [], "nothing is known"


def test_a_name_of_two_classes_is_refused():
    names = ["crane", "cat", "crane"]
    with pytest.raises(UsageError, match="2 classes are named 'crane'") as caught:
        classes_of(("crane",), 3, names)
    assert "0 or 2" in caught.value.hint
    assert classes_of((2, "cat"), 3, names) == (2, 1)


@pytest.mark.parametrize("text", ["5-3", "0-999999999"])
def test_ranges_that_are_none(text):
    with pytest.raises(UsageError, match="not a range of classes"):
        parse_classes(text)


@pytest.mark.parametrize("text", ["1,,2", "", "cat,"])
def test_what_is_no_list_of_classes(text):
    with pytest.raises(UsageError, match="empty entry"):
        parse_classes(text)


@pytest.mark.parametrize("text", ["-1", "1.5", "1;2", "²"])
def test_what_is_neither_number_nor_name(text):
    with pytest.raises(UsageError, match="no class named"):
        classes_of(parse_classes(text), 3, ["ant", "bee", "cat"])


def test_classes_that_cannot_be_drawn():
    with pytest.raises(UsageError, match="names 3 twice"):
        parse_classes("3,1,3")
    with pytest.raises(UsageError, match=r"class 3 is out of range.*0 to 2"):
        classes_of((0, 3), 3)
    with pytest.raises(UsageError, match="trained without classes"):
        classes_of((0,), 0)
