"""What the machine tells of itself: temperatures, throttling, power, the GPU's load."""

from dataclasses import dataclass, field
from typing import Any, Dict, Mapping, Optional


@dataclass(frozen=True)
class Throttling:
    """What holds the processors back.

    Attributes:
        active: Cooling devices that are at work now, and how hard; fans are none. None where there are none.
        over_current: Throttle events since the agent's start, by the SoC's own name: oc1 under-voltage, oc2 average,
            oc3 peak current. None where they are not counted.
    """

    active: Optional[Mapping[str, int]] = None
    over_current: Optional[Mapping[str, int]] = None


@dataclass(frozen=True)
class Power:
    """Rails that are measured.

    Attributes:
        rails_w: Watts by the rail's name.
        total_w: Of the whole module; None where no rail, or known set of rails, stands for it.
    """

    rails_w: Mapping[str, float]
    total_w: Optional[float] = None


@dataclass(frozen=True)
class MachineHealth:
    """Every figure is missing or None where it cannot be had; 0 is a measurement.

    Attributes:
        temperature_c: The warmest of the processor's zones.
        temperatures_c: All zones that can be read now, by type.
        gpu_load: 0..1.
    """

    temperature_c: Optional[float] = None
    temperatures_c: Mapping[str, float] = field(default_factory=dict)
    throttling: Optional[Throttling] = None
    power: Optional[Power] = None
    gpu_load: Optional[float] = None

    def payload(self) -> Dict[str, Any]:
        """Its share of the health message."""
        throttling, power = self.throttling, self.power
        return {
            "temperature_c": self.temperature_c,
            "temperatures_c": dict(self.temperatures_c),
            "throttling": throttling
            and {
                "active": None if throttling.active is None else dict(throttling.active),
                "over_current": None if throttling.over_current is None else dict(throttling.over_current),
            },
            "power": power and {"total_w": power.total_w, "rails_w": dict(power.rails_w)},
            "gpu_load": self.gpu_load,
        }
