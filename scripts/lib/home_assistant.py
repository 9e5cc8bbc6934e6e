"""The agent against a real Home Assistant core; a program, because that core is no dependency of the tests.

    python -m scripts.lib.home_assistant HA_PYTHON HA_CHECK [SCENARIO ...]

HA_PYTHON is the interpreter of an environment with `homeassistant` installed, HA_CHECK the script that runs its core
headless against a broker and prints what came of discovery as JSON. Prints one line per expectation; exit code 1 when
one of them fails.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually

ZONE = "[[0, 0], [1, 0], [1, 1], [0, 1]]"
BASE: Mapping[str, Any] = {
    "NODE": "lobby",
    "CAMERAS__DOOR__URI": "test://still?fps=10",
    "CAMERAS__DOOR__LABEL": "Front door",
    "CAMERAS__DOOR__ZONES__DESK": ZONE,
    "CAMERAS__HALL__URI": "test://still?fps=10",
    "CROPS__IMAGE": "true",
    "HEALTH__INTERVAL_S": 2,
    "COMMANDS__RESTART": "true",
}
NUMBER_CALL = """
import runpy, sys
from homeassistant.core import ServiceRegistry
call = ServiceRegistry.async_call
async def with_value(self, domain, service, data=None, *rest, **more):
    data = {**(data or {}), "value": 0.55} if (domain, service) == ("number", "set_value") else data
    return await call(self, domain, service, data, *rest, **more)
ServiceRegistry.async_call = with_value
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The check script calls services with an entity alone; a number needs a value too."""
CAMERA_ENTITIES = (
    "binary_sensor.{}_presence", "binary_sensor.{}_camera_problem", "sensor.{}_faces", "sensor.{}_frame_rate",
    "sensor.{}_latency", "event.{}_face", "image.{}_last_face", "switch.{}_detection", "switch.{}_crops",
)  # fmt: skip
NODE_ENTITIES = (
    "number.lobby_threshold", "button.lobby_restart", "sensor.lobby_outbox_pending", "sensor.lobby_started",
    "sensor.lobby_version",
)  # fmt: skip


class Scenario:
    """One broker, one agent or more, one Home Assistant."""

    def __init__(self, arguments: argparse.Namespace, stack: ExitStack) -> None:
        self._arguments = arguments
        self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self.broker = stack.enter_context(Broker(self.folder))
        self.listener = stack.enter_context(Listener(self.broker, "edge-agent/#", "homeassistant/#"))
        self.failures = 0

    def agent(self, **more: Any) -> AgentProcess:
        settings = {**BASE, "MQTT__PORT": self.broker.port, **more}
        return AgentProcess({k: v for k, v in settings.items() if v is not None}, self.folder / "state")

    def home_assistant(self, *more: str) -> Dict[str, Any]:
        command = [self._arguments.python, "-c", NUMBER_CALL, self._arguments.check]
        shown = subprocess.run(
            [*command, "--port", str(self.broker.port), *more], capture_output=True, text=True, check=False
        )
        if "{" not in shown.stdout:
            raise SystemExit(shown.stderr)
        result: Dict[str, Any] = json.loads(shown.stdout[shown.stdout.index("{") :])
        self.expect("no warning in the log", not result["log"], result["log"])
        return result

    def expect(self, what: str, true: Any, shown: Any = "") -> None:
        self.failures += not true
        print(f"  {'ok  ' if true else 'FAIL'} {what}{'' if true else f': {shown}'}", flush=True)

    def publish(self, topic: str, payload: str) -> str:
        return shlex.join(["mosquitto_pub", "-p", str(self.broker.port), "-q", "1", "-t", topic, "-m", payload])


def states(result: Mapping[str, Any]) -> Dict[str, Any]:
    return {entity["entity_id"]: entity["state"] for entity in result["entities"]}


def wanted() -> List[str]:
    cameras = [entity.format(name) for name in ("front_door", "lobby_hall") for entity in CAMERA_ENTITIES]
    return [*cameras, *NODE_ENTITIES, "binary_sensor.front_door_desk_presence"]


def entities(scenario: Scenario, **style: str) -> None:
    """Every entity is there, has a value, and the switch, number and button act."""
    with scenario.agent(**style) as agent:
        eventually(lambda: scenario.listener.last("edge-agent/lobby/door/presence") == b"ON", "the agent")
        path = scenario.folder / "face.jpg"
        result = scenario.home_assistant(
            "--call", "switch.turn_off:switch.lobby_hall_detection",
            "--call", "number.set_value:number.lobby_threshold",
            "--fetch", f"image.front_door_last_face:{path}",
        )  # fmt: skip
        found = states(result)
        missing = [entity for entity in wanted() if entity not in found]
        scenario.expect("every entity", not missing, missing)
        scenario.expect("no other", set(found) == set(wanted()), set(found) - set(wanted()))
        scenario.expect("triggers of two cameras", len(result["device_triggers"]) == 4, result["device_triggers"])
        via = [device for device in result["devices"] if device["via_device_id"]]
        scenario.expect("cameras belong to the agent", len(result["devices"]) == 3 and len(via) == 2, result["devices"])
        scenario.expect("presence", found["binary_sensor.front_door_presence"] == "on", found)
        scenario.expect("zone", found["binary_sensor.front_door_desk_presence"] == "on", found)
        scenario.expect("faces", found["sensor.front_door_faces"] not in ("unknown", "unavailable", "0"), found)
        scenario.expect("no problem", found["binary_sensor.front_door_camera_problem"] == "off", found)
        idle = {"button.lobby_restart", "event.front_door_face", "event.lobby_hall_face", "sensor.lobby_hall_faces",
                "binary_sensor.lobby_hall_presence"}  # fmt: skip
        unknown = [entity for entity in found if found[entity] in ("unknown", "unavailable") and entity not in idle]
        scenario.expect("each has a value", not unknown, unknown)
        scenario.expect("the switch acted", found["switch.lobby_hall_detection"] == "off", found)
        scenario.expect("switched off is unknown", found["binary_sensor.lobby_hall_presence"] == "unknown", found)
        scenario.expect("and no problem", found["binary_sensor.lobby_hall_camera_problem"] == "off", found)
        scenario.expect("the number acted", found["number.lobby_threshold"] == "0.55", found["number.lobby_threshold"])
        image = scenario.listener.last("edge-agent/lobby/door/face/image")
        scenario.expect("the image is the crop", path.is_file() and path.read_bytes() == image)
        shown = next(e for e in result["entities"] if e["entity_id"] == "image.front_door_last_face")["attributes"]
        named = json.loads(scenario.listener.last("edge-agent/lobby/door/presence/attributes"))["event_ids"]
        scenario.expect("it names its event", shown.get("event_id") in named, (shown, named))
        result = scenario.home_assistant("--call", "button.press:button.lobby_restart")
        scenario.expect("the button acted", agent.wait() == 0, agent.log)
        crops = [t for t in scenario.listener.topics() if "/door/crops/" in t]
        scenario.expect("the event's crop was sent", crops and scenario.listener.last(crops[-1]), crops)
        scenario.expect(
            "all unavailable", set(states(result).values()) <= {"unavailable", "off", "on", "unknown"}, states(result)
        )


def components(scenario: Scenario) -> None:
    """The same with one message per entity."""
    entities(scenario, HOME_ASSISTANT__STYLE="components")


def loss(scenario: Scenario) -> None:
    """A camera that is lost is unavailable, not empty, and the problem sensor is on."""
    with scenario.agent(CAMERAS__DOOR__URI="test://still?fps=10&lose=2-900", CAMERAS__DOOR__STALL_AFTER_S=1):
        eventually(lambda: b'"lost"' in (scenario.listener.last("edge-agent/lobby/door/presence/attributes") or b""))
        found = states(scenario.home_assistant())
        scenario.expect("presence", found["binary_sensor.front_door_presence"] == "unavailable", found)
        scenario.expect("faces", found["sensor.front_door_faces"] == "unavailable", found)
        scenario.expect("problem", found["binary_sensor.front_door_camera_problem"] == "on", found)
        scenario.expect("switch is there", found["switch.front_door_detection"] == "on", found)
        scenario.expect("the other camera sees", found["binary_sensor.lobby_hall_presence"] == "on", found)


def replay(scenario: Scenario) -> None:
    """A replayed event and a gap fire nothing; a live event does."""
    with scenario.agent():
        topic = "edge-agent/lobby/door/events"
        eventually(lambda: scenario.listener.last(topic))
        event = json.loads(scenario.listener.last(topic))
        late = {**event, "delivery": {"replayed": True, "queued_ms": 90_000}}
        gap = {
            "schema": "edge-agent.gap/1", "node": "lobby", "camera": "door", "boot": event["boot"], "of": "events",
            "from_seq": 1, "to_seq": 2, "count": 2, "reason": "full",
        }  # fmt: skip
        dull = [scenario.publish(topic, json.dumps(message)) for message in (late, gap)]
        with_event = scenario.publish(topic, json.dumps(event))
        entity = "event.front_door_face"
        found = states(scenario.home_assistant(*[item for command in dull for item in ("--then", command)]))
        scenario.expect("nothing fired", found[entity] == "unknown", found[entity])
        found = states(scenario.home_assistant("--then", with_event))
        scenario.expect("a live one fires", found[entity] not in ("unknown", "unavailable"), found[entity])


def removal(scenario: Scenario, **style: str) -> None:
    """While Home Assistant runs, the agent is started again without one camera, one zone and the crops."""
    control = scenario.folder / "go"
    again = (
        f"touch {control}.stop; i=0; while [ ! -e {control}.started ] && [ $i -lt 150 ]; do sleep 0.1; i=$((i+1)); done"
    )
    with ExitStack() as stack:
        first = stack.enter_context(scenario.agent(**style))
        eventually(lambda: scenario.listener.last("edge-agent/lobby/door/presence") == b"ON", "the agent")
        waiting = subprocess.Popen([sys.executable, "-c", _WAIT, f"{control}.stop"], stdout=subprocess.PIPE, text=True)
        import threading

        def restart() -> None:
            waiting.wait()
            first.stop()
            second = scenario.agent(
                CAMERAS__HALL__URI=None, CAMERAS__DOOR__ZONES__DESK=None, CROPS__ENABLED="false", **style
            )
            stack.enter_context(second)
            eventually(lambda: scenario.listener.last("edge-agent/lobby/hall/presence") == b"", "cleared")
            Path(f"{control}.started").touch()

        thread = threading.Thread(target=restart)
        thread.start()
        result = scenario.home_assistant("--then", again, "--then", "sleep 1")
        thread.join()
        found = states(result)
        left = {"image.front_door_last_face", "switch.front_door_crops", "binary_sensor.front_door_desk_presence"}
        expected = {e for e in wanted() if "hall" not in e} - left
        scenario.expect("what is left", set(found) == expected, set(found) ^ expected)
        scenario.expect("two devices", len([d for d in result["devices"] if d["has_entities"]]) == 2, result["devices"])
        late = stack.enter_context(Listener(scenario.broker, "edge-agent/#", "homeassistant/#"))
        eventually(lambda: late.last("edge-agent/lobby/availability") is not None)
        eventually(lambda: late.last("edge-agent/lobby/health") is not None)
        hall = [topic for topic in late.topics() if "hall" in topic or "desk" in topic]
        scenario.expect("nothing retained of it", not hall, hall)
        found = states(scenario.home_assistant())
        scenario.expect("nor after Home Assistant's restart", set(found) == expected, set(found) ^ expected)


_WAIT = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.05)"


def birth(scenario: Scenario) -> None:
    """When Home Assistant comes up, everything is published again; Home Assistant reports late that it is up."""
    with scenario.agent():
        topic = "homeassistant/device/edge-agent_lobby/config"
        eventually(lambda: scenario.listener.last(topic))
        before = len(scenario.listener.payloads(topic))
        scenario.home_assistant("--seconds", "30")
        scenario.expect("published again", len(scenario.listener.payloads(topic)) > before)


def components_removal(scenario: Scenario) -> None:
    """The same with one message per entity."""
    removal(scenario, HOME_ASSISTANT__STYLE="components")


SCENARIOS = {
    function.__name__: function for function in (entities, components, loss, replay, removal, components_removal, birth)
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", metavar="HA_PYTHON")
    parser.add_argument("check", metavar="HA_CHECK")
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], metavar="SCENARIO")
    arguments = parser.parse_args(argv)
    failures = 0
    for name in arguments.scenarios or SCENARIOS:
        print(name, flush=True)
        with ExitStack() as stack:
            scenario = Scenario(arguments, stack)
            SCENARIOS[name](scenario)
            failures += scenario.failures
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
