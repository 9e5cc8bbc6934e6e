"""Every kind of fault is one exact line: the variable, what is wrong, what was expected, where it came from."""

import dataclasses

import pytest

from edge_agent.config import settings as config
from edge_agent.config.variables import quoted, shown, value_fault, variables
from edge_agent.core.params import param
from edge_agent.errors import EXIT_CONFIG, ConfigError

DOOR = "EDGE_AGENT_CAMERAS__DOOR"
IDS = "a to z, 0 to 9, _ and -, beginning with a letter or digit, at most 63 characters"
RECT = "JSON [number, number, number, number], or empty for unset"
ZONES = 'JSON {"name": [[number, number], ...]}'
ZONE = "JSON [[number, number], ...]"


def faults(environ, env_file=None, overrides=None):
    with pytest.raises(ConfigError) as caught:
        config.load({f"{DOOR}__URI": "test://", **environ}, env_file, overrides)
    assert caught.value.exit_code == EXIT_CONFIG
    assert not any("\n" in fault for fault in caught.value.faults)
    return list(caught.value.faults)


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("__WIDTH", "8", "'8' is too small; expected an integer, 16 to 16384, or empty for unset"),
        ("__WIDTH", "1e9", "'1e9' is not an integer; expected an integer, 16 to 16384, or empty for unset"),
        ("__WIDTH", "99999", "'99999' is too large; expected an integer, 16 to 16384, or empty for unset"),
        ("__PIXEL_FORMAT", "RAW8", "'RAW8' is not a choice; "
         "expected one of auto, GREY, Y10, Y12, Y16, Y16_BE, NV12, YUYV, UYVY, MJPG"),
        ("__MIN_FACE_PX", "1.5", "'1.5' is not an integer; expected an integer, 0 to 8192"),
        ("__FPS", "0", "'0' is too small; expected a number, above 0 and at most 1000, or empty for unset"),
        ("__STALL_AFTER_S", "soon", "'soon' is not a number; expected a number, above 0 and at most 600"),
        ("__STALL_AFTER_S", "", "the value is empty; expected a number, above 0 and at most 600"),
        ("__STALL_AFTER_S", "nan", "'nan' is not a finite number; expected a number, above 0 and at most 600"),
        ("__STALL_AFTER_S", "inf", "'inf' is not a finite number; expected a number, above 0 and at most 600"),
        ("__FPS", "5 # five", "'5 # five' is not a number (a comment needs a line of its own); "
         "expected a number, above 0 and at most 1000, or empty for unset"),
        ("__COLOR", "maybe", "'maybe' is not true or false; expected true or false"),
        ("__ROTATE", "45", "'45' is not a choice; expected one of 0, 90, 180, 270"),
        ("__FLIP", "over", "'over' is not a choice; expected one of none, horizontal, vertical, both"),
        ("__URI", "", "the value is empty; expected text, not empty"),
        ("__ROI", "[0, 0", f"'[0, 0' is not JSON (Expecting ',' delimiter at character 6); expected {RECT}"),
        ("__ROI", "7", f"7 is not a JSON list; expected {RECT}"),
        ("__ZONES", "[]", f"[] is not a JSON object; expected {ZONES}"),
        ("__ZONES", '{"a b": []}', "'{\"a b\": []}' cannot be used: "
         f"the name 'a b' cannot be used; expected {IDS}; expected {ZONES}"),
        ("__CONTROLS", '{"a": 1, "A": 2}', "'{\"a\": 1, \"A\": 2}' has a name twice; "
         'expected JSON {"name": integer}'),
        ("__LABEL", "\udcff", "'\\udcff' is not UTF-8 text; expected text"),
        ("__MASKS", "[" * 100_000, "'" + "[" * 57 + "…' is not JSON within the limits; "
         "expected JSON [[[number, number], ...], ...]"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used(name, text, fault):
    assert faults({DOOR + name: text}) == [f"{DOOR}{name}: {fault} [environment]"]


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("ROI", '[0, 0, "x", 1]', f"ROI[2]: 'x' is not a number; expected {RECT}"),
        ("ROI", "[0, 0, 1]", f"ROI[3]: [0, 0, 1] lacks an item; expected {RECT}"),
        ("ROI", "[0, 0, 1, 1, 1]", f"ROI: [0, 0, 1, 1, 1] has too many items; expected {RECT}"),
        ("ZONES__DESK", "[[0, 0], [1, null], [1, 1]]", f"ZONES__DESK[1][1]: null is not a number; expected {ZONE}"),
        ("ZONES", '{"desk": [[0, 0], [1, NaN]]}', f"ZONES['desk'][1][1]: NaN is not a finite number; expected {ZONES}"),
        ("CONTROLS__GAIN", "loud", "CONTROLS__GAIN: 'loud' is not an integer; expected an integer"),
    ],
)
def test_a_fault_inside_a_list_names_the_item(name, text, fault):
    assert faults({f"{DOOR}__{name}": text}) == [f"{DOOR}__{fault} [environment]"]


def test_implausible_geometry():
    found = faults(
        {
            f"{DOOR}__ROI": "[0.5, 0, 0.5, 1]",
            f"{DOOR}__ZONES__DESK": "[[0, 0], [1, 1]]",
            f"{DOOR}__ZONES__SOFA": "[[0, 0], [100, 0], [100, 100]]",
            f"{DOOR}__MASKS": "[[[0, 0], [0.5, 0.5], [1, 1]]]",
        }
    )
    assert [fault.split(": ")[0] for fault in found] == [
        f"{DOOR}__{name}" for name in ("ROI", "MASKS[0]", "ZONES__DESK", "ZONES__SOFA")
    ]
    assert all(fault.endswith(" [environment]") and "expected" in fault for fault in found)
    assert found[0] == (
        f"{DOOR}__ROI: [0.5, 0.0, 0.5, 1.0] is not a rectangle; "
        "expected [left, top, right, bottom] with 0 <= left < right <= 1 and 0 <= top < bottom <= 1 [environment]"
    )


def test_masks_that_cover_the_whole_region():
    corner = "[[0, 0], [0.5, 0], [0.5, 0.5], [0, 0.5]]"
    found = faults({f"{DOOR}__ROI": "[0.1, 0.1, 0.4, 0.4]", f"{DOOR}__MASKS": f"[{corner}]"})
    assert len(found) == 1 and found[0].startswith(f"{DOOR}__MASKS: they cover the whole region of interest")
    config.load({f"{DOOR}__URI": "test://", f"{DOOR}__MASKS": f"[{corner}]"})


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"RETRY_MIN_S": "9", "RETRY_MAX_S": "8"}, "RETRY_MIN_S: 9.0 is above EDGE_AGENT_MQTT__RETRY_MAX_S; "
         "expected at most 8.0"),
        ({"TLS__ENABLED": "1", "TLS__KEY_FILE": "k"}, "TLS__KEY_FILE: is set without EDGE_AGENT_MQTT__TLS__CERT_FILE; "
         "expected both or none"),
        ({"TLS__CA_FILE": "c"}, "TLS__CA_FILE: is set while TLS is off; expected EDGE_AGENT_MQTT__TLS__ENABLED=true"),
        ({"HOST": "mqtt://u:hunter2@host"}, "HOST: is not a host name; "
         "expected a name or address alone, the port in EDGE_AGENT_MQTT__PORT"),
        ({"BASE": "a/#"}, "BASE: MQTT base topic 'a/#' cannot be used; "
         "expected no +, #, leading or trailing /, leading $; e.g. edge-agent"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together(given, fault):
    environ = {f"EDGE_AGENT_MQTT__{name}": value for name, value in given.items()}
    assert faults(environ) == [f"EDGE_AGENT_MQTT__{fault} [environment]"]


def test_a_fault_names_the_line_of_the_file_or_the_command_line(tmp_path):
    path = tmp_path / "agent.env"
    path.write_text("# levels\nEDGE_AGENT_LOG_LEVEL=loud\n")
    expected = "EDGE_AGENT_LOG_LEVEL: 'loud' is not a choice; expected one of debug, info, warning, error"
    assert faults({}, path) == [f"{expected} [{path}:2]"]
    assert faults({}, None, {"log_level": "loud"}) == [f"{expected} [command line]"]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (f"{DOOR}__URL", f"unknown setting; did you mean {DOOR}__URI?"),
        ("EDGE_AGENT_CAMERAS__DOR__FLIP_", "unknown setting; did you mean EDGE_AGENT_CAMERAS__DOR__FLIP?"),
        ("EDGE_AGENT_CAMERA__DOOR__URI", f"unknown setting; did you mean {DOOR}__URI?"),
        ("EDGE_AGENT_CAMERAS_DOOR_ROTATE", f"unknown setting; did you mean {DOOR}__ROTATE?"),
        ("EDGE_AGENT_HEALTH_INTERVAL_S", "unknown setting; did you mean EDGE_AGENT_HEALTH__INTERVAL_S?"),
        ("EDGE_AGENT_LOGLEVEL", "unknown setting; did you mean EDGE_AGENT_LOG_LEVEL?"),
        (
            "EDGE_AGENT_MQTT",
            "is a section, not a setting; expected a name inside it, such as EDGE_AGENT_MQTT__HOST",
        ),
        (
            DOOR,
            "is a section, not a setting; expected a name inside it, such as EDGE_AGENT_CAMERAS__<CAMERA>__URI",
        ),
        ("EDGE_AGENT_QXZ", "unknown setting; `edge-agent config example` lists all names"),
        (
            "EDGE_AGENT_CAMERAS__HEALTH__URI",
            "the camera id 'health' is reserved; expected none of availability, health, info, request, response",
        ),
        ("EDGE_AGENT_CAMERAS___X__URI", f"the name '_x' cannot be used; expected {IDS}"),
        (f"EDGE_AGENT_CAMERAS__{'X' * 64}__URI", f"the name '{'x' * 64}' cannot be used; expected {IDS}"),
    ],
)
def test_unknown_names_are_refused(name, fault):
    assert faults({name: "1"}) == [f"{name}: {fault} [environment]"]


def test_unknown_names_in_a_file_are_refused_even_without_the_prefix(tmp_path):
    path = tmp_path / "agent.env"
    path.write_text("EDGE_AGNET_LOG_LEVEL=info\nLOG_LEVEL=info\nEDGE_AGENT_ENV_FILE=x\n")
    assert faults({}, path) == [
        f"EDGE_AGNET_LOG_LEVEL: unknown setting; did you mean EDGE_AGENT_LOG_LEVEL? [{path}:1]",
        f"LOG_LEVEL: unknown setting; did you mean EDGE_AGENT_LOG_LEVEL? [{path}:2]",
        f"EDGE_AGENT_ENV_FILE: has no effect inside an env file [{path}:3]",
    ]


def test_other_programs_variables_are_left_alone():
    config.load({"PATH": "/bin", "EDGE_AGENT": "1", "EDGE_AGENTS_X": "1"})


def test_a_camera_without_a_uri_is_reported_with_its_origin():
    assert faults({"EDGE_AGENT_CAMERAS__DOR__COLOR": "1"}) == [
        "EDGE_AGENT_CAMERAS__DOR__URI: is missing; expected text, not empty "
        "[needed by EDGE_AGENT_CAMERAS__DOR__COLOR, environment]"
    ]


def test_a_camera_with_only_zones_is_reported_with_its_origin():
    assert faults({"EDGE_AGENT_CAMERAS__DOR__ZONES__DESK": "[[0, 0], [1, 0], [1, 1]]"}) == [
        "EDGE_AGENT_CAMERAS__DOR__URI: is missing; expected text, not empty "
        "[needed by EDGE_AGENT_CAMERAS__DOR__ZONES__DESK, environment]"
    ]


def test_a_default_that_does_not_fit_is_named_as_such():
    assert faults({"EDGE_AGENT_MQTT__RETRY_MAX_S": "0.5"}) == [
        "EDGE_AGENT_MQTT__RETRY_MIN_S: 1.0 is above EDGE_AGENT_MQTT__RETRY_MAX_S; expected at most 0.5 [default]"
    ]


def test_one_name_in_two_spellings_is_refused():
    assert faults({"EDGE_AGENT_NODE": "a", "edge_agent_node": "b"}) == [
        "edge_agent_node: is set twice, also as EDGE_AGENT_NODE [environment]"
    ]


def test_all_faults_are_reported_at_once():
    found = faults({f"{DOOR}__WIDTH": "x", "EDGE_AGENT_QXZ": "1", f"{DOOR}__ROI": "[", f"{DOOR}__FPS": "-1"})
    assert sorted(fault.split(":")[0] for fault in found) == sorted(
        [f"{DOOR}__WIDTH", "EDGE_AGENT_QXZ", f"{DOOR}__ROI", f"{DOOR}__FPS"]
    )


def test_odd_characters_cannot_break_the_line():
    assert faults({"EDGE_AGENT_A\nB": "1"})[0].startswith("'EDGE_AGENT_A\\nB': unknown setting")
    assert faults({"EDGE_AGENT_LOG_LEVEL": "a\nb\x1b[31m"})[0].startswith(
        "EDGE_AGENT_LOG_LEVEL: 'a\\nb\\x1b[31m' is not a choice"
    )


@dataclasses.dataclass(frozen=True)
class _Login:
    password: str = param("", "Opens the door", secret=True, min_length=8)
    uri: str = param("", "Where it is", show=False)


def test_a_secret_is_never_in_a_fault_nor_in_repr():
    password = next(iter(variables(_Login)))
    line = value_fault("EDGE_AGENT_PASSWORD", password, "hunter2 # x", "is too short", "environment")
    expected = (
        "EDGE_AGENT_PASSWORD: the value (hidden) is too short; expected text, at least 8 characters [environment]"
    )
    assert line == expected
    assert "hunter2" not in repr(_Login("hunter2", "rtsp://hunter2@x"))


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("rtsp://user:hunter2@host/1", "rtsp://***@host/1"),
        ("rtsp://user:hun/ter2@x@host/1", "rtsp://***@host/1"),
        ("http://host/mjpeg?user=a&pwd=hunter2&res=1", "http://host/mjpeg?user=***&pwd=***&res=1"),
        ("http://host/?access_token=hunter2", "http://host/?access_token=***"),
        ("v4l2:/dev/video0", "v4l2:/dev/video0"),
        ("test://scene?faces=2", "test://scene?faces=2"),
    ],
)
def test_credentials_in_uris_are_never_shown(text, safe):
    assert shown(text) == safe
    assert quoted(text) == repr(safe)


def test_credentials_are_in_no_fault_and_no_repr():
    uri = "rtsp://user:hunter2@host/1"
    (line,) = faults({f"{DOOR}__FLIP": uri})
    assert "hunter2" not in line
    assert "***@host" in line
    settings = config.load_settings({f"{DOOR}__URI": uri})
    assert "hunter2" not in repr(settings) + str(settings) + repr(settings.cameras)
