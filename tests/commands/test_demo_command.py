"""`edge-agent demo` with its own broker and the real detector; the verdict comes from the subscriber alone."""

import json
import os
import socket
from pathlib import Path

import pytest

from tests.fakes.agent import edge_agent
from tests.fakes.broker import Broker, needs_mosquitto
from tests.fakes.weights import centerface_models_dir


@pytest.fixture(scope="module", autouse=True)
def weights():
    """The demo fetches them itself; here they are fetched once for all tests, or the tests skip with the reason."""
    models = centerface_models_dir()
    before = os.environ.get("STATE_DIRECTORY")
    os.environ["STATE_DIRECTORY"] = str(models.parent)
    yield
    os.environ.pop("STATE_DIRECTORY")
    if before is not None:
        os.environ["STATE_DIRECTORY"] = before


@pytest.mark.slow
@needs_mosquitto
def test_the_subscriber_receives_the_visit_of_a_face(tmp_path):
    done = edge_agent("demo", "--duration", 14, "--json", "--output", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    verdict = lines[-1]
    assert verdict["ok"] and verdict["missing"] == [] and verdict["appearances"] >= 1
    assert Path(verdict["crops"][0]).read_bytes()[:2] == b"\xff\xd8"
    topics = [line["topic"] for line in lines[:-1]]
    assert topics.index("edge-agent/demo/info") < topics.index("edge-agent/demo/availability")


@pytest.mark.slow
@needs_mosquitto
def test_an_empty_scene_fails_and_lists_what_was_not_received(tmp_path):
    done = edge_agent("demo", "--duration", 4, "--source", "test://empty", "--output", tmp_path)
    assert done.returncode == 1
    assert "NOT received: presence ON, event start, event end, presence OFF" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@needs_mosquitto
def test_a_given_broker_is_used(tmp_path):
    with Broker(tmp_path) as broker:
        done = edge_agent(
            "demo", "--duration", 3, "--broker", f"mqtt://127.0.0.1:{broker.port}", "--output", tmp_path / "out"
        )
    assert f"broker: given at 127.0.0.1:{broker.port}" in done.stdout
    assert "agent is online" in done.stdout


def test_bad_arguments_are_one_clear_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    for arguments, message in (
        (["--broker", f"mqtt://127.0.0.1:{port}"], f"no broker: 127.0.0.1:{port}"),
        (["--broker", "http://x"], "not a broker's address"),
        (["--duration", "0"], "expected a number above 0"),
        (["--output", "/proc/nowhere"], "--output /proc/nowhere"),
    ):
        done = edge_agent("demo", *arguments)
        assert done.returncode == 1
        assert message in done.stderr and "Traceback" not in done.stderr


@needs_mosquitto
def test_an_unknown_source_is_reported_with_the_agents_error(tmp_path):
    done = edge_agent("demo", "--duration", 10, "--source", "test://nowhere", "--output", tmp_path)
    assert done.returncode == 1
    assert "unknown scene" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
@needs_mosquitto
def test_the_users_outbox_is_not_touched(tmp_path):
    """The demo uses a state folder of its own, so queued events never go to its temporary broker."""
    settings = {"NODE": "lobby", "CAMERAS__A__URI": "test://one?end=3", "MQTT__HOST": "127.0.0.1", "MQTT__PORT": 9}
    scripted = {"MODEL__BACKEND": "scripted", "MODEL__MODEL": "scripted"}
    assert edge_agent("run", settings={**settings, **scripted}, state_dir=tmp_path / "state").returncode == 0

    def waiting():
        shown = edge_agent("outbox", "status", "--json", settings=settings, state_dir=tmp_path / "state")
        return json.loads(shown.stdout)["pending"]

    before = waiting()
    assert before
    edge_agent("demo", "--duration", 3, "--output", tmp_path / "out", state_dir=tmp_path / "state")
    assert waiting() == before
