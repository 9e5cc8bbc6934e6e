"""How warm the processor is, as Linux tells it."""

import re
from pathlib import Path
from typing import Optional

_PROCESSOR = re.compile(r"soc|cpu|tj|x86_pkg_temp|k10temp", re.IGNORECASE)
"""Types of thermal zones that lie in the processor: cpu-thermal and soc0-thermal of Jetsons, x86_pkg_temp of PCs."""


def processor_temperature_c(root: Path = Path("/sys/class/thermal")) -> Optional[float]:
    """The warmest of the processor's zones; None where there is none, or none that can be read now."""
    found = []
    for zone in root.glob("thermal_zone*"):
        try:
            if _PROCESSOR.search((zone / "type").read_text("ascii")):
                found.append(int((zone / "temp").read_text("ascii")) / 1000.0)
        except (OSError, ValueError):
            # A zone whose engine is powered down answers with an error.
            continue
    return round(max(found), 1) if found else None
