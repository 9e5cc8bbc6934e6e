"""Reads env files in systemd's EnvironmentFile syntax; the agent does so itself, so that a reload sees every edit.

The syntax is that of systemd.exec(5) and systemd's `env-file.c`: `NAME=value`, comments on lines of their own that
begin with `#` or `;`, single and double quotes (also over several lines, also one after the other), backslash
escapes, a backslash at the end of a line joins it with the next. `$` has no special meaning. What systemd silently
ignores or guesses is refused here, with the line: a line without `=`, a bad name, an unclosed quote, text after a
closing quote that looks like a comment.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import List, Tuple

from edge_agent.errors import ConfigError

LARGEST_BYTES = 1 << 20

_BLANK = " \t\r\n"
_NEWLINE = re.compile(r"[\r\n]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_DOUBLE_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_DOUBLE_ESCAPE = re.compile(r'\\(["\\`$\n])')
_PLAIN = re.compile(r"(?:[^\\\r\n]|\\\r\n|\\.|\\\Z)*", re.DOTALL)
_PLAIN_ESCAPE = re.compile(r"\\(\r\n|.|\Z)", re.DOTALL)
_NEEDS_NO_QUOTES = re.compile(r"""(?!["'\s])[^\\\r\n]*(?<![ \t])""")


@dataclass(frozen=True)
class Assignment:
    """One `NAME=value` and its first line."""

    name: str
    value: str
    line: int


class _Unclosed(ValueError):
    """A quote is not closed, so the rest of the file cannot be divided into lines."""


def read(path: Path) -> List[Assignment]:
    """The file's assignments, in order.

    Raises:
        ConfigError: The file cannot be read or has bad lines; one fault per line.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise ConfigError([f"{path}: the env file cannot be read: {error.strerror}"]) from None
    if len(data) > LARGEST_BYTES:
        raise ConfigError([f"{path}: is larger than {LARGEST_BYTES} bytes, so it is not an env file"])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8 text"]) from None
    return parse(text, str(path))


def parse(text: str, origin: str) -> List[Assignment]:
    """The assignments in `text`, in order; `origin` is named in faults. Faults never hold values, which may be secret.

    Raises:
        ConfigError: One fault per bad line.
    """
    found: List[Assignment] = []
    faults: List[str] = []
    position = 0
    while True:
        position = _skip(text, position, _BLANK)
        if position == len(text):
            break
        start, end = position, _line_end(text, position)
        line = text.count("\n", 0, start) + 1
        position = end
        if text[start] in "#;":
            continue
        name, equals, _ = text[start:end].partition("=")
        try:
            _check_name(name.rstrip(), bool(equals))
            value, position = _value(text, start + len(name) + 1)
        except _Unclosed as error:
            faults.append(f"{origin}:{line}: {error}")
            break
        except ValueError as error:
            faults.append(f"{origin}:{line}: {error}")
            continue
        found.append(Assignment(name.rstrip(), value, line))
    if faults:
        raise ConfigError(faults, "the syntax is systemd's EnvironmentFile: NAME=value, one per line")
    return found


def quote(value: str) -> str:
    """`value` in the file's syntax, with quotes where it needs them.

    Raises:
        ValueError: It holds a NUL character, which no environment variable can hold.
    """
    if "\0" in value:
        raise ValueError("a value cannot hold a NUL character")
    if _NEEDS_NO_QUOTES.fullmatch(value):
        return value
    return '"' + re.sub(r'(["\\`$])', r"\\\1", value) + '"'


def _check_name(name: str, has_equals: bool) -> None:
    if name.startswith("export "):
        raise ValueError("leave out 'export'; expected NAME=value")
    if not has_equals:
        raise ValueError("no '=' on this line; expected NAME=value, or '#' before a comment")
    if not _NAME.fullmatch(name):
        raise ValueError("the text before '=' is not a variable name; expected letters, digits and _")


def _value(text: str, position: int) -> Tuple[str, int]:
    """The value that begins at `position`, and its end."""
    value = ""
    while True:
        after_quote = text[position - 1] in "\"'"
        begin, position = position, _skip(text, position, " \t")
        if position == len(text) or text[position] in "\r\n":
            break
        if text[position] == "'":
            end = text.find("'", position + 1)
            if end < 0:
                raise _Unclosed("a single quote is not closed")
            value += text[position + 1 : end]
            position = end + 1
        elif text[position] == '"':
            quoted = _DOUBLE_QUOTED.match(text, position)
            if quoted is None:
                raise _Unclosed("a double quote is not closed")
            value += _DOUBLE_ESCAPE.sub(lambda match: match[1].replace("\n", ""), quoted[1])
            position = quoted.end()
        elif after_quote and begin < position and text[position] in "#;":
            raise ValueError("a comment needs a line of its own, else it becomes part of the value")
        else:
            plain = _PLAIN.match(text, position)
            end = plain.end() if plain else position
            value += _unescape(text[position:end])
            position = end
            break
    if "\0" in value:
        raise ValueError("the value holds a NUL character")
    return value, position


def _unescape(plain: str) -> str:
    """An unquoted value without trailing blanks, unless escaped; a backslash makes the next character literal."""
    kept = plain[: max((match.end() for match in _PLAIN_ESCAPE.finditer(plain)), default=0)]
    return _PLAIN_ESCAPE.sub(lambda match: match[1].strip("\r\n"), kept) + plain[len(kept) :].rstrip(" \t")


def _skip(text: str, position: int, characters: str) -> int:
    while position < len(text) and text[position] in characters:
        position += 1
    return position


def _line_end(text: str, position: int) -> int:
    end = _NEWLINE.search(text, position)
    return end.start() if end else len(text)
