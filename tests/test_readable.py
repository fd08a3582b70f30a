"""Numbers and JSON values as text."""

import pytest

from titokctl.readable import counted, duration, first_few, readable, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7800, "2 h 10 min"),
        (4 * 86400 + 3 * 3600, "4 d 3 h"),
    ],
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("n", "unit", "text"), [(1200, "images", "1,200 images"), (1, "images", "1 image"), (1, "processes", "1 process")]
)
def test_one_is_singular(n, unit, text):
    assert counted(n, unit) == text


@pytest.mark.parametrize(("num_bytes", "text"), [(812, "812 B"), (3400, "3.4 kB"), (1.2e9, "1.2 GB")])
def test_sizes_have_decimal_units(num_bytes, text):
    assert size(num_bytes) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (None, "-"),
        (12345, "12,345"),
        (0.123456789, "0.12346"),
        (1e-4, "0.0001"),
        (26240.5, "26,240.5"),
        ([], "none"),
        ([1, "a"], "1, a"),
        ({"rows": 3, "views": ["flip"]}, "rows: 3, views: flip"),
    ],
)
def test_json_values_are_text(value, text):
    assert readable(value) == text


def test_long_lists_are_cut():
    assert readable({"rows": [5, 6, 7, 8]}, shown=2) == "rows: 5, 6 and 2 more"


@pytest.mark.parametrize(
    ("parts", "separator", "text"),
    [
        ("ab", ", ", "a, b"),
        ("abc", ", ", "a, b and 1 more"),
        ("a" * 1202, "; ", "a; a; and 1,200 more"),
        ("", ", ", ""),
    ],
)
def test_lists_of_names_say_how_many_more_there_are(parts, separator, text):
    assert first_few(list(parts), 2, separator) == text


def test_seeds_and_rows_have_no_commas():
    assert readable([123456], commas=False) == "123456"
