"""The tables of measured runs in Markdown pages, between the comments that name their JSON files."""

import json
import re
from typing import Dict

from scripts.lib.bench.report import page
from scripts.lib.generated import ROOT

PAGES = ("README.md", "scripts/lib/bench/README.md")
_BLOCK = re.compile(r"(<!-- scripts/bench --table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(text: str) -> str:
    """The same page with the current table of each block's JSON file."""

    def block(found: "re.Match[str]") -> str:
        return found[1] + "\n".join(page(json.loads((ROOT / found[2]).read_text("utf-8")))) + "\n" + found[3]

    return _BLOCK.sub(block, text)


def files() -> Dict[str, str]:
    """Texts of the pages that have tables, by path."""
    found = {name: (ROOT / name).read_text("utf-8") for name in PAGES if (ROOT / name).is_file()}
    return {name: renewed(text) for name, text in found.items() if _BLOCK.search(text)}
