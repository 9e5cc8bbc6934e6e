"""Checks of commands from untrusted senders: accepted, refused with a reason, and never an exception."""

import json
from datetime import timedelta
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.core.protocol.commands import (
    COMMANDS,
    MAX_BYTES,
    REMEMBERED,
    SWITCHES,
    Command,
    CommandGuard,
    CommandParams,
    CommandRules,
    RefusedCommand,
    parse_json,
)
from tests.fakes.clock import FakeClock

RULES = CommandRules(("door", "hall"), CommandParams(restart=True))


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def guard():
    return CommandGuard(RULES)


def ask(guard, clock, name="ping", payload=b"{}", retained=False):
    """Send one request, a second after the previous one."""
    return guard.check_command(name, payload, retained, clock.advance(1))


GOOD = {
    "ping": {},
    "reload": {},
    "republish": {},
    "restart": {"transaction": "t"},
    "set_threshold": {"value": 0.5},
    "snapshot": {"transaction": "t", "camera": "hall"},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_list_passes(guard, clock, name):
    command = ask(guard, clock, name, json.dumps(GOOD[name]).encode())
    assert isinstance(command, Command) and command.name == name
    assert command.transaction == GOOD[name].get("transaction")
    assert guard.accepted == 1 and not guard.refused


def test_a_forgotten_transaction_is_accepted_again(guard, clock):
    payload = b'{"transaction": "t", "camera": "hall"}'
    command = ask(guard, clock, "snapshot", payload)
    assert isinstance(guard.check_command("snapshot", payload, False, clock.advance(1)), RefusedCommand)
    guard.forget(command)
    assert isinstance(guard.check_command("snapshot", payload, False, clock.advance(1)), Command)


def test_clearing_a_retained_command_does_not_run_it(guard, clock):
    assert ask(guard, clock, payload=b"{}") == Command("ping")
    refusal = guard.check_command("ping", b"", False, clock.advance(1))
    assert isinstance(refusal, RefusedCommand) and refusal.reason == "malformed" and "{}" in refusal.error


def test_arguments_are_passed_on(guard, clock):
    assert ask(guard, clock, "set_threshold", b'{"value": 1e-1}').arguments == {"value": 0.1}
    assert ask(guard, clock, "set_threshold", b'{"value": null}').arguments == {"value": None}
    assert ask(guard, clock, "snapshot", b'{"transaction": "a", "camera": "hall"}').camera == "hall"


def test_a_single_camera_is_the_default(clock):
    assert ask(CommandGuard(CommandRules(("door",))), clock, "snapshot", b'{"transaction": "a"}').camera == "door"


REFUSED = {
    "not JSON": ("ping", b"{", "malformed"),
    "no object": ("ping", b"[]", "malformed"),
    "not UTF-8": ("ping", b'{"a": "\xff"}', "malformed"),
    "overlong UTF-8": ("ping", b'{"a": "\xc0\xaf"}', "malformed"),
    "NaN": ("set_threshold", b'{"value": NaN}', "malformed"),
    "infinity": ("set_threshold", b'{"value": -Infinity}', "malformed"),
    "infinite by exponent": ("set_threshold", b'{"value": 1e999}', "malformed"),
    "integer too long": ("set_threshold", b'{"value": ' + b"1" * 21 + b"}", "malformed"),
    "too deep": ("ping", b'{"a": ' + b"[" * 8 + b"]" * 8 + b"}", "malformed"),
    "far too deep": ("ping", b"[" * 4096, "malformed"),
    "key twice": ("set_threshold", b'{"value": 0.5, "value": 0.9}', "malformed"),
    "key twice inside": ("ping", b'{"a": {"b": 1, "b": 2}}', "malformed"),
    "lone surrogate": ("ping", b'{"transaction": "\\ud800"}', "malformed"),
    "two values": ("ping", b"{} {}", "malformed"),
    "byte order mark": ("ping", b"\xef\xbb\xbf{}", "malformed"),
    "too large": ("ping", b'{"a": "' + b"a" * MAX_BYTES + b'"}', "oversized"),
    "unknown command": ("shell", b"{}", "unknown"),
    "unknown field": ("ping", b'{"path": "/etc/passwd"}', "invalid"),
    "transaction no text": ("ping", b'{"transaction": 5}', "invalid"),
    "transaction no topic level": ("ping", b'{"transaction": "a/b"}', "invalid"),
    "transaction too long": ("ping", json.dumps({"transaction": "a" * 65}).encode(), "invalid"),
    "transaction a switch's word": ("ping", b'{"transaction": "state"}', "invalid"),
    "transaction empty": ("ping", b'{"transaction": ""}', "invalid"),
    "restart without transaction": ("restart", b"{}", "invalid"),
    "snapshot without transaction": ("snapshot", b'{"camera": "door"}', "invalid"),
    "snapshot of which camera": ("snapshot", b'{"transaction": "a"}', "invalid"),
    "snapshot of no camera": ("snapshot", b'{"transaction": "a", "camera": "attic"}', "invalid"),
    "snapshot of a list": ("snapshot", b'{"transaction": "a", "camera": ["door"]}', "invalid"),
    "threshold missing": ("set_threshold", b"{}", "invalid"),
    "threshold true": ("set_threshold", b'{"value": true}', "invalid"),
    "threshold text": ("set_threshold", b'{"value": "0.5"}', "invalid"),
    "threshold below": ("set_threshold", b'{"value": 0.04}', "invalid"),
    "threshold above": ("set_threshold", b'{"value": 1}', "invalid"),
    "expires_at no time": ("ping", b'{"expires_at": "tomorrow"}', "invalid"),
    "expires_at a number": ("ping", b'{"expires_at": 1}', "invalid"),
    "expires_at no zone": ("ping", b'{"expires_at": "2999-01-01T00:00:00"}', "invalid"),
    "expires_at no date": ("ping", b'{"expires_at": "2026-02-30T00:00:00Z"}', "invalid"),
    "expires_at out of range": ("ping", b'{"expires_at": "0001-01-01T00:00:00+23:59"}', "invalid"),
    "expired": ("ping", b'{"expires_at": "2020-01-01T00:00:00Z"}', "expired"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_have_a_reason_and_are_counted(guard, clock, case):
    name, payload, reason = REFUSED[case]
    refusal = ask(guard, clock, name, payload)
    assert isinstance(refusal, RefusedCommand), refusal
    assert refusal.reason == reason and refusal.answer and refusal.name in (name, "unknown")
    assert 0 < len(refusal.error) <= 200 and refusal.error.isprintable()
    assert guard.refused == {reason: 1} and guard.accepted == 0


def test_values_at_the_bounds_are_accepted(guard, clock):
    assert parse_json(b'{"a": ' + b"[" * 7 + b"]" * 7 + b"}")
    assert parse_json(b"[" + b"[]," * 20 + b"[[[[[[[]]]]]]]]")
    with pytest.raises(ValueError, match="deeper"):
        parse_json(b"[" + b"[]," * 20 + b"[[[[[[[[]]]]]]]]]")
    assert parse_json(b'{"a":"[[[[[[[[[[\\"[[[[[[["}')
    assert parse_json(b'"' + b"a" * (MAX_BYTES - 2) + b'"')
    assert isinstance(ask(guard, clock, "set_threshold", b'{"value": 0.05}'), Command)
    assert isinstance(ask(guard, clock, "set_threshold", b'{"value": 0.99}'), Command)


def test_a_name_that_is_no_topic_level_is_reported_as_unknown(guard, clock):
    assert ask(guard, clock, "../etc").name == "unknown"
    assert ask(guard, clock, "x" * 70_000).name == "unknown"
    assert ask(guard, clock, "identify").name == "identify"


def test_retained_commands_are_dropped(guard, clock):
    assert ask(guard, clock, retained=True).reason == "retained"
    assert guard.check_switch("door", "detection", b"OFF", True, clock.advance(1)).reason == "retained"


def test_the_transaction_is_echoed_in_a_refusal_when_it_can_be_read(guard, clock):
    assert ask(guard, clock, "set_threshold", b'{"transaction": "t-1", "value": 7}').transaction == "t-1"


def test_a_transaction_is_accepted_once_and_remembered_for_a_while(guard, clock):
    payload = b'{"transaction": "t"}'
    assert isinstance(ask(guard, clock, payload=payload), Command)
    assert ask(guard, clock, "republish", payload).reason == "duplicate"
    for number in range(REMEMBERED):
        assert isinstance(ask(guard, clock, payload=b'{"transaction": "%d"}' % number), Command)
    assert isinstance(ask(guard, clock, payload=payload), Command)


def test_a_refused_transaction_is_accepted_again(guard, clock):
    assert ask(guard, clock, "set_threshold", b'{"transaction": "t", "value": 7}').reason == "invalid"
    assert isinstance(ask(guard, clock, "set_threshold", b'{"transaction": "t", "value": 0.7}'), Command)


def test_a_command_expires_at_expires_at(guard, clock):
    payload = json.dumps({"expires_at": (clock().at + timedelta(seconds=1)).isoformat()}).encode()
    assert ask(guard, clock, payload=payload).reason == "expired"


@pytest.mark.parametrize("form", ["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.%f+00:00"])
def test_expires_at_is_compared_with_the_clock(guard, clock, form):
    soon = (clock().at + timedelta(seconds=10)).strftime(form)
    assert isinstance(ask(guard, clock, payload=json.dumps({"expires_at": soon}).encode()), Command)
    clock.advance(10)
    assert ask(guard, clock, payload=json.dumps({"expires_at": soon}).encode()).reason == "expired"


def test_other_time_zones_are_parsed(guard, clock):
    later = (clock().at + timedelta(hours=2, seconds=30)).strftime("%Y-%m-%dT%H:%M:%S.%f123+02:00")
    assert isinstance(ask(guard, clock, payload=json.dumps({"expires_at": later}).encode()), Command)
    clock.advance(40)
    assert ask(guard, clock, payload=json.dumps({"expires_at": later}).encode()).reason == "expired"


def test_rate_limit_of_commands_and_of_responses(guard, clock):
    now = clock()
    results = [guard.check_command("ping", b"{}", False, now) for _ in range(100)]
    assert sum(isinstance(checked, Command) for checked in results) == 5
    refusals = [checked for checked in results if isinstance(checked, RefusedCommand)]
    assert {refusal.reason for refusal in refusals} == {"flooded"}
    assert sum(refusal.answer for refusal in refusals) == 5
    assert guard.refused["flooded"] == 95
    assert isinstance(guard.check_command("ping", b"{}", False, clock.advance(0.21)), Command)
    assert guard.check_switch("door", "crops", b"ON", False, clock()).reason == "flooded"


def test_the_rate_limit_has_a_burst_of_one_second(guard, clock):
    clock.advance(3600)
    guard.check_command("ping", b"{}", False, clock())
    now = clock.advance(3600)
    assert sum(isinstance(guard.check_command("ping", b"{}", False, now), Command) for _ in range(100)) == 5


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("payload", [b"ON", b"OFF"])
def test_switches(guard, clock, name, payload):
    assert guard.check_switch("hall", name, payload, False, clock()) == Command(
        name, camera="hall", arguments={"on": payload == b"ON"}
    )


@pytest.mark.parametrize("payload", [b"", b"on", b"ON\n", b"1", b"\xff", b"ON" * 4096])
def test_a_switch_accepts_only_on_and_off(guard, clock, payload):
    assert guard.check_switch("hall", "crops", payload, False, clock()).reason == "malformed"


def test_unknown_switches(guard, clock):
    assert guard.check_switch("attic", "crops", b"ON", False, clock()).reason == "unknown"
    assert guard.check_switch("door", "power", b"ON", False, clock()).reason == "unknown"


def test_commands_cannot_enable_what_the_settings_disable(clock):
    guard = CommandGuard(CommandRules(("door",), CommandParams(restart=False), crops=False, snapshots=False))
    assert guard.check_switch("door", "crops", b"ON", False, clock()).reason == "forbidden"
    assert isinstance(guard.check_switch("door", "crops", b"OFF", False, clock()), Command)
    assert ask(guard, clock, "snapshot", b'{"transaction": "a"}').reason == "forbidden"
    assert ask(guard, clock, "restart", b'{"transaction": "b"}').reason == "forbidden"


def test_the_settings_bound_the_threshold(clock):
    guard = CommandGuard(CommandRules(("door",), CommandParams(min_threshold=0.3, max_threshold=0.6)))
    assert ask(guard, clock, "set_threshold", b'{"value": 0.29}').reason == "invalid"
    assert isinstance(ask(guard, clock, "set_threshold", b'{"value": 0.3}'), Command)


KEYS = st.sampled_from(["transaction", "value", "camera", "expires_at", "x"]) | st.text()
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12)
NAMES = st.sampled_from([*COMMANDS, *SWITCHES, "unknown"]) | st.text()


def check_both(guard, clock, name, payload):
    """Properties of the result for any input."""
    for checked in (
        guard.check_command(name, payload, False, clock.advance(1)),
        guard.check_switch("door", name, payload, False, clock.advance(1)),
    ):
        assert isinstance(checked, (Command, RefusedCommand))
        answer = json.dumps(vars(checked), default=dict, ensure_ascii=False, allow_nan=False).encode("utf-8")
        assert len(answer) < 1024


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(NAMES, st.binary(max_size=200) | JSON.map(lambda v: json.dumps(v).encode())), max_size=40))
def test_the_guard_raises_nothing(requests):
    guard, clock = CommandGuard(RULES), FakeClock()
    for name, payload in requests:
        check_both(guard, clock, name, payload)
    assert guard.accepted + sum(guard.refused.values()) == 2 * len(requests)


SEEDS = [
    *(json.dumps(fields).encode() for fields in GOOD.values()),
    *(payload for _, payload, _ in REFUSED.values()),
    b'{"transaction":"a","expires_at":"2999-01-01T00:00:00.5+01:00","value":1e-5,"x":{"a":[1,{"b":"\\u00e9\\ud83d"}]}}',
]


def mutated(random):
    """A valid payload with one to four small mutations."""
    payload = bytearray(random.choice(SEEDS))
    for _ in range(random.randint(1, 4)):
        at = random.randint(0, len(payload))
        step = random.randrange(5)
        if step == 0:
            payload[at:at] = bytes([random.randrange(256)])
        elif step == 1:
            del payload[at : at + random.randint(1, 8)]
        elif step == 2:
            payload[at : at + 1] = random.choice([b'"', b"{", b"}", b"[", b"\\", b"\\u", b"9" * 30, b"NaN", b"e9999"])
        elif step == 3:
            payload += payload[at : at + 50]
        else:
            other = random.choice(SEEDS)
            payload[at:] = other[random.randint(0, len(other)) :]
    return bytes(payload)


@pytest.mark.slow
def test_a_hundred_thousand_mutated_commands_raise_nothing():
    random, guard, clock = Random(1), CommandGuard(RULES), FakeClock()
    names = [*COMMANDS, "unknown", "", "\ud800", "a/b"]
    longest = 0
    for _ in range(100_000):
        checked = guard.check_command(random.choice(names), mutated(random), False, clock.advance(1))
        if isinstance(checked, RefusedCommand):
            longest = max(longest, len(checked.name) + len(checked.error) + len(checked.transaction or ""))
    assert longest < 300
    assert guard.accepted + sum(guard.refused.values()) == 100_000
    assert guard.accepted > 300
    assert set(guard.refused) == {"malformed", "oversized", "unknown", "invalid", "duplicate", "expired"}
