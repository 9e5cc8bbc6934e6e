"""Configuration of all tests: marks by folder, and a summary of skipped tests.

Shared test code lives in `tests/fakes` and is imported by that name.
"""

import signal
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any, Iterator, List

import pytest

# A shell that starts this in the background has SIGINT ignored, and so would every program that a test interrupts:
# an ignored signal is inherited, a handled one is not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
LANES = tuple(TESTS / "system" / name for name in ("deb", "lane", "vm"))
WHOLE_AGENT = TESTS / "app"


def pytest_collection_modifyitems(items: List[pytest.Item]) -> None:
    """Mark tests by their folder; skip what needs a broker where there is none."""
    for item in items:
        if WHOLE_AGENT in item.path.parents:
            item.add_marker("slow")
        if any(lane in item.path.parents for lane in LANES):
            item.add_marker("system")
        if item.get_closest_marker("broker"):
            from tests.fakes.broker import MOSQUITTO

            if MOSQUITTO is None:
                item.add_marker(pytest.mark.skip(reason="needs a broker: apt-get install mosquitto"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> Iterator[None]:
    """Print which tests were skipped, why, and what would enable them."""
    yield
    reasons = Counter(reason_of(report) for report in terminalreporter.stats.get("skipped", []))
    lines = [f"{count:5} x {reason}" for reason, count in reasons.most_common()]
    if config.option.markexpr:
        lines.append(f'Only tests with the marks "{config.option.markexpr}" were selected; scripts/test runs all.')
    if not lines:
        return
    terminalreporter.section("not run")
    for line in lines:
        terminalreporter.write_line(textwrap.fill(line, 118, subsequent_indent=" " * 8))


def reason_of(report: Any) -> str:
    """The reason that a skipped test gave."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return str(reason).replace("Skipped: ", "", 1)
