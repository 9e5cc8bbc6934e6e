"""TLS for the connection to the broker: contexts, errors as texts, certificate files and credentials."""

import re
import socket
import ssl
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Iterable, Iterator, List, Mapping, Optional, Tuple

from edge_agent.errors import BrokerError
from edge_agent.mqtt.params import MqttParams, TlsParams

CREDENTIAL = "mqtt-password"
"""Name of the systemd credential: `LoadCredential=mqtt-password:/etc/edge-agent/mqtt-password` in the unit."""
WARN_DAYS = 14
PROBE_S = 1.0
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_VERSION, _UTC_TIME = 0xA0, 0x17
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
"""TLS alerts about the client's certificate: the ends of OpenSSL's names, and what they mean."""
_ALERT = re.compile(r"\b[A-Z0-9]+_ALERT_(\w+)")

Signature = Tuple[Optional[Tuple[int, int, int]], ...]


def context(params: TlsParams) -> ssl.SSLContext:
    """Return a client context that checks certificate and host name; created at every connect, to use renewed files.

    Raises:
        BrokerError: A file cannot be read or used.
    """
    name = params.ca_file
    try:
        created = ssl.create_default_context(cafile=params.ca_file)
        created.sslsocket_class = _Socket
        created.minimum_version = ssl.TLSVersion.TLSv1_2
        if params.cert_file is not None:
            name = params.cert_file
            created.load_cert_chain(params.cert_file, params.key_file, password=_no_password)
        if params.alpn is not None:
            created.set_alpn_protocols([params.alpn])
    except (OSError, ssl.SSLError) as error:
        raise BrokerError(
            f"TLS: {name} cannot be used: {error}", "expected a PEM file that this user may read"
        ) from None
    return created


def explain(error: Exception, host: str, port: int) -> str:
    """Return why a connection failed, in one line."""
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


def probe_refusal(params: MqttParams) -> Optional[str]:
    """Return why a broker closes connections right after the handshake; None when it sends no alert.

    TLS 1.3 refuses a client's certificate only then, and data that the client has sent by that time makes the system
    drop the alert. So this repeats the handshake, sends nothing, and reads. Takes at most `PROBE_S` for each step.
    """
    try:
        created = context(params.tls)
        plain = socket.create_connection((params.host, params.port), PROBE_S)
        with plain, created.wrap_socket(plain, server_hostname=params.host) as sock:
            sock.recv(1)
    except ssl.SSLError as error:
        return _refusal(error, params.tls.cert_file)
    except (OSError, ValueError, BrokerError):
        return None
    return None


def tls_files(params: MqttParams) -> Tuple[Optional[str], ...]:
    """Return the files that a new connection reads again; none without TLS."""
    return (params.tls.ca_file, params.tls.cert_file, params.tls.key_file) if params.tls.enabled else ()


def signature(paths: Iterable[Optional[str]]) -> Signature:
    """Return a value that changes when one of the files is replaced, written, created or deleted."""
    return tuple(_stamp(path) for path in paths if path is not None)


def valid_until(path: str) -> Optional[datetime]:
    """Return `notAfter` of the first certificate in a PEM file; None when it cannot be read.

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
    """Return the time in "notAfter" of `getpeercert()`; None when there is none."""
    if not isinstance(not_after, str):
        return None
    return datetime.fromtimestamp(ssl.cert_time_to_seconds(not_after), timezone.utc)


def expiry_faults(until: Optional[datetime], now: datetime) -> List[str]:
    """Return the health fault of a certificate that expires soon; in whole days, so that it changes once a day."""
    if until is None or until - now > timedelta(days=WARN_DAYS):
        return []
    if until <= now:
        return [f"our TLS certificate has expired on {until:%Y-%m-%d}"]
    days = (until - now).days
    left = f"in {days} day{'' if days == 1 else 's'}" if days else "within a day"
    return [f"our TLS certificate expires {left}, on {until:%Y-%m-%d}"]


def with_credential(params: MqttParams, environ: Mapping[str, str]) -> MqttParams:
    """Return `params` with systemd's credential as password file, if they name a user and no file, and there is one."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder or params.username is None or params.password_file is not None:
        return params
    path = Path(folder) / CREDENTIAL
    # The unit passes an empty line when there is no password.
    return replace(params, password_file=str(path)) if path.is_file() and path.read_bytes().strip() else params


def password(path: Optional[str]) -> Optional[str]:
    """Return the file's first line.

    Raises:
        BrokerError: The file cannot be read; the message does not contain its content.
    """
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8").split("\n", 1)[0].rstrip("\r")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise BrokerError(f"password_file {path}: {reason}", "expected a file that this user may read") from None


class _Socket(ssl.SSLSocket):
    """Closes itself when the handshake fails, because paho would leave it open."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (OSError, ValueError):
            self.close()
            raise


def _refusal(error: ssl.SSLError, cert_file: Optional[str]) -> Optional[str]:
    """Return the meaning of a TLS alert about the client's certificate; None for another error."""
    found = _ALERT.search(str(error))
    why = _ALERTS.get(found.group(1)) if found else None
    if why is None:
        return None
    until = None if cert_file is None else valid_until(cert_file)
    ours = "" if until is None else f" (it is valid until {until:%Y-%m-%d %H:%M} UTC)"
    return f"the broker refused our certificate: {why}{ours}"


def _no_password() -> str:
    """Return no password; otherwise OpenSSL would ask on the terminal for that of an encrypted key, and block."""
    return ""


def _stamp(path: str) -> Optional[Tuple[int, int, int]]:
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _elements(data: bytes) -> Iterator[Tuple[int, bytes]]:
    """Yield tag and content of each DER element."""
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
