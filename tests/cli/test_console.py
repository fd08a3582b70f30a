"""Tables and JSON on stdout."""

import json

from titokctl.cli import console


def test_tables_align_numbers_and_keep_brackets(capsys):
    console.table("scores", ("name", "value"), [("a[b]", 1), ("long name", "12.5")], note="lower is better")
    shown = capsys.readouterr()
    assert shown.err == ""
    lines = [line.rstrip() for line in shown.out.splitlines() if line.strip()]
    assert lines[0].strip() == "scores"
    assert lines[-1].strip() == "lower is better"
    first, second = (next(line for line in lines if name in line) for name in ("a[b]", "long name"))
    assert first.index("a") == second.index("l")
    assert len(first) == len(second)  # both end with their number
    assert "\x1b" not in shown.out


def test_pairs_are_printed_a_line_each(capsys):
    console.pairs("cache", {"rows": 3, "path": "/a/[b]"})
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines() if line.strip()] == [["cache"], ["rows", "3"], ["path", "/a/[b]"]]


def test_json_keeps_unicode_and_has_paths_as_strings(capsys, tmp_path):
    console.emit_json({"path": tmp_path, "name": "ü"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"path": str(tmp_path), "name": "ü"}
    assert "ü" in out


def test_long_cells_are_folded_not_cut(capsys):
    console.table("", ("name",), [("x" * 300,)])
    assert capsys.readouterr().out.count("x") == 300
