"""Certificate files: until when they are valid, and whether they have changed."""

import ssl
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Iterable, Iterator, List, Optional, Tuple

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
