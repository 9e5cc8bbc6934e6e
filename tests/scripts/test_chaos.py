"""A short chaos run; its judge detects every kind of loss."""

import json
import math
from datetime import datetime, timezone
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest

from scripts.lib.chaos.ledger import FPS, Account, Evidence, Life, scene, untrue
from scripts.lib.chaos.run import run, table
from tests.fakes.broker import Heard, needs_mosquitto
from tests.fakes.proxy import Passed

MOSQUITTO_5 = ("broker-kill", "agent-kill", "unheard", "acl", "poison", "oversize")


@pytest.mark.slow
@needs_mosquitto
@pytest.mark.parametrize(
    ("protocol", "faults"), [("5", MOSQUITTO_5), ("3.1.1", ("broker-kill", "blink", "agent-kill"))]
)
def test_nothing_is_lost_through_mosquitto(protocol: str, faults: List[str]) -> None:
    result = run(len(faults), protocol, "mosquitto", seed=7, only=",".join(faults))
    assert not result.faults, table(result)
    assert all(counts["felt"] for counts in result.by_fault.values()), table(result)


@pytest.mark.slow
def test_nothing_is_lost_through_another_broker() -> None:
    pytest.importorskip("iotcore", reason="needs a second broker: pip install iotcore, on Python 3.9 or newer")
    faults = ("broker-kill", "unheard", "agent-kill")
    result = run(len(faults), "3.1.1", "iotcore", seed=7, only=",".join(faults))
    assert not result.faults, table(result)


BEGAN, ORIGIN = 1_000_000.0, 1_000_000.5
TOPIC = "edge-agent/n/a/events"


def faultless(until_s: float) -> List[Dict[str, Any]]:
    """Events of a faultless agent that watches the scene."""
    steps = []
    for number, face in enumerate(scene(0).scripted_faces(until_s)):
        for kind, frame in (("start", math.ceil(face.start_s * FPS)), ("end", math.floor(face.end_s * FPS))):
            steps.append((face.end_s + 0.25 if kind == "end" else face.start_s, number, kind, frame, face))
    bodies = []
    for seq, (_, number, kind, frame, face) in enumerate(sorted(steps, key=lambda step: step[:3]), 1):
        placed = face.at(frame / FPS)
        stamp = datetime.fromtimestamp(ORIGIN + frame / FPS, timezone.utc).isoformat()
        bodies.append({
            "event_id": f"id-{number}", "event_type": kind, "seq": seq, "boot": 1, "camera": "a", "ts": stamp,
            "frame": {"sequence": frame}, "crop": None, "end_reason": "left" if kind == "end" else None,
            "box": {"left": placed.x - 0.1, "right": placed.x + 0.1, "top": placed.y, "bottom": placed.y},
        })  # fmt: skip
    return bodies


def judged(bodies: List[Dict[str, Any]], heard: Optional[List[Dict[str, Any]]] = None) -> Account:
    record = [Passed(BEGAN, 1, TOPIC, json.dumps(body).encode(), 1, False, code=0) for body in bodies]
    seen = [Heard(TOPIC, json.dumps(body).encode(), False, 0, None) for body in (bodies if heard is None else heard)]
    return Account(Evidence({"a": scene(0)}, [Life(BEGAN)]), record, seen, ORIGIN + 6.5)


def test_the_judge_accepts_a_faultless_agent() -> None:
    account = judged(faultless(6.1))
    assert (account.faults, account.missing, account.events) == ([], [], len(faultless(6.1)))


def without(*seqs: int) -> Callable[[List[Dict[str, Any]]], List[Dict[str, Any]]]:
    return lambda bodies: [body for body in bodies if body["seq"] not in seqs]


def renumbered(bodies: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """An agent that renumbers its events over an unreported loss."""
    return [{**body, "seq": seq} for seq, body in enumerate(bodies[4:], 1)]


def gap(first: int, last: int) -> Dict[str, Any]:
    span = {"from_seq": first, "to_seq": last, "count": last - first + 1}
    return {"boot": 1, "camera": "a", "of": "events", "reason": "full", **span}


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("missing without a gap", without(5)),
        ("2 events of the face", renumbered),
        ("2 events of the face", without(36)),
        ("arrived first after", lambda bodies: [*bodies[:3], bodies[4], bodies[3], *bodies[5:]]),
        ("one number, two events", lambda bodies: [*bodies, {**bodies[3], "event_id": "another"}]),
        ("a face that was not there", lambda bodies: [{**bodies[0], "frame": {"sequence": 2}}, *bodies[1:]]),
        ("in no life", lambda bodies: [{**body, "frame": {"sequence": 900}} for body in bodies]),
        ("names a crop that never came", lambda bodies: [{**bodies[0], "crop": {"topic": "x"}}, *bodies[1:]]),
        ("a gap that cannot count", lambda bodies: [*bodies, {**gap(60, 62), "count": 2}]),
    ],
)
def test_the_judge_detects(what: str, change: Callable[[List[Dict[str, Any]]], List[Dict[str, Any]]]) -> None:
    account = judged(change(faultless(6.1)))
    assert any(what in fault for fault in account.faults + account.missing), account.faults + account.missing


def test_the_judge_accepts_a_loss_that_a_gap_accounts_for_and_no_other() -> None:
    lost = [*faultless(6.1)[:4], gap(5, 7), *faultless(6.1)[7:]]
    assert judged(lost).faults + judged(lost).missing == []
    assert judged([*faultless(6.1)[:4], gap(5, 6), *faultless(6.1)[7:]]).faults


def test_the_judge_checks_the_subscriber_too() -> None:
    bodies = faultless(6.1)
    assert any("not received" in fault for fault in judged(bodies, without(9)(bodies)).faults)
    swapped = [*bodies[:3], bodies[4], bodies[3], *bodies[5:]]
    assert any("first received after" in fault for fault in judged(bodies, swapped).faults)
    assert judged(bodies, [*bodies, bodies[3]]).duplicates == 1


def test_the_judge_allows_for_the_rate_limit_of_counts() -> None:
    """The crowd comes one by one within the interval between two counts: only the first is published at once."""
    account = judged(faultless(6.1))
    crowded = [account.truth(ORIGIN + 3.05 + at_s) for at_s in (0.65, 0.85, 0.9, 1.1)]
    assert crowded == [None, None, None, None]
    assert account.truth(ORIGIN + 3.05 + 2.0) == {"a": 1}
    assert account.truth(ORIGIN + 3.05 + 2.9) == {"a": 0}


def quiet(*spans: Tuple[float, float]) -> Callable[[float], Optional[Dict[str, int]]]:
    """A scene whose faces are known only in these spans."""
    return lambda at: {"a": 0} if any(start <= at < end for start, end in spans) else None


@pytest.mark.parametrize(
    ("what", "right_from", "spans", "verdict"),
    [
        ("late by more than a short quiet lasts", 1.2, [(1.0, 1.1), (2.0, 2.6)], []),
        ("late within a long one", 2.1, [(2.0, 2.6)], []),
        ("stuck", math.inf, [(1.0, 1.1), (2.0, 2.6)], ["stuck"]),
        ("never comparable", math.inf, [(1.0, 1.1), (3.0, 3.1)], ["never quiet"]),
    ],
)
def test_the_judge_allows_a_busy_machine_time_but_no_wrong_state(
    what: str, right_from: float, spans: List[Tuple[float, float]], verdict: List[str]
) -> None:
    now = [0.0]

    def compare(faces: Dict[str, int]) -> List[str]:
        now[0] += 0.02
        return [] if now[0] >= right_from else ["stuck"]

    found = untrue(quiet(*spans), compare, lambda: now[0], lambda s: now.__setitem__(0, now[0] + s))
    assert len(found) == len(verdict) and all(word in fault for word, fault in zip(verdict, found)), found
