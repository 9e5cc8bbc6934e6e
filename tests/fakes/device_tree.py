"""The files of /dev, /dev/v4l and /sys that udev and the kernel keep for video nodes, under a folder."""

from pathlib import Path
from typing import List

from tests.fakes.v4l2_camera import FakeCamera


class DeviceTree:
    """Nodes are empty files; links and sysfs entries are as for USB cameras.

    Args:
        root: An empty folder; becomes the `root` of the source under test.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("dev/v4l/by-id", "dev/v4l/by-path", "sys/class/video4linux"):
            (root / folder).mkdir(parents=True)

    def node(self, number: int) -> str:
        """The path of /dev/videoN."""
        return str(self.root / "dev" / f"video{number}")

    def links(self, camera: FakeCamera) -> List[Path]:
        """The camera's names by model and serial number, and by port; they exist while udev keeps them."""
        model = camera.card.split(":")[0].replace(" ", "_")
        v4l = self.root / "dev/v4l"
        return [
            v4l / "by-id" / f"usb-{model}_{camera.serial}-video-index{int(camera.interface)}",
            v4l / "by-path" / f"pci-{camera.bus_info}:1.{int(camera.interface)}-video-index0",
        ]

    def add(self, camera: FakeCamera, number: int, links: bool) -> None:
        """Create the kernel's entries, and udev's links, which may come late or never."""
        Path(self.node(number)).touch()
        self._add_sysfs(camera, f"video{number}")
        if links:
            for link in self.links(camera):
                link.symlink_to(f"../../video{number}")

    def remove(self, camera: FakeCamera, node: str) -> None:
        """Remove all of its entries."""
        Path(node).unlink()
        entry = self.root / "sys/class/video4linux" / Path(node).name
        (entry / "device").unlink()
        (entry / "index").unlink()
        entry.rmdir()
        for link in self.links(camera):
            if link.is_symlink():
                link.unlink()

    def _add_sysfs(self, camera: FakeCamera, name: str) -> None:
        device = self.root / "sys/devices" / f"{camera.bus_info}-{camera.serial}"
        interface = device / f"1-1:1.{int(camera.interface)}"
        interface.mkdir(parents=True, exist_ok=True)
        if camera.usb_id is not None:
            _write(interface / "bInterfaceNumber", camera.interface)
            _write(device / "idVendor", camera.usb_id[0])
            _write(device / "idProduct", camera.usb_id[1])
            if camera.serial:
                _write(device / "serial", camera.serial)
        entry = self.root / "sys/class/video4linux" / name
        entry.mkdir()
        (entry / "device").symlink_to(interface)
        _write(entry / "index", "0")


def _write(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="ascii")
