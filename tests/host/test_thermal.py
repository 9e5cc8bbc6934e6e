"""Thermal zones as sysfs shows them."""

from edge_agent.host.thermal import processor_temperature_c


def zone(root, number, kind, temp):
    folder = root / f"thermal_zone{number}"
    folder.mkdir()
    (folder / "type").write_text(f"{kind}\n")
    if temp is not None:
        (folder / "temp").write_text(f"{temp}\n")


def test_the_warmest_of_the_processors_zones(tmp_path):
    zone(tmp_path, 0, "cpu-thermal", 48500)
    zone(tmp_path, 1, "soc0-thermal", 51250)
    zone(tmp_path, 2, "gpu-thermal", 70000)
    zone(tmp_path, 3, "cv0-thermal", None)
    zone(tmp_path, 4, "tj-thermal", "")
    assert processor_temperature_c(tmp_path) == 51.2


def test_a_machine_that_does_not_tell(tmp_path):
    assert processor_temperature_c(tmp_path) is None
    zone(tmp_path, 0, "acpitz", 20000)
    assert processor_temperature_c(tmp_path) is None
