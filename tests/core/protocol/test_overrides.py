"""Overrides: limits of the settings, and their stored form."""

import json

import pytest

from edge_agent.core.protocol.commands import CommandParams, CommandRules
from edge_agent.core.protocol.overrides import Overrides

RULES = CommandRules(("door", "hall"))


def test_switches_are_on_by_default():
    overrides = Overrides()
    assert overrides.is_on("door", "crops", RULES)
    off = overrides.with_switch("door", "crops", False).with_switch("door", "detection", False)
    assert not off.is_on("door", "crops", RULES) and off.is_on("hall", "crops", RULES)
    assert off.with_switch("door", "crops", True).is_on("door", "crops", RULES)


def test_no_override_turns_on_what_the_settings_turn_off():
    rules = CommandRules(("door",), crops=False)
    assert not Overrides().with_switch("door", "crops", True).is_on("door", "crops", rules)
    assert Overrides().is_on("door", "detection", rules)


def test_a_threshold_outside_the_bounds_is_dropped():
    narrow = CommandRules(("door",), CommandParams(min_threshold=0.3))
    assert Overrides(0.2).bounded(RULES).threshold == 0.2
    assert Overrides(0.2).bounded(narrow).threshold is None


def test_json_round_trip():
    overrides = Overrides(0.5).with_switch("door", "crops", False).with_switch("hall", "detection", False)
    assert Overrides.from_json(json.loads(json.dumps(overrides.to_json()))) == overrides
    assert Overrides.from_json(json.loads(json.dumps(Overrides().to_json()))) == Overrides()


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"off": []}, {"off": {"door": "crops"}}, {"off": {"door": ["x"]}}, {"threshold": "1", "off": {}},
     {"threshold": True, "off": {}}, {"off": {"door": [1]}}],
)  # fmt: skip
def test_other_values_are_refused(value):
    with pytest.raises(ValueError):
        Overrides.from_json(value)
