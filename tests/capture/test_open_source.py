"""The source class that each URI selects, and the errors for invalid URIs."""

import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.capture import open_source
from edge_agent.capture.address import hide_credentials
from edge_agent.errors import InputError


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("test://one", "SyntheticSource"),
        ("rtsp://camera/live", "StreamSource"),
        ("RTSPS://camera/live", "StreamSource"),
        ("http://camera/video.mjpg", "HttpSource"),
        ("https://camera/snapshot.jpg", "HttpSource"),
        ("clip.mp4", "MediaSource"),
        ("/videos/CLIP.MKV?loop=1", "MediaSource"),
        ("file:///videos/a%20clip.avi", "MediaSource"),
        ("image.PNG", "ImageSource"),
        ("file:///images/a.tif?fps=2", "ImageSource"),
    ],
)
def test_uri_selects_the_source_class(uri: str, kind: str) -> None:
    assert type(open_source(uri)).__name__ == kind


def test_a_folder_is_an_image_source_even_with_a_dot_or_a_file_uri(tmp_path: Path) -> None:
    folder = tmp_path / "day.one"
    folder.mkdir()
    assert type(open_source(str(folder))).__name__ == "ImageSource"
    assert type(open_source(folder.as_uri() + "?loop=1")).__name__ == "ImageSource"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("ftp://user:secret@host/clip.mp4", "ftp://host/clip.mp4: unknown kind of source 'ftp'.*rtsp"),
        ("nothing-like-it", "no such file or folder.*test://"),
        ("clip.docx", "no such file"),
        ("", "empty source"),
        ("v4l2:", "'v4l2:' names no device"),
        ("rtsp://", "'rtsp://' names no host"),
    ],
)
def test_unknown_uris_are_rejected_with_the_allowed_kinds(uri: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as caught:
        open_source(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".png", ".mp4", "/", "?loop=1"])
@pytest.mark.parametrize("name", ["n" * 300, "/tmp/" + "n" * 5000, "/n" * 3000, "\u00e4" * 200, "a\0b"])
def test_a_name_that_no_file_can_have_is_refused(name: str, suffix: str) -> None:
    with pytest.raises(InputError, match="longer than the name of a file can be"):
        open_source(name + suffix)


def test_a_file_of_unknown_suffix_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("text")
    with pytest.raises(InputError, match="is not that of a video or an image"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("uri", "redacted"),
    [
        ("rtsp://user:pw@camera:554/live?token=1", "rtsp://camera:554/live"),
        ("http://user:p@ss@camera/live", "http://camera/live"),
        ("http://user:a/b@camera/live#part", "http://camera/live#part"),
        ("rtsp://user:a?b@camera/live", "rtsp://..."),
        ("rtsp://user:a#b@camera/live", "rtsp://camera/live"),
        ("rtsp://[::1]:554/live", "rtsp://[::1]:554/live"),
        ("test://one?dark=1-2", "test://one?dark=1-2"),
        ("/videos/a@b.mp4?loop=1", "/videos/a@b.mp4?loop=1"),
        ("http://camera?password=b@c", "http://..."),
        ("http://camera/live?password=b@c", "http://camera/live"),
        ("http://camera/live@home?user=a&password=b@c", "http://home"),
    ],
)
def test_credentials_are_hidden(uri: str, redacted: str) -> None:
    assert hide_credentials(uri) == redacted


@pytest.mark.parametrize(
    ("module", "uri", "package"), [("av", "clip.mp4", "av"), ("cv2", "image.png", "opencv-python-headless")]
)
def test_a_missing_package_names_what_to_install(module: str, uri: str, package: str) -> None:
    script = (
        f"import sys; sys.modules['{module}'] = None\n"
        "from edge_agent.capture import open_source\n"
        "from edge_agent.errors import MissingPackage\n"
        f"try: open_source('{uri}')\n"
        "except MissingPackage as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert f"pip install {package}" in result.stdout
    assert uri in result.stdout


def test_synthetic_sources_need_neither_opencv_nor_pyav() -> None:
    script = (
        "import sys; sys.modules['cv2'] = sys.modules['av'] = None\n"
        "from edge_agent.capture import open_source\n"
        "source = open_source('test://crowd?pace=fast'); source.open()\n"
        "print(source.read(1.0).pixels.shape)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "(480, 640)"
