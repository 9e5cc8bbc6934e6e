"""Search for a camera's video node. Node numbers change on replugging, so links and the identity decide."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Tuple

from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.kernel import Device, Kernel, explain
from edge_agent.errors import SourceError


@dataclass(frozen=True)
class Identity:
    """Attributes that distinguish cameras.

    Attributes:
        driver: From QUERYCAP.
        card: From QUERYCAP: name of the model.
        bus_info: From QUERYCAP: the port.
        usb: "vendor:product:serial" from sysfs; empty for other buses.
        serial: From sysfs; empty without a serial number.
        unit: Interface and index within the device; a module may have a colour and an infrared camera.
    """

    driver: str
    card: str
    bus_info: str
    usb: str = ""
    serial: str = ""
    unit: str = ""

    def is_same_camera(self, other: "Identity") -> bool:
        """Compares the serial number where there is one, else model and port."""
        if self.unit != other.unit or self.usb != other.usb:
            return False
        return bool(self.serial) or (self.card, self.bus_info) == (other.card, other.bus_info)


class NodeFinder:
    """Finds the node of one camera at every open, and keeps the identity of the first one found.

    Args:
        uri: The camera's URI, for messages.
        path: The configured node or link.
        root: Parent of `dev` and `sys`.
    """

    def __init__(self, uri: str, path: str, root: Path) -> None:
        self._uri = uri
        self._path = path
        self._root = root
        self._identity: Optional[Identity] = None
        self._links: Tuple[str, ...] = ()

    def open(self, kernel: Kernel) -> Tuple[Device, Identity]:
        """Open the camera's capture node.

        Raises:
            SourceError: The node is missing, cannot be opened, is not a capture device, or belongs to another camera.
        """
        fault: Optional[SourceError] = None
        other_camera: Optional[str] = None
        for path in self._candidates():
            node = os.path.realpath(path)
            try:
                device, identity = self._open_node(kernel, node)
            except SourceError as error:
                fault = fault or error
                continue
            if self._accepts(path, identity):
                self._identity = identity
                self._links = tuple(self._links_to(node))
                return device, identity
            device.close()
            if path == self._path:
                other_camera = f"{node} is now '{identity.card}' at {identity.bus_info}"
        if other_camera is not None and self._identity is not None:
            raise SourceError(
                f"{self._uri}: {other_camera}, not '{self._identity.card}' at {self._identity.bus_info}",
                "plug the camera in again, or use its link in /dev/v4l/by-id or by-path; a restart accepts the new one",
            )
        raise fault or explain(self._uri, self._path, FileNotFoundError(2, "no video node"))

    def _accepts(self, path: str, identity: Identity) -> bool:
        """Whether the node may be used: a configured link always; a node only when it is the same camera."""
        return (
            self._identity is None
            or (path == self._path and Path(path).is_symlink())
            or self._identity.is_same_camera(identity)
        )

    def _candidates(self) -> Iterator[str]:
        yield self._path
        if self._identity is None:
            return
        yield from (link for link in self._links if Path(link).exists())
        yield from (str(node) for node in sorted((self._root / "dev").glob("video*")))

    def _links_to(self, node: str) -> Iterator[str]:
        for folder in ("by-id", "by-path"):
            for link in sorted((self._root / "dev/v4l" / folder).glob("*")):
                if os.path.realpath(str(link)) == node:
                    yield str(link)

    def _open_node(self, kernel: Kernel, node: str) -> Tuple[Device, Identity]:
        try:
            device = Device(kernel, node)
        except OSError as error:
            raise explain(self._uri, node, error) from error
        try:
            return device, self._identify(device)
        except OSError as error:
            device.close()
            raise explain(self._uri, node, error) from error
        except SourceError:
            device.close()
            raise

    def _identify(self, device: Device) -> Identity:
        capability = abi.Capability()
        device.ioctl(abi.QUERYCAP, capability)
        caps = capability.capabilities
        if caps & abi.CAP_DEVICE_CAPS:  # the capabilities of this node, not of the whole device
            caps = capability.device_caps
        if not caps & abi.CAP_VIDEO_CAPTURE:
            reason = "has only the multi-planar API" if caps & abi.CAP_VIDEO_CAPTURE_MPLANE else "is not a capture node"
            raise SourceError(
                f"{self._uri}: {device.path} {reason}",
                "expected a single-planar capture node; cameras often have a second node for metadata, try the others",
            )
        if not caps & abi.CAP_STREAMING:
            raise SourceError(f"{self._uri}: {device.path} cannot stream", "expected a driver with streaming I/O")
        usb, serial, unit = self._sysfs(Path(device.path).name)
        return Identity(
            driver=capability.driver.decode("utf-8", "replace"),
            card=capability.card.decode("utf-8", "replace"),
            bus_info=capability.bus_info.decode("utf-8", "replace"),
            usb=usb,
            serial=serial,
            unit=unit,
        )

    def _sysfs(self, name: str) -> Tuple[str, str, str]:
        """("vendor:product:serial", serial, "interface:index") of a node; empty without sysfs entries."""
        entry = self._root / "sys/class/video4linux" / name
        interface = Path(os.path.realpath(str(entry / "device")))
        device = interface.parent
        unit = f"{_read_line(interface / 'bInterfaceNumber')}:{_read_line(entry / 'index')}"
        vendor = _read_line(device / "idVendor")
        if not vendor:
            return "", "", unit
        serial = _read_line(device / "serial")
        return f"{vendor}:{_read_line(device / 'idProduct')}:{serial}", serial, unit


def _read_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
