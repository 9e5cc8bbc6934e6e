"""Documents: every relative link leads to a file and an existing heading; the README stays short."""

import re
import subprocess
from pathlib import Path
from typing import Iterator, List, Set, Tuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_WORDS = 1500
_CODE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)\)")
_HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)


def pages() -> List[Path]:
    """The Markdown pages of the checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout: run the tests from a clone to check the documents")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def links(text: str) -> Iterator[str]:
    """Targets of the links and images of a page, code left out."""
    # A link's text may be code, so spans lose their content and keep their place.
    plain = _SPAN.sub("code", _CODE.sub("", text))
    for found in _LINK.finditer(plain):
        yield found[1]


def anchors(text: str) -> Set[str]:
    """GitHub's anchors of a page's headings."""
    found = set()
    for heading in _HEADING.findall(_CODE.sub("", text)):
        words = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
        found.add(words.strip().replace(" ", "-"))
    return found


def broken(page: Path, text: str) -> List[Tuple[str, str]]:
    """Links of a page that lead nowhere, each with the reason."""
    wrong = []
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists():
            wrong.append((link, "no such file"))
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target.read_text("utf-8"))):
            wrong.append((link, "no such heading"))
    return wrong


def test_every_relative_link_has_a_target() -> None:
    wrong = {str(page.relative_to(ROOT)): found for page in pages() if (found := broken(page, page.read_text("utf-8")))}
    assert not wrong


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# One heading, `code` and more\n")
    page = tmp_path / "page.md"
    text = (
        "[good](other.md#one-heading-code-and-more) ![bad](none.svg) [bad](other.md#two) [out](https://example.org/none)\n"
        "```\n[not a link](none.md)\n```\n`[nor](this.md)` [bad](#here)\n"
    )
    page.write_text(text)
    assert broken(page, text) == [
        ("none.svg", "no such file"),
        ("other.md#two", "no such heading"),
        ("#here", "no such heading"),
    ]


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= MOST_WORDS
