"""What board this is: its model, and on a Jetson the releases of L4T and JetPack."""

import re
from pathlib import Path
from typing import Optional

from edge_agent.host.sysfs import Sysfs

_RELEASE = re.compile(r"R(\d{2,3})\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)")
_JETPACKS = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7, 39: 7}
"""JetPack by L4T's release; the third digits are too many to keep here."""


def board_model(root: Path = Path("/")) -> Optional[str]:
    """The board's name, as its device tree tells; None on machines without one."""
    return Sysfs(root).text(root / "proc/device-tree/model")


def l4t_release(root: Path = Path("/")) -> Optional[str]:
    """NVIDIA's Linux for Tegra, such as "36.4.3"; None elsewhere."""
    found = _RELEASE.search(Sysfs(root).text(root / "etc/nv_tegra_release") or "")
    return f"{found.group(1)}.{found.group(2)}" if found else None


def jetpack(root: Path = Path("/")) -> Optional[str]:
    """Such as "6 (L4T 36.4.3)"; the release alone where it is not known which JetPack it belongs to."""
    release = l4t_release(root)
    if release is None:
        return None
    number = _JETPACKS.get(int(release.split(".")[0]))
    return f"L4T {release}" if number is None else f"{number} (L4T {release})"
