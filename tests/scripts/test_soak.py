"""A short soak run; its judge detects every kind of fault."""

import json
from typing import Any, Dict, Sequence

import pytest

from scripts.lib.soak.faults import Blind
from scripts.lib.soak.faulty import judge, run_faulty, table
from scripts.lib.soak.ledger import Ledger
from tests.fakes.broker import needs_mosquitto
from tests.fakes.proxy import Passed


@needs_mosquitto
def test_faults_at_random_leave_nothing_behind(tmp_path) -> None:
    result = run_faulty(3_000, 30.0, 400.0, seed=3, plot_path=tmp_path / "soak.png", quiet_s=1.0)
    assert not result["faults"], table(result) + result["log"][-3000:]
    assert result["struck"] and (tmp_path / "soak.png").stat().st_size > 1000


def event(seq: int, kind: str = "start", frame: int = 0) -> Dict[str, Any]:
    stamp = f"2026-01-01T00:00:{frame / 10:09.6f}Z"
    return {"seq": seq, "event_type": kind, "ts": stamp, "frame": {"sequence": frame}}


def ledger_of(*bodies: Dict[str, Any], presence: Sequence[Any] = ()) -> Ledger:
    ledger = Ledger("b/n", ("a",), 10.0)
    record = [Passed(0.0, 1, "b/n/a/events", json.dumps(body).encode(), 1, False, code=0) for body in bodies]
    record += [Passed(t, 1, "b/n/a/presence", payload, 1, True, code=0) for t, payload in presence]
    ledger.take(record)
    assert record == []
    return ledger


@pytest.mark.parametrize(
    ("bodies", "holes", "disordered"),
    [
        ([event(1), event(2), event(3)], 0, 0),
        ([event(1), event(2), event(2), event(3)], 0, 0),
        ([event(1), event(3)], 1, 0),
        ([event(1), {"from_seq": 2, "to_seq": 4, "count": 3, "reason": "full"}, event(5)], 0, 0),
        ([event(2), event(1)], 0, 1),
    ],
)
def test_events_have_to_add_up(bodies: Any, holes: int, disordered: int) -> None:
    account = ledger_of(*bodies).account("a")
    assert (account.holes, account.disordered) == (holes, disordered)


def test_off_while_blind_is_an_error() -> None:
    began = 1767225600.0
    ledger = ledger_of(
        *(event(n, frame=n) for n in range(1, 6)), presence=[(began + 14.0, b"OFF"), (began + 19.0, b"None")]
    )
    assert ledger.false_off("a", [Blind("dark", 11.0, 20.0)])
    assert not ledger.false_off("a", [Blind("dark", 13.0, 20.0)]), "not proven yet"
    assert not ledger.false_off("a", [Blind("dark", 15.0, 25.0)]), "it was still light"


def test_growth_is_seen() -> None:
    rows = [
        {"t_s": t, "frames": t, "quiet": t < 5, "rss_mb": 50 + t, "fds": 10 + (t > 90), "threads": 9, "db_kb": 9000}
        for t in range(100)
    ]
    result = {
        "rows": rows, "untrue": [], "accounts": {}, "health": {}, "blind": {"dark": 2}, "reported_blind": {"dark": 1},
        "log": "", "struck": {"reload-valid": 1}, "stop_s": 0.1, "exit_code": 0,
    }  # fmt: skip
    verdict = " ".join(judge(result))
    for word in ("fds: 11", "memory grew", "outbox's files", "dark: 2 windows", "reload-valid"):
        assert word in verdict
