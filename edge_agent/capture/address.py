"""Parsing of source URIs: paths, query options, and removal of credentials for logs."""

import re
import socket
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from edge_agent.errors import InputError, SourceError

_PORTS = {"http": 80, "https": 443, "rtsp": 554, "rtsps": 322}
_ENCODE = "write '/' in user and password as %2F, '#' as %23, '?' as %3F, '@' as %40, '%' as %25"


def hide_credentials(uri: str) -> str:
    """`uri` for logs: a network address without user, password and query (which may hold tokens)."""
    if "://" not in uri or uri.startswith(("test:", "file:")):
        return uri
    scheme, _, rest = uri.partition("://")
    address, _, query = rest.partition("?")
    host, slash, path = address.partition("/")
    if not slash and "@" in query:  # an unescaped question mark in the password, or an @ in the query
        return f"{scheme}://..."
    if "@" in path:  # an unescaped slash in the password: everything up to the last @ may be secret
        host, slash, path = path.rpartition("@")[2].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


class NetworkAddress(NamedTuple):
    """The parts of a camera's network address; user and password are percent-decoded."""

    scheme: str
    user: str
    password: str
    host: str
    port: int
    target: str  # path and query, as a request names them
    doubtful: bool  # an @ follows the host: the password may hold an unescaped /, # or ?

    def resolve(self) -> None:
        """Look the host's name up, which FFmpeg does too, but without a word on it when it fails.

        Raises:
            SourceError: It is unknown.
        """
        try:
            socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise self.unknown_host() from None

    def unknown_host(self) -> SourceError:
        """The error for a host whose name cannot be resolved."""
        hint = "check the host in the address, and this machine's name server"
        return SourceError("unknown host: its name cannot be resolved", _ENCODE if self.doubtful else hint)

    def refused(self) -> SourceError:
        """The error for a port that nothing listens on."""
        hint = "check the port in the address, and that the camera's service is switched on"
        return SourceError("connection refused: nothing listens on this port", _ENCODE if self.doubtful else hint)


def split_network(uri: str) -> NetworkAddress:
    """The parts of an rtsp, rtsps, http or https address.

    Raises:
        SourceError: It has no host or an invalid port, mostly since user or password hold characters that end them.
            The message does not name the address.
    """
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    tail = rest[len(authority) :]
    who, _, where = authority.rpartition("@")
    user, _, password = who.partition(":")
    match = re.fullmatch(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<name>[^:\[\]\s]+))(?::(?P<port>\d{1,5}))?", where)
    port = int((match and match["port"]) or _PORTS.get(scheme, 0))
    if match is None or not 0 < port < 65536:
        what = "user or password hold a character that ends them" if "@" in tail else "no host and port can be read"
        raise SourceError(f"the address cannot be read: {what}", _ENCODE if "@" in tail else "expected host:port")
    target = tail.partition("#")[0]
    target = quote(target if target.startswith("/") else f"/{target}", safe="%/:=&?~+!$,;'@()*[]|")
    return NetworkAddress(
        scheme, unquote(user), unquote(password), match["v6"] or match["name"], port, target, "@" in tail
    )


def without_options(uri: str, names: Sequence[str]) -> Tuple[str, str]:
    """`uri` without these options in its query, which are ours and not the camera's, and a query of them alone."""
    address, mark, query = uri.partition("?")
    query, hash_, fragment = query.partition("#")
    fields = query.split("&") if query else []
    own = [field for field in fields if field.partition("=")[0] in names]
    if not own or ("@" in query and "/" not in address.partition("://")[2]):  # an unescaped ? in the password
        return uri, ""
    rest = "&".join(field for field in fields if field not in own)
    return address + (mark + rest if rest else "") + hash_ + fragment, "&".join(own)


def split_file(uri: str) -> Tuple[Path, "Query"]:
    """The path and the options of a bare path or a `file:` URI; only a `file:` URI is percent-decoded."""
    location, _, query = uri.partition("?")
    if location.startswith("file:"):
        location = unquote(urlsplit(location).path)
    return Path(location), Query(uri, query)


class Query:
    """The options in a URI's query. Each is read once, by name and type; `finish` rejects the rest.

    Raises:
        InputError: From every method, with the faulty value and the allowed ones.
    """

    def __init__(self, uri: str, text: str) -> None:
        self._uri = uri
        self._unread: Dict[str, str] = dict(parse_qsl(text, keep_blank_values=True))
        self._known: List[str] = []

    def text(self, name: str, default: str = "") -> str:
        """The option as text."""
        self._known.append(name)
        return self._unread.pop(name, default)

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        """One of `allowed`; the first is the default."""
        value = self.text(name, allowed[0])
        if value not in allowed:
            raise self.error(name, value, f"one of {', '.join(allowed)}")
        return value

    def flag(self, name: str) -> bool:
        """0 or 1; off by default."""
        return self.choice(name, ("0", "1")) == "1"

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """A number from `low` to `high`."""
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError:
            raise self.error(name, value, f"a number from {low:g} to {high:g}") from None
        if not low <= number <= high:
            raise self.error(name, value, f"a number from {low:g} to {high:g}")
        return number

    def pair(self, name: str, separator: str, default: Optional[Tuple[int, int]]) -> Optional[Tuple[int, int]]:
        """Two positive integers, e.g. `640x480` or `1:1`."""
        value = self.text(name)
        if not value:
            return default
        first, _, second = value.partition(separator)
        if not (first.isdecimal() and second.isdecimal() and int(first) and int(second)):
            raise self.error(name, value, f"two whole numbers above 0, like 2{separator}1")
        return int(first), int(second)

    def windows(self, name: str) -> Tuple[Tuple[float, float], ...]:
        """Intervals of scene time in seconds, e.g. `10-15` or `10-15,20-22.5`."""
        value = self.text(name)
        spans = []
        for part in value.split(",") if value else ():
            start, _, end = part.partition("-")
            try:
                span = (float(start), float(end))
            except ValueError:
                raise self.error(name, value, "seconds like 10-15 or 10-15,20-22.5") from None
            if not 0 <= span[0] < span[1]:
                raise self.error(name, value, "spans that end after they start")
            spans.append(span)
        return tuple(spans)

    def finish(self) -> None:
        """Reject options that were not read."""
        if self._unread:
            names = ", ".join(sorted(self._unread))
            raise InputError(f"{self._uri}: unknown option {names}", f"allowed: {', '.join(sorted(self._known))}")

    def error(self, name: str, value: str, expected: str) -> InputError:
        """The error for an invalid option."""
        return InputError(f"{self._uri}: {name}={value} cannot be used", f"expected {expected}")
