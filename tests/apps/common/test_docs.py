"""The pages of docs/: what they link to and name is there, each is in the index, each error code is told of."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tunnel.contract import ERROR_STATUS

ROOT = Path(__file__).resolve().parents[3]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "NOTES.md", *sorted((ROOT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_PATH = re.compile(r"`((?:apps|benchmarks|cloud|deploy|docs|tests|tunnel)/[\w./-]+\.\w+)`")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    return {
        re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in _HEADING.findall(page.read_text())
    }


def broken(page: Path) -> Iterator[str]:
    for link in _LINK.findall(page.read_text()):
        if link.startswith(("http:", "https:")):
            continue
        path, _, fragment = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (fragment and fragment not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_link_leads_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


@pytest.mark.parametrize(
    "page", ["contributing.md", "architecture.md", "fast-lane.md", "proxy.md", "shared-streams.md"]
)
def test_every_file_that_a_page_names_is_there(page: str) -> None:
    named = _PATH.findall((ROOT / "docs" / page).read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_index_has_every_page() -> None:
    listed = set(_LINK.findall((ROOT / "docs" / "README.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= {
        link.partition("#")[0] for link in listed
    }


def test_each_error_code_has_its_row() -> None:
    rows = [line for line in (ROOT / "docs" / "errors.md").read_text().splitlines() if line.startswith("| ")]
    told = {
        (status, code)
        for line in rows
        for status in re.findall(r"\d{3}", line.split("|")[1])
        for code in re.findall(r"`([A-Z_]+)`", line.split("|")[2])
    }
    assert {(str(status), code) for code, status in ERROR_STATUS.items()} <= told
