"""The reference pages name what the code has: environment variables, and pages that the README links to."""

import re
from pathlib import Path

import titokctl

ROOT = Path(titokctl.__file__).resolve().parents[1]
VARIABLE = re.compile(r"\bTITOKCTL_[A-Z0-9_]+\b")


def test_every_variable_is_documented_and_nothing_else():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "titokctl").rglob("*.py"))
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    assert set(VARIABLE.findall(page)) == set(VARIABLE.findall(code))


def test_every_page_is_in_the_index_and_every_link_leads_somewhere():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f"(docs/{page.name})" in readme, f"{page.name} is missing in README.md"
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
