"""TLS for the broker's connection, and its faults in words."""

import re
import socket
import ssl
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Iterable, Iterator, List, Mapping, Optional, Tuple

from edge_agent.errors import BrokerError
from edge_agent.mqtt.params import MqttParams, TlsParams

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_VERSION, _UTC_TIME = 0xA0, 0x17

WARN_DAYS = 14

Signature = Tuple[Optional[Tuple[int, int, int]], ...]


def signature(paths: Iterable[Optional[str]]) -> Signature:
    """Differs from an earlier one when one of the files was replaced, written, or has come or gone."""
    return tuple(_stamp(path) for path in paths if path is not None)


def valid_until(path: str) -> Optional[datetime]:
    """`notAfter` of the first certificate of a PEM file; None when it cannot be read.

    The standard library decodes certificates of authorities and peers only, so this walks the DER of RFC 5280, 4.1.
    """
    try:
        pem = Path(path).read_text("ascii")
        der = ssl.PEM_cert_to_DER_cert(pem[pem.index(_BEGIN) : pem.index(_END) + len(_END)])
        _, certificate = next(_elements(der))
        _, to_be_signed = next(_elements(certificate))
        fields = [field for field in _elements(to_be_signed) if field[0] != _VERSION]
        _, validity = fields[3]  # after serial number, signature algorithm, issuer
        tag, text = list(_elements(validity))[1]
        return _time(tag, text.decode("ascii"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def peer_valid_until(not_after: object) -> Optional[datetime]:
    """Of `getpeercert()`'s "notAfter"."""
    if not isinstance(not_after, str):
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(not_after), timezone.utc)


def expiry_faults(until: Optional[datetime], now: datetime) -> List[str]:
    """That our certificate ends soon, in words, for health; days are whole, so that it is news once a day."""
    if until is None or until - now > timedelta(days=WARN_DAYS):
        return []
    if until <= now:
        return [f"our TLS certificate has expired on {until:%Y-%m-%d}"]
    days = (until - now).days
    left = f"in {days} day{'' if days == 1 else 's'}" if days else "within a day"
    return [f"our TLS certificate expires {left}, on {until:%Y-%m-%d}"]


def _stamp(path: str) -> Optional[Tuple[int, int, int]]:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _elements(data: bytes) -> Iterator[Tuple[int, bytes]]:
    """Tag and content of each DER element."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        if at + length > len(data):
            raise ValueError("cut off")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, text: str) -> datetime:
    if tag == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=timezone.utc)


CREDENTIAL = "mqtt-password"
"""Name of the systemd credential: `LoadCredential=mqtt-password:/etc/edge-agent/mqtt-password` in the unit."""


def with_credential(params: MqttParams, environ: Mapping[str, str]) -> MqttParams:
    """`params`, reading systemd's credential where they name a user and no file, and the unit has loaded one."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder or params.username is None or params.password_file is not None:
        return params
    path = Path(folder) / CREDENTIAL
    # An empty line is how the unit says that there is none.
    return replace(params, password_file=str(path)) if path.is_file() and path.read_bytes().strip() else params


def password(path: Optional[str]) -> Optional[str]:
    """The file's first line.

    Raises:
        BrokerError: It cannot be read; its content is not in the message.
    """
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise BrokerError(f"password_file {path}: {reason}", "expected a file that this user may read") from None


_NOT_YET_VALID, _EXPIRED = 9, 10
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""
_ALERTS = {
    "UNKNOWN_CA": "it was signed by an authority that the broker does not know",
    "CERTIFICATE_EXPIRED": "it has expired, or the broker's clock is wrong",
    "CERTIFICATE_REVOKED": "it is revoked",
    "CERTIFICATE_REQUIRED": "the broker wants one; set EDGE_AGENT_MQTT__TLS__CERT_FILE, or give --cert to watch",
    "BAD_CERTIFICATE": "the broker cannot use it",
    "UNSUPPORTED_CERTIFICATE": "the broker cannot use it; is it one for clients?",
    "CERTIFICATE_UNKNOWN": "the broker cannot use it",
    "ACCESS_DENIED": "access denied",
}
"""What a broker says of our certificate: the ends of OpenSSL's names for TLS alerts."""
HEAR_S = 1.0
_ALERT = re.compile(r"\b[A-Z0-9]+_ALERT_(\w+)")


class _Socket(ssl.SSLSocket):
    """Closes itself when the handshake fails: paho would leave it open."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (OSError, ValueError):
            self.close()
            raise


def context(params: TlsParams) -> ssl.SSLContext:
    """A client's context that checks certificate and host name; made anew at every connect, so renewed files count.

    Raises:
        BrokerError: A file cannot be read or is not what it should be.
    """
    name = params.ca_file
    try:
        made = ssl.create_default_context(cafile=params.ca_file)
        made.sslsocket_class = _Socket
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        if params.cert_file is not None:
            name = params.cert_file
            made.load_cert_chain(params.cert_file, params.key_file, password=_no_password)
        if params.alpn is not None:
            made.set_alpn_protocols([params.alpn])
    except (OSError, ssl.SSLError) as error:
        raise BrokerError(
            f"TLS: {name} cannot be used: {error}", "expected a PEM file that this user may read"
        ) from None
    return made


def explain(error: Exception, host: str, port: int) -> str:
    """Why a connection could not be made, in one line."""
    where = f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        today = f"{datetime.now(timezone.utc):%Y-%m-%d}"
        if error.verify_code == _NOT_YET_VALID:
            return f"{where}: the broker's certificate is not valid yet; this machine's clock, at {today}, is wrong"
        if error.verify_code == _EXPIRED:
            return f"{where}: the broker's certificate has expired, if this machine's clock is right: {today}"
        return f"{where}: the broker's certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        refused = _refusal(error, None)
        if refused is not None:
            return f"{where}: {refused}"
        return f"{where}: TLS failed: {error.reason or error}; does the broker speak TLS on this port?"
    if isinstance(error, socket.gaierror):
        return f"{host}: name not found: {error.strerror}"
    if isinstance(error, (socket.timeout, TimeoutError)):
        return f"{where}: no answer"
    if isinstance(error, OSError) and error.strerror:
        return f"{where}: {error.strerror}"
    return f"{where}: {error}"


def hear_refusal(params: MqttParams) -> Optional[str]:
    """Why a broker closes a connection right after the handshake; None when it does not say.

    TLS 1.3 refuses a client's certificate only then, and what the client has sent by that time makes the system drop
    the alert. So this shakes hands once more, sends nothing, and listens. Takes `HEAR_S` at most for each step.
    """
    try:
        made = context(params.tls)
        plain = socket.create_connection((params.host, params.port), HEAR_S)
        with plain, made.wrap_socket(plain, server_hostname=params.host) as sock:
            sock.recv(1)
    except ssl.SSLError as error:
        return _refusal(error, params.tls.cert_file)
    except (OSError, ValueError, BrokerError):
        return None
    return None


def _refusal(error: ssl.SSLError, cert_file: Optional[str]) -> Optional[str]:
    """What a TLS alert means, when it is about our certificate; else None."""
    found = _ALERT.search(str(error))
    why = _ALERTS.get(found.group(1)) if found else None
    if why is None:
        return None
    until = None if cert_file is None else valid_until(cert_file)
    ours = "" if until is None else f" (it is valid until {until:%Y-%m-%d %H:%M} UTC)"
    return f"the broker refused our certificate: {why}{ours}"


def _no_password() -> str:
    """Without this, OpenSSL would ask for an encrypted key's password on the terminal, and wait for ever."""
    return ""
