"""V4L2 controls such as exposure and gain, by the names that `v4l2-ctl --list-ctrls` prints."""

import ctypes
import errno
import logging
import re
from typing import Dict, Iterator, List, Mapping

from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.kernel import Device

log = logging.getLogger(__name__)

_SETTABLE = (
    abi.CTRL_TYPE_INTEGER,
    abi.CTRL_TYPE_BOOLEAN,
    abi.CTRL_TYPE_MENU,
    abi.CTRL_TYPE_BUTTON,
    abi.CTRL_TYPE_INTEGER64,
    abi.CTRL_TYPE_BITMASK,
    abi.CTRL_TYPE_INTEGER_MENU,
)
_BYPASS = "bypass_mode"  # Tegra: while it is 1, as Argus leaves it, frames bypass V4L2 and none is delivered
_REJECTED = (errno.EINVAL, errno.ERANGE, errno.EACCES, errno.EBUSY, errno.EIO)


def control_name(driver_name: str) -> str:
    """The name in v4l2-ctl's form: "Exposure (Absolute)" becomes "exposure_absolute"."""
    return re.sub(r"[^a-z0-9]+", "_", driver_name.lower()).strip("_")


def list_controls(device: Device) -> Dict[str, abi.QueryExtCtrl]:
    """The writable numeric controls by name."""
    return {control_name(item.name.decode("utf-8", "replace")): item for item in _enumerate(device)}


def needed_controls(device: Device) -> Dict[str, int]:
    """Controls that this driver needs to deliver frames; the settings take precedence."""
    return {_BYPASS: 0} if _BYPASS in list_controls(device) else {}


def set_controls(device: Device, uri: str, wanted: Mapping[str, int]) -> None:
    """Set controls in the given order; a control that cannot be set is logged as a warning.

    A rejected control is tried once more at the end: an exposure time is rejected while auto exposure is on.
    """
    if not wanted:
        return
    known = list_controls(device)
    rejected: List[str] = []
    for name, value in wanted.items():
        control = known.get(control_name(name))
        if control is None:
            log.warning("%s: no control '%s'; the camera has: %s", uri, name, ", ".join(sorted(known)) or "none")
        elif control.type != abi.CTRL_TYPE_BUTTON and not control.minimum <= value <= control.maximum:
            log.warning("%s: control %s=%d: allowed %d to %d", uri, name, value, control.minimum, control.maximum)
        elif not _set(device, uri, name, control, value, last_try=False):
            rejected.append(name)
    for name in rejected:
        _set(device, uri, name, known[control_name(name)], wanted[name], last_try=True)


def _enumerate(device: Device) -> Iterator[abi.QueryExtCtrl]:
    item = abi.QueryExtCtrl(id=abi.CTRL_FLAG_NEXT_CTRL)
    while device.supports(abi.QUERY_EXT_CTRL, item):
        if item.type in _SETTABLE and not item.flags & (abi.CTRL_FLAG_DISABLED | abi.CTRL_FLAG_READ_ONLY):
            yield item
        item = abi.QueryExtCtrl(id=item.id | abi.CTRL_FLAG_NEXT_CTRL)


def _set(device: Device, uri: str, name: str, control: abi.QueryExtCtrl, value: int, last_try: bool) -> bool:
    """Set one control; False when the driver rejected it."""
    entry = abi.ExtControl(id=control.id)
    wide = control.type == abi.CTRL_TYPE_INTEGER64  # as exposure and gain of Tegra's drivers
    if wide:
        entry.value.value64 = value
    else:
        entry.value.value = value
    request = abi.ExtControls(which=abi.CTRL_WHICH_CUR_VAL, count=1, controls=ctypes.pointer(entry))
    try:
        device.ioctl(abi.S_EXT_CTRLS, request)
    except OSError as error:
        if error.errno not in _REJECTED:
            raise
        if last_try:
            log.warning("%s: control %s=%d: the driver rejects it: %s", uri, name, value, error.strerror)
        return False
    got = int(entry.value.value64 if wide else entry.value.value)
    if got != value and control.type != abi.CTRL_TYPE_BUTTON:
        log.warning("%s: control %s=%d: the driver set %d", uri, name, value, got)
    return True
