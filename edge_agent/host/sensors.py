"""Temperatures, throttling, power and GPU load of the machine from sysfs, and the board's model and JetPack.

Needs neither root rights nor NVIDIA's tools. Node names differ between boards and JetPacks, so nodes are found by
their type and label attributes.
"""

import os
import re
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, Mapping, Optional, Tuple

from edge_agent.core.protocol.health import MachineHealth, Power, Throttling

_PROCESSOR = re.compile(r"soc|cpu|tj|x86_pkg_temp|k10temp", re.IGNORECASE)
"""Types of thermal zones in the processor: cpu-thermal and soc0-thermal of Jetsons, x86_pkg_temp of PCs."""
_FAN = re.compile(r"fan", re.IGNORECASE)
_LOWEST_MC, _HIGHEST_MC = -60_000, 200_000
"""Powered-off zones report -256 degrees C on some boards."""
_MAX_STATE, _MAX_EVENTS = 10_000, 2**63
_GPUS = ("gv11b", "gp10b", "ga10b", "gpu")
_GPU_DEVFREQ = "gpu-gpc"
_GPU_LOADS = (
    "sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load",
    "sys/devices/17000000.*/load", "sys/devices/platform/17000000.*/load", "sys/devices/platform/bus*/17000000.*/load",
)  # fmt: skip
FRESH_S = 10.0
"""Cache time of the figures; some sensors are on a slow bus."""
_CHANNELS = (1, 2, 3)
"""Channels 4 to 6 are shunt voltages, channel 7 is their sum."""
_MAX_MV, _MAX_MA, _MAX_MW = 60_000, 100_000, 1_000_000
_MODULE_RAILS = ("VDD_IN", "POM_5V_IN")
"""Rails that supply the whole module."""
_ORIN_RAILS = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
"""Rails that together supply an AGX Orin; its other rail is supplied by the last of these."""
PAGE_BYTES = 4096
"""Largest size of a sysfs attribute."""
_RELEASE = re.compile(r"R(\d{2,3})\s*\(release\),\s*REVISION:\s*(\d+(?:\.\d+)*)")
_JETPACKS = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7, 39: 7}
"""JetPack by L4T's major release."""


class Sysfs:
    """Reads sysfs and other files of the kernel.

    Args:
        root: `/`, or another folder in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def glob(self, pattern: str) -> Iterator[Path]:
        """Sorted paths below the root; none when a folder is missing or cannot be listed."""
        try:
            yield from sorted(self.root.glob(pattern))
        except OSError:
            return

    def text(self, path: Path) -> Optional[str]:
        """One attribute without surrounding white space; None when it is empty or cannot be read.

        A powered-off block returns EAGAIN or EINVAL, a disabled sensor ENODATA. The file is opened non-blocking, so a
        node cannot block the reader.
        """
        try:
            file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError):
            return None
        try:
            return os.read(file, PAGE_BYTES).decode("utf-8").strip("\0 \t\r\n") or None
        except (OSError, UnicodeDecodeError):
            return None
        finally:
            os.close(file)

    def number(self, path: Path, low: int, high: int) -> Optional[int]:
        """One integer attribute; None when it is not an integer from `low` to `high`."""
        text = self.text(path)
        # int() also accepts "1_000" and digits of other alphabets.
        if text is None or len(text) > 20 or not text.lstrip("-").isascii() or not text.lstrip("-").isdigit():
            return None
        try:
            value = int(text)
        except ValueError:
            return None
        return value if low <= value <= high else None


class Sensors:
    """Callable that returns the machine's figures, at most `FRESH_S` old. Not thread-safe.

    Args:
        root: `/`, or another folder in tests.
        monotonic: Clock in seconds.
    """

    def __init__(self, root: Path = Path("/"), monotonic: Callable[[], float] = time.monotonic) -> None:
        self._sysfs = Sysfs(root)
        self._monotonic = monotonic
        self._read_t = float("-inf")
        self._figures = MachineHealth()
        self._events_before: Dict[str, int] = {}
        self._events = self._over_current()

    def __call__(self) -> MachineHealth:
        now_t = self._monotonic()
        if now_t - self._read_t >= FRESH_S:
            self._read_t = now_t
            self._figures = self._read()
        return self._figures

    def _read(self) -> MachineHealth:
        zones = self._temperatures()
        processor = [value for name, value in zones.items() if _PROCESSOR.search(name)]
        return MachineHealth(
            max(processor) if processor else None, zones, self._throttling(), power(self._sysfs), self._gpu_load()
        )

    def _temperatures(self) -> Dict[str, float]:
        found: Dict[str, float] = {}
        for zone in self._sysfs.glob("sys/class/thermal/thermal_zone*"):
            kind = self._sysfs.text(zone / "type")
            millidegrees = self._sysfs.number(zone / "temp", _LOWEST_MC, _HIGHEST_MC)
            if kind is not None and millidegrees is not None:
                found[_unique_name(kind[:64], found)] = round(millidegrees / 1000.0, 1)
        return found

    def _throttling(self) -> Optional[Throttling]:
        active: Dict[str, int] = {}
        coolers = 0
        for device in self._sysfs.glob("sys/class/thermal/cooling_device*"):
            kind = self._sysfs.text(device / "type")
            state = self._sysfs.number(device / "cur_state", 0, _MAX_STATE)
            if kind is None or state is None or _FAN.search(kind):
                continue
            coolers += 1
            if state:
                active[_unique_name(kind[:64], active)] = state
        counted = self._over_current()
        for name, count in counted.items():
            # A counter first readable now starts at zero; a counter that fell was reset.
            self._events_before[name] = min(self._events_before.get(name, self._events.get(name, count)), count)
        events = {name: count - self._events_before[name] for name, count in counted.items()}
        if not coolers and not events:
            return None
        return Throttling(active if coolers else None, events or None)

    def _over_current(self) -> Dict[str, int]:
        found = {}
        for path in self._sysfs.glob("sys/devices/platform/*soctherm-oc-event/hwmon/hwmon*/oc[1-3]_event_cnt"):
            count = self._sysfs.number(path, 0, _MAX_EVENTS)
            if count is not None:
                found[path.name[: -len("_event_cnt")]] = count
        return found

    def _gpu_load(self) -> Optional[float]:
        for entry in self._sysfs.glob("sys/class/devfreq/*"):
            device = entry / "device"
            if self._sysfs.text(device / "of_node/name") in _GPUS or entry.name.startswith(_GPU_DEVFREQ):
                load = self._sysfs.number(device / "load", 0, 1000)
                if load is not None:
                    return load / 1000.0
        for pattern in _GPU_LOADS:
            for path in self._sysfs.glob(pattern):
                load = self._sysfs.number(path, 0, 1000)
                if load is not None:
                    return load / 1000.0
        return None


def _unique_name(name: str, taken: Mapping[str, object]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    return unique


def power(sysfs: Sysfs) -> Optional[Power]:
    """Power of all readable rails in W, from INA3221 sensors; None without a sensor."""
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
    for name in _MODULE_RAILS:
        if name in rails:
            return rails[name]
    if all(name in rails for name in _ORIN_RAILS):
        return round(sum(rails[name] for name in _ORIN_RAILS), 3)
    return None


def board_model(root: Path = Path("/")) -> Optional[str]:
    """The board's name from its device tree; None without a device tree."""
    return Sysfs(root).text(root / "proc/device-tree/model")


def l4t_release(root: Path = Path("/")) -> Optional[str]:
    """The release of NVIDIA's Linux for Tegra, such as "36.4.3"; None on other systems."""
    found = _RELEASE.search(Sysfs(root).text(root / "etc/nv_tegra_release") or "")
    return f"{found.group(1)}.{found.group(2)}" if found else None


def jetpack(root: Path = Path("/")) -> Optional[str]:
    """JetPack and release, such as "6 (L4T 36.4.3)"; the release alone when its JetPack is unknown."""
    release = l4t_release(root)
    if release is None:
        return None
    number = _JETPACKS.get(int(release.split(".")[0]))
    return f"L4T {release}" if number is None else f"{number} (L4T {release})"
