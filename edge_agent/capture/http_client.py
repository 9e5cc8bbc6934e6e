"""HTTP requests to one camera: Basic and Digest authentication, redirects within the camera, limits on every wait."""

import hashlib
import http.client
import os
import re
import socket
import ssl
from base64 import b64encode
from contextlib import suppress
from typing import Any, Callable, Dict, List, Optional
from urllib.parse import urljoin
from urllib.request import parse_http_list, parse_keqv_list

from edge_agent.capture.address import NetworkAddress, split_network
from edge_agent.capture.live import HINT_PATH, HINT_SILENT, refusal
from edge_agent.errors import SourceError

_MOST_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HASHES: Dict[str, Callable[[bytes], Any]] = {"MD5": hashlib.md5, "SHA-256": hashlib.sha256}
_HINT_REDIRECT = "set the address that the camera redirects to, if it is the right one"


class Camera:
    """The client of one camera. Used by one thread, except `close`.

    Args:
        uri: http:// or https://, with user and password where the camera requires them. A certificate is not verified,
            since cameras sign their own.
        answer_s: Longest wait for a connection and for the head of an answer, in seconds.
        read_s: Longest wait for further data.
    """

    def __init__(self, uri: str, answer_s: float, read_s: float) -> None:
        self._first = split_network(uri)
        self._address = self._first
        self._answer_s = answer_s
        self._read_s = read_s
        self._challenge: Dict[str, str] = {}
        self._uses = 0
        self._connection: Optional[http.client.HTTPConnection] = None
        self._response: Optional[http.client.HTTPResponse] = None
        self._socket: Optional[socket.socket] = None

    def get(self) -> "Answer":
        """The answer to a GET request, of which only the head has been read.

        Raises:
            SourceError: The camera does not answer or refuses. The message names neither address nor credentials.
        """
        challenged = False
        redirects = 0
        while True:
            response = self._send()
            if response.status in (200, 206):
                if self._socket is not None:
                    self._socket.settimeout(self._read_s)
                return Answer(response)
            self.disconnect()
            if response.status == 401 and not challenged and self._take_challenge(response):
                challenged = True
                continue
            if response.status not in _REDIRECTS:
                raise refusal(response.status)
            redirects += 1
            if redirects > _MOST_REDIRECTS:
                raise SourceError("the camera redirects in a circle", HINT_PATH)
            self._redirect(response.headers.get("Location", ""))
            challenged = False

    def disconnect(self) -> None:
        """Close the connection; the next request opens another."""
        connection, response = self._connection, self._response
        self._connection = self._response = self._socket = None
        if response is not None:
            response.close()
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """End a read that waits in another thread."""
        waiting = self._socket
        if waiting is not None:
            with suppress(OSError):
                waiting.shutdown(socket.SHUT_RDWR)

    def _send(self) -> http.client.HTTPResponse:
        while True:
            kept = self._connection is not None and self._connection.sock is not None
            try:
                return self._request()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.disconnect()
                # The camera may have closed the connection that was kept open, which shows at the next request only.
                if not (kept and isinstance(error, (ConnectionError, http.client.BadStatusLine))):
                    raise self._error(error) from None

    def _request(self) -> http.client.HTTPResponse:
        address = self._address
        if self._connection is None:
            if address.scheme == "https":
                self._connection = http.client.HTTPSConnection(
                    address.host, address.port, timeout=self._answer_s, context=_tls()
                )
            else:
                self._connection = http.client.HTTPConnection(address.host, address.port, timeout=self._answer_s)
        if self._connection.sock is None:
            self._connection.connect()
        self._socket = self._connection.sock
        self._socket.settimeout(self._answer_s)
        headers = {"Accept": "*/*", "User-Agent": "edge-agent"}
        if self._challenge:
            headers["Authorization"] = self._authorization()
        self._connection.request("GET", address.target, headers=headers)
        self._response = self._connection.getresponse()
        return self._response

    def _error(self, error: Exception) -> SourceError:
        """The error in words. Never str(error): it may contain the address."""
        if isinstance(error, (socket.gaierror, UnicodeError)):
            return self._address.unknown_host()
        if isinstance(error, socket.timeout):
            return SourceError(f"no answer within {self._answer_s:g} s", HINT_SILENT)
        if isinstance(error, ConnectionRefusedError):
            return self._address.refused()
        if isinstance(error, ssl.SSLError):
            return SourceError("no TLS connection is possible", "expected a camera with TLS 1.2 or newer; try http://")
        if isinstance(error, http.client.RemoteDisconnected) or not isinstance(error, OSError):
            what = (
                "the camera closed the connection" if isinstance(error, ConnectionError) else "the answer is not HTTP"
            )
            return SourceError(what, HINT_SILENT)
        return SourceError(error.strerror or "the network has failed", HINT_SILENT)

    def _redirect(self, location: str) -> None:
        now = self._address
        base = f"{now.scheme}://{_host_and_port(now)}{now.target}"
        try:
            wanted = split_network(urljoin(base, location))
        except (SourceError, ValueError):
            raise SourceError("the camera redirects to something that is no address", _HINT_REDIRECT) from None
        same_host = wanted.host.lower() == self._first.host.lower()
        same_port = wanted.scheme == now.scheme and wanted.port == now.port
        to_tls = now.scheme == "http" and wanted.scheme == "https"
        if not location or not same_host or not (same_port or to_tls):
            raise SourceError("the camera redirects to another host or port, which is refused", _HINT_REDIRECT)
        self._address = wanted._replace(user=now.user, password=now.password)

    def _take_challenge(self, response: http.client.HTTPResponse) -> bool:
        """Remember how the camera wants the password; False when it was given none or asks for something unknown."""
        if not (self._address.user or self._address.password):
            return False
        best: Dict[str, str] = {}
        for text in response.headers.get_all("WWW-Authenticate") or []:
            for kind, fields in re.findall(r"(?i)\b(Basic|Digest)\s+((?:(?!\b(?:Basic|Digest)\s+\w+=).)*)", text):
                found = parse_keqv_list([item for item in parse_http_list(fields) if "=" in item])
                found = {name.lower(): value for name, value in found.items()}
                if kind.lower() == "basic":
                    best = best or {"": "basic"}
                elif _algorithm(found) in _HASHES and best.get("algorithm", "MD5").upper() != "SHA-256":
                    best = {**found, "": "digest"}
        self._challenge, self._uses = best, 0
        return bool(best)

    def _authorization(self) -> str:
        address, challenge = self._address, self._challenge
        if challenge[""] == "basic":
            return "Basic " + b64encode(f"{address.user}:{address.password}".encode()).decode()

        def digest(*parts: str) -> str:
            return str(_HASHES[_algorithm(challenge)](":".join(parts).encode()).hexdigest())

        realm, nonce = challenge.get("realm", ""), challenge.get("nonce", "")
        self._uses += 1
        count, own = f"{self._uses:08x}", os.urandom(8).hex()
        secret = digest(address.user, realm, address.password)
        if challenge.get("algorithm", "").lower().endswith("-sess"):
            secret = digest(secret, nonce, own)
        request = digest("GET", address.target)
        fields = {"username": address.user, "realm": realm, "nonce": nonce, "uri": address.target}
        quoted = [f'{name}="{_escaped(value)}"' for name, value in fields.items()]
        if "auth" in [kind.strip() for kind in challenge.get("qop", "").split(",")]:
            answer = digest(secret, nonce, count, own, "auth", request)
            quoted += ["qop=auth", f"nc={count}", f'cnonce="{own}"']
        else:
            answer = digest(secret, nonce, request)
        quoted.append(f'response="{answer}"')
        quoted += [f"algorithm={challenge['algorithm']}"] if "algorithm" in challenge else []
        quoted += [f'opaque="{_escaped(challenge["opaque"])}"'] if "opaque" in challenge else []
        return "Digest " + ", ".join(quoted)


class Answer:
    """The body of an answer, read piece by piece.

    Attributes:
        content_type: Media type in lower case; empty when the camera sends none.
        boundary: Of a multipart type; empty when the camera sends none.
        has_length: Whether it is known where the body ends.
    """

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.has_length = response.length is not None
        self.content_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        match = re.search(r'(?i)boundary\s*=\s*(?:"([^"]*)"|([^;\s]*))', response.headers.get("Content-Type", ""))
        self.boundary = (match[1] or match[2] or "") if match else ""
        self._pushed_back = b""

    def read(self, size: int) -> bytes:
        """At most `size` bytes, as soon as there are any; empty at the end.

        Raises:
            SourceError: The connection broke off, or nothing came in time.
        """
        if self._pushed_back:
            data, self._pushed_back = self._pushed_back[:size], self._pushed_back[size:]
            return data
        try:
            data = self._response.read1(size)
            if not data:
                self._response.close()  # which read1 leaves out; the connection can be used again then
            return data
        except socket.timeout:
            raise SourceError("the stream broke off: no data in time", HINT_SILENT) from None
        except (OSError, http.client.HTTPException, ValueError, AttributeError):  # the last two: closed meanwhile
            raise SourceError("the stream broke off", HINT_SILENT) from None

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, or fewer at the end; they are read again by `read`."""
        parts: List[bytes] = []
        while sum(map(len, parts)) < size:
            data = self.read(size)
            if not data:
                break
            parts.append(data)
        self._pushed_back = b"".join(parts)
        return self._pushed_back[:size]


def _tls() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _algorithm(challenge: Dict[str, str]) -> str:
    name = challenge.get("algorithm", "MD5").upper()
    return name[: -len("-SESS")] if name.endswith("-SESS") else name


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _host_and_port(address: NetworkAddress) -> str:
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
