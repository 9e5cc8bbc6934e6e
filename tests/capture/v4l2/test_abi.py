"""Layouts and numbers equal those of the kernel's header."""

import ctypes
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent.capture.v4l2 import abi

HEADER = Path("/usr/include/linux/videodev2.h")

STRUCTS = {
    "v4l2_capability": abi.Capability,
    "v4l2_fmtdesc": abi.FmtDesc,
    "v4l2_pix_format": abi.PixFormat,
    "v4l2_format": abi.Format,
    "v4l2_fract": abi.Fract,
    "v4l2_captureparm": abi.CaptureParm,
    "v4l2_streamparm": abi.StreamParm,
    "v4l2_frmsize_discrete": abi.FrmSizeDiscrete,
    "v4l2_frmsize_stepwise": abi.FrmSizeStepwise,
    "v4l2_frmsizeenum": abi.FrmSizeEnum,
    "v4l2_frmival_stepwise": abi.FrmIvalStepwise,
    "v4l2_frmivalenum": abi.FrmIvalEnum,
    "v4l2_requestbuffers": abi.RequestBuffers,
    "timeval": abi.Timeval,
    "v4l2_timecode": abi.Timecode,
    "v4l2_buffer": abi.Buffer,
    "v4l2_query_ext_ctrl": abi.QueryExtCtrl,
    "v4l2_ext_control": abi.ExtControl,
    "v4l2_ext_controls": abi.ExtControls,
}
ANONYMOUS = {  # our name of an anonymous union -> its first member
    "v4l2_frmsizeenum.size": "discrete",
    "v4l2_frmivalenum.interval": "discrete",
}
NUMBERS = sorted(
    name
    for name, value in vars(abi).items()
    if isinstance(value, int) and not name.startswith("_") and name not in abi.IOCTL_NAMES.values()
)


@pytest.mark.parametrize(
    ("struct", "size"),
    [
        (abi.Format, 208),
        (abi.Buffer, 88),
        (abi.RequestBuffers, 20),
        (abi.StreamParm, 204),
        (abi.FmtDesc, 64),
        (abi.Capability, 104),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_sizes_are_those_measured_on_a_64_bit_kernel(struct, size: int) -> None:
    assert ctypes.sizeof(struct) == size


def test_codes_are_those_measured_on_a_64_bit_kernel() -> None:
    assert abi.QBUF == 0xC058560F
    assert abi.DQBUF == 0xC0585611


def test_every_layout_and_number_agrees_with_the_installed_header(tmp_path: Path) -> None:
    if not HEADER.exists() or shutil.which("gcc") is None:
        pytest.skip(f"needs gcc and {HEADER}: apt install gcc linux-libc-dev")
    if sys.maxsize < 2**32:
        pytest.skip("the layouts are those of a 64-bit system")
    words = set(re.findall(r"\w+", HEADER.read_text(encoding="utf-8")))
    expected = {}
    lines = []
    for name, struct in STRUCTS.items():
        expected[name] = ctypes.sizeof(struct)
        lines.append(f'P("{name}", sizeof(struct {name}));')
        for field, *_ in struct._fields_:
            label = f"{name}.{field}"
            member = ANONYMOUS.get(label, field)
            if field == "reserved" or (member not in words and name != "timeval"):
                continue  # older headers have fewer members, and more reserved words in their place
            expected[label] = getattr(struct, field).offset
            lines.append(f'P("{label}", offsetof(struct {name}, {member}));')
    for name in abi.IOCTL_NAMES.values():
        expected[name] = getattr(abi, name)
        lines.append(f'P("{name}", VIDIOC_{name});')
    for name in NUMBERS:
        if f"V4L2_{name}" not in words:
            continue
        expected[name] = getattr(abi, name)
        lines.append(f'P("{name}", V4L2_{name});')
    source = tmp_path / "layout.c"
    source.write_text(
        "#include <stdio.h>\n#include <stddef.h>\n#include <sys/time.h>\n#include <linux/videodev2.h>\n"
        '#define P(name, value) printf("%s %lu\\n", name, (unsigned long)(unsigned int)(value))\n'
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0; }\n",
        encoding="ascii",
    )
    program = tmp_path / "layout"
    subprocess.run(["gcc", "-o", str(program), str(source)], check=True, timeout=60)
    printed = subprocess.run([str(program)], check=True, stdout=subprocess.PIPE, timeout=60).stdout.decode()
    actual = {name: int(value) for name, value in (line.split() for line in printed.splitlines())}
    assert actual == expected
    assert len(expected) > 150, "the comparison has lost most of its subjects"
