"""Sources of settings, their precedence, and the effect of changes."""

import dataclasses
from pathlib import Path

import pytest

from edge_agent.config import settings as config
from edge_agent.config.variables import name_of
from edge_agent.core.protocol.health import HealthParams
from edge_agent.core.protocol.home_assistant import EXPIRE_AFTER_S
from edge_agent.errors import ConfigError
from edge_agent.mqtt.publisher import HEALTH_EXPIRY_S

DOOR = {"EDGE_AGENT_CAMERAS__DOOR__URI": "test://"}


def write(tmp_path, *lines):
    path = tmp_path / "agent.env"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_nothing_set_is_all_defaults():
    loaded = config.load({})
    assert loaded.origins == {}
    assert loaded.settings.cameras == {}
    assert loaded.settings.health.interval_s == 30.0
    assert loaded.settings.node == config.default_node()


def test_instances_of_the_template_unit_have_nodes_of_their_own():
    host = config.default_node()
    folder = Path("/etc/edge-agent")
    assert config.default_node(folder / "Back Yard.env") == f"{host[:31]}-back-yard"
    assert config.default_node(folder / "edge-agent.env") == config.default_node(Path("/tmp/yard.env")) == host
    assert len(config.default_node(folder / f"{'y' * 200}.env")) <= 63


def test_defaults_are_those_of_the_parameters_dataclasses():
    settings = config.load_settings({})
    for name in config.Settings.model_fields:
        value = getattr(settings, name)
        if dataclasses.is_dataclass(value):
            assert value == type(value)(), name


def test_health_is_published_again_before_it_expires():
    rarest_s = next(f for f in dataclasses.fields(HealthParams) if f.name == "interval_s").metadata["le"]
    assert 2 * rarest_s <= min(HEALTH_EXPIRY_S, EXPIRE_AFTER_S)
    with pytest.raises(ConfigError):
        config.load_settings({"EDGE_AGENT_HEALTH__INTERVAL_S": str(rarest_s + 1)})


def test_command_line_beats_environment_beats_file(tmp_path):
    name = "EDGE_AGENT_HEALTH__INTERVAL_S"
    path = write(tmp_path, f"{name}=11", "EDGE_AGENT_LOG_LEVEL=debug", "EDGE_AGENT_NODE=a")
    environ = {name: "22", "EDGE_AGENT_LOG_LEVEL": "error"}
    loaded = config.load(environ, path, {"health.interval_s": "33"})
    assert loaded.settings.health.interval_s == 33.0
    assert loaded.settings.log_level == "error"
    assert loaded.settings.node == "a"
    assert loaded.origins == {
        ("health", "interval_s"): "command line",
        ("log_level",): "environment",
        ("node",): f"{path}:3",
    }


def test_overrides_may_be_values():
    settings = config.load_settings({}, overrides={"cameras.door.uri": "test://", "cameras.door.width": 640})
    assert settings.cameras["door"].width == 640


def test_sources_are_merged_leaf_by_leaf(tmp_path):
    path = write(tmp_path, "EDGE_AGENT_CAMERAS__DOOR__URI=test://a", "EDGE_AGENT_CAMERAS__DOOR__FPS=5")
    environ = {"EDGE_AGENT_CAMERAS__DOOR__FPS": "10", "EDGE_AGENT_CAMERAS__HALL__URI": "test://b"}
    cameras = config.load_settings(environ, path).cameras
    assert (cameras["door"].uri, cameras["door"].fps, cameras["hall"].uri) == ("test://a", 10.0, "test://b")


def test_the_environment_can_name_the_file(tmp_path):
    path = write(tmp_path, "EDGE_AGENT_NODE=from-file")
    other = tmp_path / "other.env"
    other.write_text("EDGE_AGENT_NODE=other\n")
    assert config.load_settings({"EDGE_AGENT_ENV_FILE": str(path)}).node == "from-file"
    assert config.load_settings({"EDGE_AGENT_ENV_FILE": str(path)}, other).node == "other"
    assert config.load_settings({"EDGE_AGENT_ENV_FILE": ""}).node == config.default_node()


def test_a_named_file_must_exist(tmp_path):
    for environ, path in (({}, tmp_path / "no.env"), ({"EDGE_AGENT_ENV_FILE": str(tmp_path / "no.env")}, None)):
        with pytest.raises(ConfigError) as caught:
            config.load(environ, path)
        assert caught.value.faults == (f"{tmp_path}/no.env: the env file cannot be read: No such file or directory",)


def test_case_does_not_matter():
    settings = config.load_settings(
        {"edge_agent_cameras__Door__uri": "test://X", "Edge_Agent_Cameras__DOOR__Flip": "HORIZONTAL"}
    )
    assert (settings.cameras["door"].uri, settings.cameras["door"].flip) == ("test://X", "horizontal")


def test_ids_keep_underscores_and_dashes():
    settings = config.load_settings(
        {"EDGE_AGENT_CAMERAS__FRONT_DOOR__URI": "test://", "EDGE_AGENT_CAMERAS__BACK-DOOR__URI": "test://"}
    )
    assert sorted(settings.cameras) == ["back-door", "front_door"]


def test_lists_and_mappings_are_json():
    camera = config.load_settings(
        {
            **DOOR,
            "EDGE_AGENT_CAMERAS__DOOR__ROI": "[0, 0.25, 1, 0.75]",
            "EDGE_AGENT_CAMERAS__DOOR__ZONES__DESK": "[[0.1, 0.2], [0.9, 0.2], [0.5, 0.9]]",
            "EDGE_AGENT_CAMERAS__DOOR__ZONES__SOFA_2": "[[0, 0], [1, 0], [1, 1]]",
            "EDGE_AGENT_CAMERAS__DOOR__MASKS": "[[[0, 0], [0.2, 0], [0.2, 0.3]]]",
            "EDGE_AGENT_CAMERAS__DOOR__CONTROLS": '{"Exposure": 100}',
            "EDGE_AGENT_CAMERAS__DOOR__CONTROLS__GAIN": "7",
        }
    ).cameras["door"]
    assert camera.roi == (0.0, 0.25, 1.0, 0.75)
    assert sorted(camera.zones) == ["desk", "sofa_2"]
    assert camera.zones["desk"] == ((0.1, 0.2), (0.9, 0.2), (0.5, 0.9))
    assert camera.masks == (((0.0, 0.0), (0.2, 0.0), (0.2, 0.3)),)
    assert camera.controls == {"exposure": 100, "gain": 7}


def test_a_mapping_given_whole_replaces_the_weaker_source(tmp_path):
    path = write(tmp_path, *(f"{k}={v}" for k, v in DOOR.items()), "EDGE_AGENT_CAMERAS__DOOR__CONTROLS__GAIN=7")
    whole = {"EDGE_AGENT_CAMERAS__DOOR__CONTROLS": '{"exposure": 1}'}
    member = {"EDGE_AGENT_CAMERAS__DOOR__CONTROLS__EXPOSURE": "1"}
    assert config.load_settings(whole, path).cameras["door"].controls == {"exposure": 1}
    assert config.load_settings(member, path).cameras["door"].controls == {"exposure": 1, "gain": 7}
    overridden = config.load_settings(whole, path, {"cameras.door.controls": {}})
    assert overridden.cameras["door"].controls == {}


def test_empty_means_unset_where_unset_is_possible(tmp_path):
    path = write(tmp_path, *(f"{k}={v}" for k, v in DOOR.items()), "EDGE_AGENT_CAMERAS__DOOR__WIDTH=640")
    assert config.load_settings({"EDGE_AGENT_CAMERAS__DOOR__WIDTH": ""}, path).cameras["door"].width is None


def test_the_last_line_of_a_file_wins(tmp_path):
    path = write(tmp_path, "EDGE_AGENT_NODE=a", "edge_agent_node=b")
    loaded = config.load({}, path)
    assert (loaded.settings.node, loaded.origins) == ("b", {("node",): f"{path}:2"})


@pytest.mark.parametrize(("text", "value"), [("1", True), ("true", True), ("ON", True), ("no", False), (" 0 ", False)])
def test_booleans_read_as_people_write_them(text, value):
    assert config.load_settings({**DOOR, "EDGE_AGENT_CAMERAS__DOOR__COLOR": text}).cameras["door"].color is value


def test_live_and_restart_changes_are_distinguished():
    old = config.load_settings({**DOOR, "EDGE_AGENT_HEALTH__INTERVAL_S": "10"})
    new = config.load_settings(
        {**DOOR, "EDGE_AGENT_CAMERAS__DOOR__MIN_SCORE": "0.5", "EDGE_AGENT_CAMERAS__DOOR__ROTATE": "90"}
    )
    live, restart = config.changes(old, new)
    assert live == ["EDGE_AGENT_CAMERAS__DOOR__MIN_SCORE", "EDGE_AGENT_HEALTH__INTERVAL_S"]
    assert restart == ["EDGE_AGENT_CAMERAS__DOOR__ROTATE"]
    assert config.changes(old, old) == ([], [])


def test_a_camera_more_or_less_needs_a_restart():
    none = config.load_settings({})
    one = config.load_settings({**DOOR, "EDGE_AGENT_CAMERAS__DOOR__MIN_SCORE": "0.5"})
    expected = (["EDGE_AGENT_CAMERAS__DOOR__MIN_SCORE"], ["EDGE_AGENT_CAMERAS__DOOR__URI"])
    assert config.changes(none, one) == expected
    assert config.changes(one, none) == expected


def test_every_setting_is_described_and_marked():
    for variable in config.CATALOGUE.variables:
        assert variable.description, variable.path
        assert variable.reload in ("live", "restart"), variable.path


def test_every_setting_is_found_by_its_own_name():
    for variable in config.CATALOGUE.variables:
        path = tuple("door" if part == "*" else part for part in variable.path)
        assert config.CATALOGUE.resolve(path) is variable
        assert name_of(path).startswith("EDGE_AGENT_")


def test_the_fingerprint_follows_settings_but_not_credentials():
    def of(uri, **more):
        return config.fingerprint(config.load_settings({"EDGE_AGENT_CAMERAS__DOOR__URI": uri, **more}))

    assert of("rtsp://a:b@host/1") == of("rtsp://c:d@host/1")
    assert of("rtsp://a:b@host/1") != of("rtsp://a:b@host/2")
    assert of("test://") != of("test://", EDGE_AGENT_HEALTH__INTERVAL_S="5")
    assert len(of("test://")) == 64


def test_settings_cannot_be_changed():
    settings = config.load_settings(DOOR)
    with pytest.raises(ValueError, match="frozen"):
        settings.node = "x"
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.health.interval_s = 1.0


def test_run_needs_a_camera():
    config.require_cameras(config.load_settings(DOOR))
    with pytest.raises(ConfigError, match="no camera is set; expected at least one"):
        config.require_cameras(config.load_settings({}))
