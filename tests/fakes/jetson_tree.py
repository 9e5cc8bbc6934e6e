"""File trees of Jetsons under /sys, /proc and /etc, after NVIDIA's documents; not recorded on boards.

JetPack 4: a Nano. 5: an Xavier NX. 6: an AGX Orin. 7: a Thor.
"""

import os
from pathlib import Path
from typing import Any, Dict, List, Optional

RELEASES = {
    4: "# R32 (release), REVISION: 7.5, GCID: 36557394, BOARD: t210ref, EABI: aarch64, DATE: Fri Apr 19 2024",
    5: "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 2023",
    6: "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025",
    7: "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: Fri Aug 22 2025",
}
MODELS = {
    4: "NVIDIA Jetson Nano Developer Kit",
    5: "NVIDIA Jetson Xavier NX Developer Kit",
    6: "NVIDIA Jetson AGX Orin Developer Kit",
    7: "NVIDIA Jetson AGX Thor Developer Kit",
}
ZONES: Dict[int, Dict[str, int]] = {
    4: {"AO-therm": 47000, "CPU-therm": 41500, "GPU-therm": 39000, "PLL-therm": 40000, "thermal-fan-est": 40750},
    5: {"AO-therm": 42000, "CPU-therm": 43250, "GPU-therm": 41500, "AUX-therm": 42000},
    6: {"cpu-thermal": 48562, "gpu-thermal": 44000, "cv0-thermal": -256000, "soc0-thermal": 46093, "tj-thermal": 48562},
    7: {
        "cpu-thermal": 50156,
        "gpu-thermal": 47718,
        "soc012-thermal": 49062,
        "soc345-thermal": 48000,
        "tj-thermal": 50156,
    },
}
COOLERS: Dict[int, Dict[str, int]] = {
    4: {"pwm-fan": 3, "tegra-heavy": 0, "cpu-balanced": 2},
    5: {"pwm-fan": 1, "cpufreq-cpu0": 0},
    6: {"pwm-fan": 0, "cpu-throttle-alert": 0, "hot-surface-alert": 1},
    7: {"pwm-fan": 2, "cpu-throttle-alert": 0},
}


class JetsonTree:
    """A root folder of one JetPack; parts of it can be switched off or damaged afterwards.

    Args:
        root: An empty folder.
        jetpack: 4 to 7.
    """

    def __init__(self, root: Path, jetpack: int) -> None:
        self.root, self.jetpack = root, jetpack
        self._held: List[int] = []
        self.write("etc/nv_tegra_release", RELEASES[jetpack])
        self.write("proc/device-tree/model", f"{MODELS[jetpack]}\0")
        for number, (kind, value) in enumerate(ZONES[jetpack].items()):
            self.write(f"sys/class/thermal/thermal_zone{number}/type", kind)
            self.write(f"sys/class/thermal/thermal_zone{number}/temp", value)
        for number, (kind, value) in enumerate(COOLERS[jetpack].items()):
            self.write(f"sys/class/thermal/cooling_device{number}/type", kind)
            self.write(f"sys/class/thermal/cooling_device{number}/cur_state", value)
        {4: self._jetpack4, 5: self._jetpack5, 6: self._jetpack6, 7: self._jetpack7}[jetpack]()

    def write(self, path: str, value: Any) -> Path:
        """One attribute, as the kernel ends it."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(value if isinstance(value, bytes) else f"{value}\n".encode())
        return file

    def files(self) -> List[Path]:
        """All attributes."""
        return sorted(path for path in self.root.rglob("*") if path.is_file() and not path.is_symlink())

    def zone(self, kind: str) -> str:
        """A thermal zone's folder."""
        return f"sys/class/thermal/thermal_zone{list(ZONES[self.jetpack]).index(kind)}"

    def power_off(self, path: Path) -> None:
        """Make reading fail with EAGAIN, as for a powered-off block."""
        path.unlink()
        os.mkfifo(path)
        # A pipe with a writer and without data.
        self._held.append(os.open(path, os.O_RDWR | os.O_NONBLOCK))

    def close(self) -> None:
        """Close the pipes of `power_off`."""
        while self._held:
            os.close(self._held.pop())

    def _jetpack4(self) -> None:
        sensor = "sys/bus/i2c/devices/6-0040"
        self.write(f"{sensor}/name", "ina3221x")
        for channel, (label, milliwatt) in enumerate({"POM_5V_IN": 2890, "POM_5V_GPU": 121, "POM_5V_CPU": 806}.items()):
            self.write(f"{sensor}/iio:device0/rail_name_{channel}", label)
            self.write(f"{sensor}/iio:device0/in_power{channel}_input", milliwatt)
        self.write("sys/devices/gpu.0/load", 312)

    def _jetpack5(self) -> None:
        self._hwmon("7-0040", {"VDD_IN": (4936, 1032), "VDD_CPU_GPU_CV": (4936, 192), "VDD_SOC": (4928, 272)})
        self._devfreq("17000000.gv11b", "gv11b", 55, "sys/devices")
        self._over_current("soctherm-oc-event", {"oc1": 4})

    def _jetpack6(self) -> None:
        self._hwmon("1-0040", {"VDD_GPU_SOC": (19752, 160), "VDD_CPU_CV": (19752, 40), "VIN_SYS_5V0": (5000, 800)})
        self._hwmon("1-0041", {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 200)}, number=4)
        self._devfreq("17000000.gpu", "gpu", 0, "sys/devices/platform/bus@0")
        self._over_current("soctherm-oc-event", {"oc1": 0, "oc2": 0, "oc3": 12})

    def _jetpack7(self) -> None:
        self._hwmon("2-0040", {"VDD_GPU": (12000, 500), "VDD_CPU_SOC_MSS": (12000, 400), "VIN_SYS_5V0": (5000, 900)})
        self._devfreq("gpu-gpc-0", None, 730, "sys/devices/platform/bus@0")

    def _hwmon(self, device: str, rails: Dict[str, Any], number: int = 3) -> None:
        self.write(f"sys/bus/i2c/devices/{device}/name", "ina3221")
        folder = f"sys/bus/i2c/devices/{device}/hwmon/hwmon{number}"
        for channel, (label, (millivolt, milliampere)) in enumerate(rails.items(), 1):
            self.write(f"{folder}/in{channel}_label", label)
            self.write(f"{folder}/in{channel}_input", millivolt)
            self.write(f"{folder}/curr{channel}_input", milliampere)
        self.write(f"{folder}/in7_label", "sum of shunt voltages")
        self.write(f"{folder}/in7_input", 24)

    def _devfreq(self, entry: str, node: Optional[str], load: int, where: str) -> None:
        device = f"{where}/{entry}"
        self.write(f"{device}/load", load)
        if node is not None:
            self.write(f"{device}/of_node/name", f"{node}\0")
        folder = self.root / "sys/class/devfreq" / entry
        folder.mkdir(parents=True)
        (folder / "device").symlink_to(self.root / device)

    def _over_current(self, name: str, counts: Dict[str, int]) -> None:
        for kind, count in counts.items():
            self.write(f"sys/devices/platform/{name}/hwmon/hwmon1/{kind}_event_cnt", count)
            self.write(f"sys/devices/platform/{name}/hwmon/hwmon1/{kind}_throt_en", 1)
