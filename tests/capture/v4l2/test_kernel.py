"""The real system calls on pipes, ordinary files and /proc."""

import errno
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.kernel import Device, LinuxKernel, explain, holders


def test_a_node_is_opened_without_blocking_and_not_inherited(tmp_path: Path) -> None:
    path = tmp_path / "video0"
    path.touch()
    kernel = LinuxKernel()
    fd = kernel.open(str(path))
    assert os.get_blocking(fd) is False
    assert os.get_inheritable(fd) is False
    kernel.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_an_ioctl_error_contains_the_ioctls_name() -> None:
    device = Device(LinuxKernel(), os.devnull)
    with pytest.raises(OSError, match="Inappropriate ioctl") as fault:
        device.ioctl(abi.QUERYCAP, abi.Capability())
    device.close()
    explained = explain("v4l2:/dev/null", "/dev/null", fault.value)
    assert explained.message == "v4l2:/dev/null: QUERYCAP: Inappropriate ioctl for device"
    assert "not a V4L2 video node" in explained.hint


def test_poll_respects_its_timeout_and_reports_data_and_hang_ups() -> None:
    reader, writer = os.pipe()
    kernel = LinuxKernel()
    started = time.monotonic()
    assert kernel.poll(reader, 0.03) == 0
    assert time.monotonic() - started >= 0.02
    os.write(writer, b"x")
    assert kernel.poll(reader, 5.0) == select.POLLIN
    os.read(reader, 1)
    os.close(writer)
    assert kernel.poll(reader, 5.0) & select.POLLHUP
    os.close(reader)


def test_a_mapping_is_shared_and_outlives_its_descriptor(tmp_path: Path) -> None:
    path = tmp_path / "buffer"
    path.write_bytes(bytes(8192))
    kernel = LinuxKernel()
    fd = kernel.open(str(path))
    mapping = kernel.mmap(fd, 4096, 4096)
    kernel.close(fd)
    mapping[0] = 7
    mapping.close()
    assert path.read_bytes()[4096] == 7


def test_the_holder_of_a_busy_camera_is_named(tmp_path: Path) -> None:
    path = tmp_path / "video0"
    path.touch()
    assert holders(str(path)) == []
    program = "import sys; f = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        busy = OSError(errno.EBUSY, "Device or resource busy", "STREAMON")
        explained = explain("v4l2:/dev/v4l/by-id/cam", str(path), busy)
        process.communicate(b"")
    assert explained.message == f"v4l2:/dev/v4l/by-id/cam (now {path}): STREAMON: Device or resource busy"
    assert f"(pid {process.pid})" in explained.hint


def test_this_program_itself_is_named_as_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "video0"
    path.touch()
    with path.open("rb"):
        assert "this program" in holders(str(path))[0]
