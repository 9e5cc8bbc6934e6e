"""Parses nvinfer's configuration files, a GLib key file or YAML of two levels, and collects an import's report.

Syntax: GLib's `GKeyFile` (groups, `key=value`, `#` on lines of their own, escapes, the last of equal keys counts), and
where the name ends in .yml or .yaml, as for nvinfer itself, `group:` with indented `key: value`.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple, Union

from edge_agent.config.env_file import quote
from edge_agent.config.variables import Keys, name_of
from edge_agent.errors import InputError

LARGEST_BYTES = 1 << 20
PROPERTY = "property"

_GROUP = re.compile(r"\[([^\[\]]+)\]\s*")
_ESCAPE = re.compile(r"\\(.?)")
_ESCAPES = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_YAML_LINE = re.compile(r"( *)([\w.-]+) *:(?: +(.*))?")
_YAML_COMMENT = re.compile(r"(?:^|\s)#.*")
_YAML_QUOTED = re.compile(r"""(['"])((?:(?!\1)[^\\])*)\1\s*(?:#.*)?""")
_TRAILING_COMMENT = re.compile(r"\s+#.*")


@dataclass(frozen=True)
class Entry:
    """One `key=value`.

    Attributes:
        key: The key.
        text: The value without surrounding blanks.
        where: "file:line".
    """

    key: str
    text: str
    where: str

    def __str__(self) -> str:
        return f"{self.key}={self.text}"

    def fault(self, expected: str) -> InputError:
        """An error that names file, line, key, value and the expectation."""
        return InputError(f"{self.where}: {self.key}={self.text[:60]}: expected {expected}")

    def number(self, low: float = -math.inf, high: float = math.inf) -> float:
        """The value as a float.

        Raises:
            InputError: It is not such a number, or out of bounds.
        """
        (value,) = self._numbers((self._bare(),), low, high, f"a number{_range(low, high)}")
        return value

    def whole(self, low: float = -math.inf, high: float = math.inf) -> int:
        """The value as an int.

        Raises:
            InputError: It is not such a number, or out of bounds.
        """
        expected = f"a whole number{_range(low, high)}"
        (value,) = self._numbers((self._bare(),), low, high, expected)
        if not value.is_integer():
            raise self.fault(expected)
        return int(value)

    def flag(self) -> bool:
        """The value as true (1) or false (0).

        Raises:
            InputError: It is neither.
        """
        word = self._bare()
        if word not in ("0", "1", "true", "false"):
            raise self.fault("0 or 1")
        return word in ("1", "true")

    def numbers(self, counts: Tuple[int, ...]) -> Tuple[float, ...]:
        """The numbers of a list separated by semicolons.

        Raises:
            InputError: One is not a number, or `counts` does not hold their count.
        """
        expected = f"{' or '.join(map(str, counts))} numbers separated by ';'"
        parts = self.texts()
        if len(parts) not in counts:
            raise self.fault(expected)
        return self._numbers(parts, -math.inf, math.inf, expected)

    def texts(self) -> Tuple[str, ...]:
        """The parts of a list separated by semicolons."""
        return tuple(part.strip() for part in self._bare().rstrip(";").split(";"))

    def string(self) -> str:
        r"""The value with its escapes (\s \n \t \r \\) decoded.

        Raises:
            InputError: It has another escape, or is empty.
        """
        bad = [letter for letter in _ESCAPE.findall(self.text) if letter not in _ESCAPES]
        if bad or not self.text:
            what = f"no escape \\{bad[0]}" if bad else "a value"
            raise InputError(f"{self.where}: {self.key}: expected {what}")
        return _ESCAPE.sub(lambda match: _ESCAPES[match[1]], self.text)

    def _bare(self) -> str:
        # GLib reads a number up to a blank, so files have comments behind numbers.
        return _TRAILING_COMMENT.sub("", self.text)

    def _numbers(self, parts: Tuple[str, ...], low: float, high: float, expected: str) -> Tuple[float, ...]:
        try:
            values = tuple(float(part) for part in parts)
        except ValueError:
            raise self.fault(expected) from None
        if not all(math.isfinite(value) and low <= value <= high for value in values):
            raise self.fault(expected)
        return values


@dataclass(frozen=True)
class Group:
    """One `[group]`.

    Attributes:
        where: "file:line" of its first heading.
        entries: By key, in the order of the file; the last of equal keys.
    """

    where: str
    entries: Dict[str, Entry] = field(default_factory=dict)


@dataclass(frozen=True)
class NvinferFile:
    """A configuration file.

    Attributes:
        path: The file.
        groups: By name; "property" is among them.
        repeated: Entries replaced by a later one of the same key.
    """

    path: Path
    groups: Mapping[str, Group]
    repeated: Tuple[Entry, ...]


def read_nvinfer(path: Path) -> NvinferFile:
    """The configuration in `path`.

    Raises:
        InputError: It cannot be read or parsed; names the line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}: expected an nvinfer configuration") from error
    if len(data) > LARGEST_BYTES:
        raise InputError(f"{path}: is larger than {LARGEST_BYTES} bytes, so it is not an nvinfer configuration")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: not UTF-8 text: expected an nvinfer configuration") from None
    return parse_nvinfer(text, path)


def parse_nvinfer(text: str, path: Path) -> NvinferFile:
    """The configuration in `text`; the suffix of `path` selects the form."""
    reader = _Reader()
    read_line = reader.yaml_line if path.suffix.lower() in (".yml", ".yaml") else reader.key_file_line
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            read_line(line, f"{path}:{number}")
    if PROPERTY not in reader.groups:
        hint = "; a deepstream-app configuration names it as config-file of its [primary-gie]"
        raise InputError(f"{path}: no group [{PROPERTY}]: expected the configuration of an nvinfer element{hint}")
    return NvinferFile(path, reader.groups, tuple(reader.repeated))


class _Reader:
    def __init__(self) -> None:
        self.groups: Dict[str, Group] = {}
        self.repeated: List[Entry] = []
        self._group: Optional[Group] = None
        self._indent = 0

    def key_file_line(self, line: str, where: str) -> None:
        line = line.strip()
        heading = _GROUP.fullmatch(line)
        if heading:
            self._open(heading[1], where)
            return
        key, equals, value = line.partition("=")
        if not equals or not key.strip():
            expected = "[group], key=value, or '#' before a comment"
            if line.endswith("{"):  # NVIDIA ships it under the same name in another folder
                expected = "nvinfer's configuration; this one is for nvinferserver (Triton)"
            raise InputError(f"{where}: {line[:60]!r}: expected {expected}")
        self._add(Entry(key.strip(), value.strip(), where))

    def yaml_line(self, line: str, where: str) -> None:
        if line.rstrip() in ("---", "...") or line.startswith("%"):
            return
        match = _YAML_LINE.fullmatch(line.rstrip())
        expected = "'group:', or under it, indented by blanks, 'key: value'"
        if match is None:
            raise InputError(f"{where}: {line.strip()[:60]!r}: expected {expected}")
        indent, key, value = len(match[1]), match[2], _yaml_value(match[3] or "", where)
        if not indent:
            if value:
                raise InputError(f"{where}: {key}: expected nothing behind the name of a group")
            self._open(key, where)
            self._indent = 0
            return
        if self._indent not in (0, indent):
            raise InputError(f"{where}: {key}: indented unlike the lines above: expected {expected}")
        self._indent = indent
        self._add(Entry(key, value, where))

    def _open(self, name: str, where: str) -> None:
        self._group = self.groups.setdefault(name, Group(where))

    def _add(self, entry: Entry) -> None:
        if self._group is None:
            raise InputError(f"{entry.where}: {entry.key}: stands before any group: expected [{PROPERTY}] above it")
        before = self._group.entries.pop(entry.key, None)
        if before is not None:
            self.repeated.append(before)
        self._group.entries[entry.key] = entry


def _yaml_value(text: str, where: str) -> str:
    quoted = _YAML_QUOTED.fullmatch(text.strip())
    if quoted:
        return quoted[2]
    plain = _YAML_COMMENT.sub("", text).strip()
    if plain[:1] in tuple("[{&*|>!'\"%@`"):
        raise InputError(f"{where}: {plain[:60]!r}: expected a plain value, which is all that nvinfer's files need")
    return plain


def _range(low: float, high: float) -> str:
    if math.isinf(low) and math.isinf(high):
        return ""
    return f", at least {low:g}" if math.isinf(high) else f" from {low:g} to {high:g}"


# Its value is not shown.
_SECRET: Keys = ("model", "key")


@dataclass
class Report:
    """The result of an import.

    Attributes:
        settings: Values by path, as text for an env file.
        taken: Entries that became a setting or match this agent's behaviour, one sentence each.
        ignored: Entries without a meaning for this agent, with the reason.
        differs: Entries that this agent or the model contradicts.
    """

    settings: Dict[Keys, str] = field(default_factory=dict)
    taken: List[str] = field(default_factory=list)
    ignored: List[str] = field(default_factory=list)
    differs: List[str] = field(default_factory=list)

    def set(self, source: Union[Entry, str], path: Keys, value: object, remark: str = "") -> None:
        """Add a setting that comes from `source`."""
        text = value if isinstance(value, str) else repr(value)
        self.settings[path] = text
        shown = "***" if path == _SECRET else text
        what = _described(source, hide=path == _SECRET)
        self.taken.append(f"{what} -> {name_of(path)}={shown}{f'; {remark}' if remark else ''}")

    def agree(self, entry: Entry, why: str) -> None:
        """Add an entry that matches this agent's behaviour."""
        self.taken.append(f"{_described(entry)}: {why}")

    def ignore(self, entry: Entry, why: str) -> None:
        """Add an entry without a meaning for this agent."""
        self.ignored.append(f"{_described(entry)}: {why}")

    def differ(self, source: Union[Entry, str], what: str) -> None:
        """Add an entry that this agent or the model contradicts."""
        self.differs.append(f"{_described(source)}: {what}")

    def env_text(self, origin: str) -> str:
        """The settings as an env file."""
        lines = [f"{name_of(path)}={quote(value)}" for path, value in self.settings.items()]
        return "\n".join([f"# From {origin.splitlines()[0]} by edge-agent model import-deepstream", *lines, ""])


def _described(source: Union[Entry, str, None], hide: bool = False) -> str:
    if not isinstance(source, Entry):
        return str(source)
    line: Optional[str] = source.where.rpartition(":")[2]
    return f"line {line}: {f'{source.key}=***' if hide else source}"
