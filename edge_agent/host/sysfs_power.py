"""Power rails of Jetsons: INA3221 sensors behind I2C, by hwmon (JetPack 5 and newer) or by iio (JetPack 4)."""

from pathlib import Path
from typing import Dict, Iterator, Optional, Tuple

from edge_agent.core.protocol.health import Power
from edge_agent.host.sysfs import Sysfs

_CHANNELS = (1, 2, 3)
"""A fourth to sixth are shunt voltages, the seventh is their sum."""
_MAX_MV, _MAX_MA, _MAX_MW = 60_000, 100_000, 1_000_000
_WHOLE = ("VDD_IN", "POM_5V_IN")
"""Rails that feed the whole module."""
_PARTS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
"""Together the whole of an AGX Orin; a further rail there is fed by the last of them."""


def power(sysfs: Sysfs) -> Optional[Power]:
    """Rails that can be read now; None where there is no sensor."""
    rails: Dict[str, float] = {}
    sensors = 0
    for name in sysfs.glob("sys/bus/i2c/devices/*/name"):
        if "ina3221" in (sysfs.text(name) or ""):
            sensors += 1
            rails.update(_hwmon(sysfs, name.parent))
            rails.update(_iio(sysfs, name.parent))
    return Power(rails, _total(rails)) if sensors else None


def _hwmon(sysfs: Sysfs, device: Path) -> Iterator[Tuple[str, float]]:
    for folder in sysfs.glob(f"{device.relative_to(sysfs.root)}/hwmon/hwmon*"):
        for channel in _CHANNELS:
            label = _label(sysfs.text(folder / f"in{channel}_label"))
            millivolt = sysfs.number(folder / f"in{channel}_input", 0, _MAX_MV)
            milliampere = sysfs.number(folder / f"curr{channel}_input", -_MAX_MA, _MAX_MA)
            if label and millivolt is not None and milliampere is not None:
                yield label, round(millivolt * milliampere / 1e6, 3)


def _iio(sysfs: Sysfs, device: Path) -> Iterator[Tuple[str, float]]:
    for folder in sysfs.glob(f"{device.relative_to(sysfs.root)}/iio:device*"):
        for channel in range(len(_CHANNELS)):
            label = _label(sysfs.text(folder / f"rail_name_{channel}"))
            milliwatt = sysfs.number(folder / f"in_power{channel}_input", -_MAX_MW, _MAX_MW)
            if label and milliwatt is not None:
                yield label, round(milliwatt / 1e3, 3)


def _label(text: Optional[str]) -> Optional[str]:
    return None if text is None or text.upper() == "NC" or len(text) > 64 else text


def _total(rails: Dict[str, float]) -> Optional[float]:
    for name in _WHOLE:
        if name in rails:
            return rails[name]
    if all(name in rails for name in _PARTS):
        return round(sum(rails[name] for name in _PARTS), 3)
    return None
