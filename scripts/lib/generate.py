"""Writes the generated files: settings, topics, units, and the tables of measured runs.

scripts/generate            writes those that are stale
scripts/generate --check    writes nothing; exit code 1 when one is stale
"""

import argparse
import sys

from edge_agent.config import docs
from scripts.lib import topics, units
from scripts.lib.bench import readme
from scripts.lib.generated import ROOT, update


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scripts/generate", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a file is stale")
    check = parser.parse_args().check
    stale = docs.main(["--root", str(ROOT), *(["--check"] if check else [])])
    return update({**topics.files(), **units.files(), **readme.files()}, check) or stale


if __name__ == "__main__":
    sys.exit(main())
