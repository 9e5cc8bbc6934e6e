"""The machine's figures on file trees of each JetPack, with missing and invalid attributes."""

import json
import random

import pytest

from edge_agent.core.protocol.health import MachineHealth, Power, Throttling
from edge_agent.host.sensors import FRESH_S, Sensors, board_model, jetpack
from tests.fakes.jetson_tree import MODELS, ZONES, JetsonTree
from tests.fakes.schemas import VALIDATORS

JETPACKS = (4, 5, 6, 7)
INVALID = (
    b"", b"\n", b"\0", b"nonsense\n", b"\xff\xfe\xfd", b"9" * 5000, b"-9999999999999999999", b"1_000", b"1e3", b"0x10",
    "٣".encode(), "²".encode(), b"--5", b"-", b"NaN", b"1 2 3", b" " * 4096 + b"7",
)  # fmt: skip


@pytest.fixture
def tree(tmp_path, request):
    made = JetsonTree(tmp_path, request.param)
    yield made
    made.close()


def read(tree) -> MachineHealth:
    return Sensors(tree.root)()


def mismatch(figures: MachineHealth) -> list:
    """Errors of the figures by the schema of the health message."""
    schema = VALIDATORS["edge-agent.health/1"]
    payload = json.loads(json.dumps(figures.payload(), allow_nan=False))
    return [
        error.message for name, value in payload.items()
        for error in schema.evolve(schema=schema.schema["properties"][name]).iter_errors(value)
    ]  # fmt: skip


EXPECTED = {
    4: (41.5, 0.312, Power({"POM_5V_IN": 2.89, "POM_5V_GPU": 0.121, "POM_5V_CPU": 0.806}, 2.89), {"cpu-balanced": 2}),
    5: (43.2, 0.055, Power({"VDD_IN": 5.094, "VDD_CPU_GPU_CV": 0.948, "VDD_SOC": 1.34}, 5.094), {}),
    6: (
        48.6, 0.0,
        Power({"VDD_GPU_SOC": 3.16, "VDD_CPU_CV": 0.79, "VIN_SYS_5V0": 4.0, "VDDQ_VDD2_1V8AO": 1.0}, 7.95),
        {"hot-surface-alert": 1},
    ),
    7: (50.2, 0.73, Power({"VDD_GPU": 6.0, "VDD_CPU_SOC_MSS": 4.8, "VIN_SYS_5V0": 4.5}, None), {}),
}  # fmt: skip


@pytest.mark.parametrize("tree", JETPACKS, indirect=True)
def test_every_figure_of_a_board(tree):
    figures = read(tree)
    temperature, load, power, active = EXPECTED[tree.jetpack]
    assert (figures.temperature_c, figures.gpu_load, figures.power) == (temperature, load, power)
    assert figures.throttling.active == active
    assert set(figures.temperatures_c) == {name for name, value in ZONES[tree.jetpack].items() if value > -100_000}
    assert board_model(tree.root) == MODELS[tree.jetpack]
    assert jetpack(tree.root).startswith(f"{tree.jetpack} (L4T 3")
    assert mismatch(figures) == []


@pytest.mark.parametrize("tree", [6], indirect=True)
def test_over_current_events_count_from_the_agents_start(tree):
    now = [0.0]
    sensors = Sensors(tree.root, lambda: now[0])
    folder = "sys/devices/platform/soctherm-oc-event/hwmon/hwmon1"

    def later():
        now[0] += FRESH_S
        return sensors().throttling.over_current

    assert later() == {"oc1": 0, "oc2": 0, "oc3": 0}, "events before the start do not count"
    tree.write(f"{folder}/oc3_event_cnt", 15)
    assert sensors().throttling.over_current["oc3"] == 0, "the figures are still cached"
    assert later()["oc3"] == 3
    tree.write(f"{folder}/oc3_event_cnt", 1)
    assert later()["oc3"] == 0
    tree.write(f"{folder}/oc3_event_cnt", 2)
    assert later()["oc3"] == 1
    tree.write(f"{folder}/oc3_event_cnt", "?")
    assert "oc3" not in later(), "missing, not zero"


@pytest.mark.parametrize("tree", JETPACKS, indirect=True)
def test_a_powered_off_block_is_missing_and_the_rest_stays(tree):
    hot = next(name for name, value in ZONES[tree.jetpack].items() if value > 0)
    whole = dict(read(tree).temperatures_c)
    tree.power_off(tree.root / tree.zone(hot) / "temp")
    whole.pop(hot)
    assert read(tree).temperatures_c == whole


@pytest.mark.parametrize("tree", JETPACKS, indirect=True)
def test_without_power_all_figures_are_missing_not_zero(tree):
    for path in tree.files():
        tree.power_off(path)
    assert read(tree) == MachineHealth()
    assert board_model(tree.root) is None and jetpack(tree.root) is None


@pytest.mark.parametrize("tree", JETPACKS, indirect=True)
def test_invalid_values_give_neither_a_figure_nor_an_exception(tree):
    values = [path for path in tree.files() if path.name.endswith(("temp", "_input", "_cnt", "load", "cur_state"))]
    for text in INVALID:
        for path in values:
            path.write_bytes(text)
        figures = read(tree)
        assert (figures.temperature_c, figures.temperatures_c, figures.gpu_load) == (None, {}, None), text
        assert figures.throttling is None, text
        assert figures.power == Power({}, None), "the sensor is there, its rails are unreadable"


@pytest.mark.parametrize("tree", JETPACKS, indirect=True)
def test_with_missing_or_damaged_attributes_the_figures_fit_the_schema(tree):
    dice = random.Random(tree.jetpack)
    for _ in range(60):
        path = dice.choice(tree.files())
        kind = dice.randrange(3)
        if kind == 0:
            path.unlink()
        elif kind == 1:
            path.unlink()
            path.mkdir()
        else:
            path.write_bytes(dice.choice(INVALID))
        figures = read(tree)
        assert mismatch(figures) == []
        board_model(tree.root), jetpack(tree.root)
        if not tree.files():
            break


def test_a_machine_without_sensors(tmp_path):
    assert Sensors(tmp_path)() == MachineHealth()
    assert board_model(tmp_path) is None and jetpack(tmp_path) is None


def test_the_processors_temperature_of_a_pc(tmp_path):
    def zone(number, kind, value):
        folder = tmp_path / f"sys/class/thermal/thermal_zone{number}"
        folder.mkdir(parents=True)
        (folder / "type").write_text(f"{kind}\n")
        (folder / "temp").write_text(f"{value}\n")

    zone(0, "acpitz", 20000)
    assert Sensors(tmp_path)().temperature_c is None
    zone(1, "acpitz", 21000)
    zone(2, "x86_pkg_temp", 51250)
    figures = Sensors(tmp_path)()
    assert figures.temperature_c == 51.2
    assert figures.temperatures_c == {"acpitz": 20.0, "acpitz-2": 21.0, "x86_pkg_temp": 51.2}


def test_an_unknown_release_has_no_jetpack(tmp_path):
    (tmp_path / "etc").mkdir()
    for release, expected in (("R44", "L4T 44.1.0"), ("R39", "7 (L4T 39.1.0)")):
        (tmp_path / "etc/nv_tegra_release").write_text(f"# {release} (release), REVISION: 1.0, GCID: 1\n")
        assert jetpack(tmp_path) == expected


def test_coolers_alone_or_counters_alone(tmp_path):
    folder = tmp_path / "sys/class/thermal/cooling_device0"
    folder.mkdir(parents=True)
    (folder / "type").write_text("Processor\n")
    (folder / "cur_state").write_text("0\n")
    assert Sensors(tmp_path)().throttling == Throttling({}, None)
