"""The machine's temperatures, throttling, power and GPU load, as sysfs shows them; no root rights, no NVIDIA tool.

Names of nodes differ between boards and JetPacks, the interfaces do not: everything is found by what it says it is.
"""

import re
import time
from pathlib import Path
from typing import Callable, Dict, Mapping, Optional

from edge_agent.core.protocol.health import MachineHealth, Throttling
from edge_agent.host.sysfs import Sysfs
from edge_agent.host.sysfs_power import power

_PROCESSOR = re.compile(r"soc|cpu|tj|x86_pkg_temp|k10temp", re.IGNORECASE)
"""Types of thermal zones that lie in the processor: cpu-thermal and soc0-thermal of Jetsons, x86_pkg_temp of PCs."""
_FAN = re.compile(r"fan", re.IGNORECASE)
_LOWEST_MC, _HIGHEST_MC = -60_000, 200_000
"""Zones that are off tell -256 degrees on some boards."""
_MAX_STATE, _MAX_EVENTS = 10_000, 2**63
_GPUS = ("gv11b", "gp10b", "ga10b", "gpu")
_GPU_DEVFREQ = "gpu-gpc"
_GPU_LOADS = (
    "sys/devices/gpu.0/load", "sys/devices/platform/gpu.0/load",
    "sys/devices/17000000.*/load", "sys/devices/platform/17000000.*/load", "sys/devices/platform/bus*/17000000.*/load",
)  # fmt: skip
FRESH_S = 10.0
"""Some sensors answer over a slow bus."""


class Sensors:
    """Callable: the figures, at most `FRESH_S` old. One thread at a time.

    Args:
        root: `/`, or a folder that stands for it.
        monotonic: Seconds.
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
                found[_unused(kind[:64], found)] = round(millidegrees / 1000.0, 1)
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
                active[_unused(kind[:64], active)] = state
        counted = self._over_current()
        for name, count in counted.items():
            # One that could not be read at the start begins now; one that fell has been reset.
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


def _unused(name: str, taken: Mapping[str, object]) -> str:
    number, unused = 1, name
    while unused in taken:
        number += 1
        unused = f"{name}-{number}"
    return unused
