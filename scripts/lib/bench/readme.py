"""Writes the tables of measured runs into README.md, between the marks that name them; `--check` only tells whether
they are stale (exit code 1).
"""

import json
import re
import sys
from pathlib import Path

from scripts.lib.bench.report import page

ROOT = Path(__file__).resolve().parents[3]
_BLOCK = re.compile(r"(<!-- scripts/bench --table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def renewed(text: str) -> str:
    """The same page with every block as its JSON file has it now."""

    def block(found: "re.Match[str]") -> str:
        return found[1] + "\n".join(page(json.loads((ROOT / found[2]).read_text("utf-8")))) + "\n" + found[3]

    return _BLOCK.sub(block, text)


def main() -> int:
    """The command line."""
    path = ROOT / "README.md"
    text = path.read_text("utf-8")
    new = renewed(text)
    if new != text and "--check" in sys.argv[1:]:
        print("README.md is stale: run scripts/generate", file=sys.stderr)
        return 1
    path.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
