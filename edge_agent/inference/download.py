"""One file of known size over HTTP, resumed where it broke off."""

import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable
from urllib.parse import urlsplit

from edge_agent.errors import ModelError

Progress = Callable[[int, int], None]

_TIMEOUT_S = 30.0
_BLOCK_BYTES = 1 << 16
_ATTEMPTS = 20


def download(url: str, target: Path, size_bytes: int, progress: Progress) -> None:
    """Download `url` into `target`, going on after the bytes that are there already.

    A connection that breaks is taken up again as long as it brings something; what has come stays in `target` for
    the next run. A target that turns out wrong is removed.

    Args:
        url: http or https.
        target: The unfinished file.
        size_bytes: Of the whole file.
        progress: Told (bytes so far, bytes in all).

    Raises:
        ModelError: It cannot be downloaded, or is of another size.
        OSError: `target` cannot be written.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ModelError(f"cannot download {url}", "expected an http or https address")
    fault, before = "", -1
    for _ in range(_ATTEMPTS):
        have = _size(target)
        if have == size_bytes:
            return
        if have == before:
            break
        if have > size_bytes:
            target.unlink()
            raise ModelError(
                f"{url} is larger than the {size_bytes} bytes it must be", "the publisher's file has changed"
            )
        fault, before = _take_up(url, target, have, size_bytes, progress), have
    have = _size(target)
    if have != size_bytes:
        raise ModelError(
            f"cannot download {url}: {fault or 'the connection broke off'} ({have} of {size_bytes} bytes are here)",
            "run the same command again to go on from there",
        )


def _take_up(url: str, target: Path, have: int, size_bytes: int, progress: Progress) -> str:
    """One connection's worth; says why it ended, if it is known."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            resumed = response.status == 206 and _first_byte(response) == have
            start = have if resumed else 0
            announced = response.headers.get("Content-Length")
            if announced is not None and start + int(announced) != size_bytes:
                raise ModelError(
                    f"{url} has {start + int(announced)} bytes, expected {size_bytes}",
                    "the publisher's file has changed",
                )
            with target.open("ab" if resumed else "wb") as file:
                _copy(response, file, start, size_bytes, progress)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # what is here does not fit what is there
                target.unlink()
            return f"HTTP {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        return str(error) or type(error).__name__
    return ""


def _copy(response: Any, file: Any, done: int, size_bytes: int, progress: Progress) -> None:
    # One block more than there should be is enough to see that it is too large.
    while done <= size_bytes:
        block = response.read(_BLOCK_BYTES)
        if not block:
            return
        file.write(block)
        done += len(block)
        progress(done, size_bytes)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _first_byte(response: Any) -> int:
    """Where a partial answer begins: "bytes 100-199/200" gives 100."""
    span = str(response.headers.get("Content-Range", "")).replace("bytes", "").strip().split("-")[0]
    return int(span) if span.isdigit() else -1
