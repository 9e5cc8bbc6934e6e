"""Checks commands from the broker before they are run, and parses their JSON.

A command is `B/request/<name>` with a JSON object, or `C/<switch>/set` with ON or OFF. The check of an invalid one
returns a `RefusedCommand` and raises nothing.
"""

import json
import math
import re
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, NoReturn, Optional, Tuple, Union
from typing import Counter as CounterType

from edge_agent.core.params import param
from edge_agent.core.protocol.topics import ID
from edge_agent.core.types import Crop, Moment

SWITCHES = ("detection", "crops")
# A snapshot is published on C/crops/<transaction>, beside the switch's own `set` and `state`.
TRANSACTION = re.compile(r"(?!(?:set|state)$)[A-Za-z0-9._:-]{1,64}")
"""Valid transactions; each may be a topic level."""
RATE_PER_S = 5.0
REMEMBERED = 256
"""Transactions that are kept to detect duplicates."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,6})\d{0,3})?(Z|[+-]\d\d:\d\d)", re.ASCII)


@dataclass(frozen=True)
class CommandParams:
    """Commands over MQTT."""

    enabled: bool = param(
        True, "Accept commands and switches from the broker; off: they are not subscribed", restart=True
    )
    restart: bool = param(False, "Accept the restart command, which stops the agent so that systemd starts it again")
    min_threshold: float = param(0.05, "Lowest detection threshold that a command may set", ge=0.01, le=0.99)
    max_threshold: float = param(0.99, "Highest detection threshold that a command may set", ge=0.01, le=0.99)


@dataclass(frozen=True)
class CommandRules:
    """What the settings allow.

    Attributes:
        cameras: Camera ids.
        params: Bounds, and whether the restart command is accepted.
        crops: False when the settings turn crops off; no command turns them on then.
        snapshots: False when the settings forbid snapshots.
    """

    cameras: Tuple[str, ...]
    params: CommandParams = CommandParams()
    crops: bool = True
    snapshots: bool = True


@dataclass(frozen=True)
class Command:
    """An accepted command.

    Attributes:
        name: One of `COMMANDS` or `SWITCHES`.
        transaction: The sender's id for the response; None when the sender gave none.
        camera: Camera of a switch or snapshot; None for the whole agent.
        arguments: Checked arguments.
    """

    name: str
    transaction: Optional[str] = None
    camera: Optional[str] = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CommandResult:
    """Result of a command, from the thread that ran it.

    Attributes:
        error: Why it failed; None on success.
        result: Fields for the response.
        crop: Image of a snapshot.
    """

    command: Command
    error: Optional[str] = None
    result: Mapping[str, Any] = field(default_factory=dict)
    crop: Optional[Crop] = None


@dataclass(frozen=True)
class RefusedCommand:
    """A refused command.

    Attributes:
        name: Name of the command; "unknown" when it is no valid topic level.
        reason: Kind of refusal; refusals are counted by it.
        error: Text for the response.
        transaction: The sender's id, if it could be read.
        answer: False when too many commands were refused lately to respond to this one.
    """

    name: str
    reason: str
    error: str
    transaction: Optional[str] = None
    answer: bool = True


CheckedCommand = Union[Command, RefusedCommand]


class TokenBucket:
    """Rate limit with a burst of `rate_per_s`.

    Args:
        rate_per_s: Tokens added per second, and capacity.
    """

    def __init__(self, rate_per_s: float = RATE_PER_S) -> None:
        self._rate_per_s = self._tokens = rate_per_s
        self._filled_t: Optional[float] = None

    def take(self, t: float) -> bool:
        """Take a token at `t`, monotonic seconds; False when there is none."""
        if self._filled_t is not None:
            self._tokens = min(self._rate_per_s, self._tokens + max(0.0, t - self._filled_t) * self._rate_per_s)
        self._filled_t = t
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class _Refused(Exception):
    def __init__(self, reason: str, error: str) -> None:
        super().__init__(error)
        self.reason, self.error = reason, error


class CommandGuard:
    """Checks commands in the order of their arrival, by schema, rate and known transactions.

    Args:
        rules: What the settings allow; may be replaced at any time.

    Attributes:
        accepted: Number of accepted commands.
        refused: Refusals by reason.
    """

    def __init__(self, rules: CommandRules) -> None:
        self.rules = rules
        self.accepted = 0
        self.refused: CounterType[str] = Counter()
        self._commands, self._answers = TokenBucket(), TokenBucket()
        self._seen: OrderedDict[str, None] = OrderedDict()

    def check_command(self, name: str, payload: bytes, retained: bool, now: Moment) -> CheckedCommand:
        """Check a message on `B/request/<name>`."""
        known = name if ID.fullmatch(name) else "unknown"
        transaction = None
        try:
            self._admit(retained, now)
            if name not in _SCHEMAS:
                raise _Refused("unknown", f"unknown command; expected one of {', '.join(COMMANDS)}")
            fields = _parse_fields(payload)
            transaction = _pop_transaction(fields)
            self._check_fresh(transaction, fields.pop("expires_at", None), now)
            command = self._check_fields(name, transaction, fields)
        except _Refused as refused:
            return self._refuse(known, refused, transaction, now)
        return self._accept(command)

    def check_switch(self, camera: str, name: str, payload: bytes, retained: bool, now: Moment) -> CheckedCommand:
        """Check a message on `C/<switch>/set`."""
        known = name if ID.fullmatch(name) else "unknown"
        try:
            self._admit(retained, now)
            if name not in SWITCHES or camera not in self.rules.cameras:
                raise _Refused("unknown", f"no such switch; expected one of {', '.join(SWITCHES)} of a camera")
            if payload not in (b"ON", b"OFF"):
                raise _Refused("malformed", "expected ON or OFF")
            if name == "crops" and payload == b"ON" and not self.rules.crops:
                raise _Refused("forbidden", "crops are turned off in the settings")
        except _Refused as refused:
            return self._refuse(known, refused, None, now)
        return self._accept(Command(name, camera=camera, arguments={"on": payload == b"ON"}))

    def forget(self, command: Command) -> None:
        """Accept the transaction of a command again that could not be run."""
        if command.transaction is not None:
            self._seen.pop(command.transaction, None)

    def _admit(self, retained: bool, now: Moment) -> None:
        """The cheap checks, before parsing."""
        if retained:
            raise _Refused("retained", "commands must not be retained")
        if not self._commands.take(now.t):
            raise _Refused("flooded", f"more than {RATE_PER_S:g} commands a second")

    def _check_fresh(self, transaction: Optional[str], expires_at: Any, now: Moment) -> None:
        if transaction is not None and transaction in self._seen:
            raise _Refused("duplicate", "this transaction was used already")
        if expires_at is None:
            return
        until = _parse_time(expires_at)
        if until is None:
            raise _Refused("invalid", "expires_at: expected RFC 3339, such as 2026-11-22T17:05:12Z")
        if now.at >= until:
            raise _Refused("expired", "expires_at is in the past")

    def _check_fields(self, name: str, transaction: Optional[str], fields: Dict[str, Any]) -> Command:
        schema = _SCHEMAS[name]
        unknown = sorted(set(fields) - schema.arguments)
        if unknown:
            raise _Refused("invalid", f"unknown field {ascii(unknown[0])[:40]}")
        if schema.needs_transaction and transaction is None:
            raise _Refused("invalid", "transaction: expected one, since this command is not idempotent")
        camera, arguments = schema.check(fields, self.rules)
        return Command(name, transaction, camera, arguments)

    def _accept(self, command: Command) -> Command:
        self.accepted += 1
        if command.transaction is not None:
            self._seen[command.transaction] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        return command

    def _refuse(self, name: str, refused: _Refused, transaction: Optional[str], now: Moment) -> RefusedCommand:
        self.refused[refused.reason] += 1
        return RefusedCommand(name, refused.reason, refused.error, transaction, self._answers.take(now.t))


def _parse_fields(payload: bytes) -> Dict[str, Any]:
    if not payload:
        # Clearing a retained command sends an empty message, which must not run it.
        raise _Refused("malformed", "payload: empty; a command without arguments is {}")
    try:
        value = parse_json(payload)
    except ValueError as error:
        reason = "oversized" if len(payload) > MAX_BYTES else "malformed"
        raise _Refused(reason, f"payload: {error}") from None
    if not isinstance(value, dict):
        raise _Refused("malformed", "payload: expected a JSON object")
    return value


def _pop_transaction(fields: Dict[str, Any]) -> Optional[str]:
    value = fields.pop("transaction", None)
    if value is None or (isinstance(value, str) and TRANSACTION.fullmatch(value)):
        return value
    raise _Refused("invalid", "transaction: expected 1 to 64 letters, digits, '.', '_', ':' or '-'")


def _parse_time(value: Any) -> Optional[datetime]:
    found = _TIME.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    seconds, fraction, zone = found.groups()
    zone = "+00:00" if zone == "Z" else zone
    try:
        return datetime.fromisoformat(f"{seconds}.{fraction or '0':0<6}{zone}").astimezone(timezone.utc)
    except (ValueError, OverflowError):
        return None


_Checked = Tuple[Optional[str], Mapping[str, Any]]


@dataclass(frozen=True)
class _Schema:
    check: Callable[[Mapping[str, Any], CommandRules], _Checked]
    arguments: FrozenSet[str] = frozenset()
    needs_transaction: bool = False


def _no_arguments(fields: Mapping[str, Any], rules: CommandRules) -> _Checked:
    return None, {}


def _restart(fields: Mapping[str, Any], rules: CommandRules) -> _Checked:
    if not rules.params.restart:
        raise _Refused("forbidden", "restart is turned off in the settings")
    return None, {}


def _snapshot(fields: Mapping[str, Any], rules: CommandRules) -> _Checked:
    if not rules.snapshots:
        raise _Refused("forbidden", "the settings forbid snapshots (crops.enabled, crops.privacy)")
    camera = fields.get("camera", rules.cameras[0] if len(rules.cameras) == 1 else None)
    if not isinstance(camera, str) or camera not in rules.cameras:
        raise _Refused("invalid", f"camera: expected one of {', '.join(rules.cameras)}")
    return camera, {}


def _set_threshold(fields: Mapping[str, Any], rules: CommandRules) -> _Checked:
    low, high = rules.params.min_threshold, rules.params.max_threshold
    value = fields.get("value", "")
    if value is None:
        return None, {"value": None}
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise _Refused("invalid", f"value: expected a number from {low:g} to {high:g}, or null for the setting")
    return None, {"value": float(value)}


_SCHEMAS: Mapping[str, _Schema] = {
    "ping": _Schema(_no_arguments),
    "snapshot": _Schema(_snapshot, frozenset({"camera"}), needs_transaction=True),
    "reload": _Schema(_no_arguments),
    "set_threshold": _Schema(_set_threshold, frozenset({"value"})),
    "republish": _Schema(_no_arguments),
    "restart": _Schema(_restart, needs_transaction=True),
}
COMMANDS: Tuple[str, ...] = tuple(_SCHEMAS)


# JSON from untrusted senders: small, shallow, finite and unambiguous. Errors repeat nothing of the payload.

MAX_BYTES = 4096
MAX_DEPTH = 8
MAX_DIGITS = 20
"""Python 3.8 converts integers of any length, in quadratic time."""


def parse_json(payload: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """Parse JSON; strings in the value are valid Unicode, numbers finite.

    Raises:
        ValueError: Too large, not UTF-8, not JSON, too deep, a duplicate key, NaN or infinity, a number too long.
    """
    if len(payload) > max_bytes:
        raise ValueError(f"larger than {max_bytes} bytes")
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if _depth(text) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer, parse_float=_finite
        )
    except json.JSONDecodeError:
        raise ValueError("not JSON") from None
    # An escaped lone surrogate, such as \ud800, is valid JSON but not valid Unicode.
    if "\\u" in text and not _is_text(value):
        raise ValueError("not Unicode")
    return value


def _depth(text: str) -> int:
    """Nesting depth, measured before the recursive parser runs."""
    deepest = depth = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _object(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a duplicate key")
    return found


def _constant(_: str) -> NoReturn:
    raise ValueError("NaN or infinity")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError("a number too long")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number too large")
    return value


def _is_text(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
