"""Which /dev/videoN is the camera: numbers change when cameras come and go, so links and identity decide."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional, Tuple

from edge_agent.capture.v4l2 import abi
from edge_agent.capture.v4l2.kernel import Device, Kernel, explain
from edge_agent.errors import SourceError


@dataclass(frozen=True)
class Identity:
    """What tells one camera from another.

    Attributes:
        driver: From QUERYCAP.
        card: From QUERYCAP: the model's name.
        bus_info: From QUERYCAP: the port that it is plugged into.
        usb: "vendor:product:serial" from sysfs; empty when not USB.
        serial: From sysfs; empty when it has none.
        unit: Interface and index within the device: one module may hold a colour and an infrared camera.
    """

    driver: str
    card: str
    bus_info: str
    usb: str = ""
    serial: str = ""
    unit: str = ""

    def is_same_camera(self, other: "Identity") -> bool:
        """By serial number where there is one, wherever it is plugged in; else by model and port."""
        if self.unit != other.unit or self.usb != other.usb:
            return False
        return bool(self.serial) or (self.card, self.bus_info) == (other.card, other.bus_info)


class NodeFinder:
    """Finds the node of one camera at every open, and remembers what the camera was when it was first seen.

    Args:
        uri: As the user calls the camera, for messages.
        path: Node or link that the user gave.
        root: Where `dev` and `sys` are.
    """

    def __init__(self, uri: str, path: str, root: Path) -> None:
        self._uri = uri
        self._path = path
        self._root = root
        self._known: Optional[Identity] = None
        self._links: Tuple[str, ...] = ()

    def open(self, kernel: Kernel) -> Tuple[Device, Identity]:
        """Open the camera's capture node.

        Raises:
            SourceError: It is not there, cannot be opened, or is no capture device; a node of another camera is never
                taken instead.
        """
        fault: Optional[SourceError] = None
        stranger: Optional[str] = None
        for path in self._candidates():
            node = os.path.realpath(path)
            try:
                device, identity = self._open_node(kernel, node)
            except SourceError as error:
                fault = fault or error
                continue
            if self._accepts(path, identity):
                self._known = identity
                self._links = tuple(self._links_to(node))
                return device, identity
            device.close()
            if path == self._path:
                stranger = f"{node} is now '{identity.card}' at {identity.bus_info}"
        if stranger is not None and self._known is not None:
            raise SourceError(
                f"{self._uri}: {stranger}, not '{self._known.card}' at {self._known.bus_info}",
                "plug the camera in again, or use its link in /dev/v4l/by-id or by-path; a restart accepts the new one",
            )
        raise fault or explain(self._uri, self._path, FileNotFoundError(2, "no video node"))

    def _accepts(self, path: str, identity: Identity) -> bool:
        """A link that the user gave is trusted; a bare number must still be the same camera."""
        return (
            self._known is None
            or (path == self._path and Path(path).is_symlink())
            or self._known.is_same_camera(identity)
        )

    def _candidates(self) -> Iterator[str]:
        yield self._path
        if self._known is None:
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
        if caps & abi.CAP_DEVICE_CAPS:  # what this node can do, rather than its whole device
            caps = capability.device_caps
        if not caps & abi.CAP_VIDEO_CAPTURE:
            why = "has only the multi-planar API" if caps & abi.CAP_VIDEO_CAPTURE_MPLANE else "delivers no pictures"
            raise SourceError(
                f"{self._uri}: {device.path} {why}",
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
        """("vendor:product:serial", serial, "interface:index") of a node; empty where sysfs does not tell."""
        entry = self._root / "sys/class/video4linux" / name
        interface = Path(os.path.realpath(str(entry / "device")))
        device = interface.parent
        unit = f"{_line(interface / 'bInterfaceNumber')}:{_line(entry / 'index')}"
        vendor = _line(device / "idVendor")
        if not vendor:
            return "", "", unit
        serial = _line(device / "serial")
        return f"{vendor}:{_line(device / 'idProduct')}:{serial}", serial, unit


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
