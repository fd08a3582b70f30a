"""CITATION.cff is what citation tools read (Citation File Format 1.2.0)."""

from pathlib import Path

import yaml

import titokctl

RECORD = yaml.safe_load((Path(titokctl.__file__).resolve().parents[1] / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_keys_that_the_format_asks_for():
    assert {"cff-version", "message", "title", "authors"} <= RECORD.keys()
    assert RECORD["cff-version"] == "1.2.0"
    assert str(RECORD["version"]) == titokctl.__version__
    for reference in RECORD["references"]:
        assert {"type", "title", "authors"} <= reference.keys()
        assert all({"given-names", "family-names"} == author.keys() for author in reference["authors"])


def test_the_three_papers():
    papers = [reference["url"].rsplit("/")[-1] for reference in RECORD["references"]]
    assert papers == ["2406.07550", "2501.07730", "2202.04200"]
    assert all(r["doi"].endswith(f"arXiv.{paper}") for r, paper in zip(RECORD["references"], papers, strict=True))
