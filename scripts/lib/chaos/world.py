"""The system under test: a broker, a proxy, a subscriber and the real agent."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

from scripts.lib.chaos.ledger import FPS, MAX_LOST_S, OUTAGE_S, Account, Evidence, Life, scene, script, untrue
from tests.fakes.agent import AgentProcess
from tests.fakes.broker import Broker, Listener, eventually, free_port
from tests.fakes.proxy import RecordingProxy

BASE = "edge-agent/n"
CAMERAS = ("a", "b")
AGENT, ALL = "agent", "topic readwrite #"
DISK_FAULT = "messages wait in memory"
IOTCORE = """
import sys
from iotcore import IotCoreBroker
IotCoreBroker(config_path=None, listen="127.0.0.1", port=int(sys.argv[1]), max_payload_size=2_000_000).run_forever()
"""


class Iotcore:
    """The embedded broker (iotcore, MQTT 3.1.1) in a process that can be killed."""

    def __init__(self, folder: Path) -> None:
        self.port, self.log = free_port(), folder / "iotcore.log"
        self._process: Optional[subprocess.Popen[bytes]] = None

    def start(self) -> "Iotcore":
        """Start, and wait until it listens."""
        with self.log.open("ab") as log:
            command = [sys.executable, "-c", IOTCORE, str(self.port)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        eventually(lambda: RecordingProxy.answers(self.port), f"iotcore on {self.port}; see {self.log}")
        return self

    def kill(self) -> None:
        """`kill -9`."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class World:
    """One agent and everything around it.

    Args:
        folder: For configuration, logs and the agent's state.
        broker: "mosquitto" or "iotcore".
        protocol: MQTT's version.
        store: Where the outbox is: "disk" or "memory".
        chance: Random moments.
    """

    def __init__(self, folder: Path, broker: str, protocol: str, store: str, chance: random.Random) -> None:
        self.chance, self.protocol = chance, protocol
        self._store = store
        self._folder, self._state = folder, folder / "state"
        self._state.mkdir()
        self._acl = folder / "acl"
        self.allow(f"{ALL}\nuser {AGENT}\n{ALL}")
        self.broker: Union[Broker, Iotcore] = (
            Broker(folder, self._config()) if broker == "mosquitto" else Iotcore(folder)
        )
        self.scenes = {camera: scene(number) for number, camera in enumerate(CAMERAS)}
        for camera, shown in self.scenes.items():
            (folder / f"{camera}.json").write_text(script(shown))
        self._lives = self._disk_faults = 0

    def __enter__(self) -> "World":
        self.broker.start()
        self.proxy = RecordingProxy(self.broker.port)
        self.listener = Listener(self.broker, f"{BASE}/#", version=self.protocol).__enter__()
        self.new_chapter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.agent_lives:
            self.agent.kill()
        self.listener.__exit__(SystemExit)
        self.proxy.close()
        self.broker.kill()

    def start_agent(self, **more: Any) -> None:
        """Start a new process with the state of the last one."""
        uri = "test://one?script={}&size=320x240&fps={:g}"
        cameras = {
            f"CAMERAS__{camera.upper()}__URI": uri.format(self._folder / f"{camera}.json", FPS) for camera in CAMERAS
        }
        settings = {
            **cameras, "MQTT__PORT": self.proxy.port, "MQTT__RETRY_MIN_S": 0.1, "MQTT__RETRY_MAX_S": 0.3,
            "MQTT__ACK_TIMEOUT_S": 2, "MQTT__CONNECT_TIMEOUT_S": 1, "MQTT__USERNAME": AGENT,
            "PRESENCE__DELAY_OFF_S": 0.05, "TRACKER__MAX_LOST_S": MAX_LOST_S, "OUTBOX__STORE": self._store, **more,
        }  # fmt: skip
        self.agent = AgentProcess(settings, self._state, version=self.protocol)
        self.evidence.lives.append(Life(time.time()))
        self.agent.start()

    @property
    def agent_lives(self) -> bool:
        """Whether the agent's process runs."""
        return self.agent.process.poll() is None

    def kill_agent(self) -> None:
        """`kill -9`."""
        self._asked()
        self.agent.kill()
        self._ended(may_forget=self._store == "memory")

    def stop_agent(self) -> None:
        """SIGTERM."""
        self._asked()
        self.agent.stop()
        # Before it has begun to listen to signals, SIGTERM ends it as it ends any process.
        young = time.time() - self.evidence.lives[-1].began_at < 3.0
        if self.agent.process.returncode not in ((0, -signal.SIGTERM) if young else (0,)):
            raise RuntimeError(f"exit code {self.agent.process.returncode}\n{self.agent.log}")
        self._ended(may_forget=False)

    def kill_broker(self) -> None:
        """Kill the broker (SIGKILL); it loses all that it keeps."""
        self._killed_at = time.time() - OUTAGE_S
        self.broker.kill()
        eventually(lambda: not self.listener.ready.is_set(), "the subscriber notices")

    def start_broker(self) -> None:
        """Start the broker again on the same port."""
        self.broker.start()
        eventually(self.listener.ready.is_set, "the subscriber is back")
        self.evidence.outages.append((self._killed_at, time.time()))

    def limit(self, config: str = "") -> None:
        """Restart the broker with other limits."""
        self.kill_broker()
        self.broker.configure(self._config() + config)
        self.start_broker()

    def allow(self, rules: str) -> None:
        """Write the broker's access list."""
        self._acl.write_text(rules + "\n")

    def reload_acl(self) -> None:
        """Signal the broker to read its access list again."""
        self.broker.send_signal(signal.SIGHUP)

    def speak_5(self) -> None:
        """Reconnect until the agent uses MQTT 5 again, which it leaves for a while when the broker does not answer."""
        while self.proxy.protocol != 5:
            self.proxy.cut()
            self.proxy.mend()
            eventually(lambda: self.proxy.protocol, "a connection")
            self.wait(0.5, 0.5)

    def wait(self, least_s: float, most_s: float) -> None:
        """Wait for a random time."""
        time.sleep(self.chance.uniform(least_s, most_s))

    def account(self, now_at: Optional[float] = None) -> Account:
        """Return what has arrived so far."""
        heard = self.listener.heard[self._heard :]
        return Account(self.evidence, self.proxy.record[self._record :], heard, now_at or time.time())

    def effects(self, account: Account) -> int:
        """Count the effects of faults so far; a round without an effect has proven nothing."""
        proxy, kills = self.proxy, len(self.evidence.outages) + len(self.evidence.lives)
        disk = self._disk_faults + self.agent.log.count(DISK_FAULT)
        return proxy.cuts + proxy.turned_away + account.refused + account.without_crop + kills + disk

    def untrue(self, account: Account) -> List[str]:
        """Return what a new subscriber receives as retained and is not true, at a quiet moment of the scene."""
        return untrue(account.truth, lambda faces: self._wrong(account.boot(), faces))

    def _wrong(self, boot: int, faces: Dict[str, int]) -> List[str]:
        wanted = {f"{BASE}/availability": b"online"}
        for camera, count in faces.items():
            wanted[f"{BASE}/{camera}/availability"] = b"online"
            wanted[f"{BASE}/{camera}/presence"] = b"ON" if count else b"OFF"
            wanted[f"{BASE}/{camera}/face_count"] = b"%d" % count
        last = {passed.topic: passed.payload for passed in self.proxy.record[self._record :] if passed.retain}
        known = {*wanted, *(topic for topic, payload in last.items() if payload)}
        with Listener(self.broker, "#", version=self.protocol) as late:
            end_t = time.monotonic() + 0.3
            while not known <= set(late.topics()) and time.monotonic() < end_t:
                time.sleep(0.005)
            wrong = [f"no retained {topic}" for topic in sorted(known - set(late.topics()))]
            wrong += [f"{t} retains {late.last(t)!r}, true is {v!r}" for t, v in wanted.items() if late.last(t) != v]
            retained = json.loads(late.last(f"{BASE}/info") or b"{}").get("boot")
            if retained != boot:
                wrong.append(f"{BASE}/info is of boot {retained}, now is {boot}")
        return wrong

    def log_faults(self) -> List[str]:
        """Return tracebacks in the agent's log, and violations of the message schemas."""
        traces = ["a traceback in the log"] if "Traceback" in self.agent.log else []
        schema, self.listener.faults = self.listener.faults, []
        return traces + schema

    def goodbye(self) -> List[str]:
        """Return what a stopped agent leaves retained at the broker and is not true."""
        wanted = {f"{BASE}/availability": b"offline"}
        for camera in CAMERAS:
            wanted.update({f"{BASE}/{camera}/availability": b"offline", f"{BASE}/{camera}/presence": b"None"})
        with Listener(self.broker, f"{BASE}/#", version=self.protocol) as late:
            eventually(lambda: set(wanted) <= set(late.topics()), "the retained state")
            return [f"{t} retains {late.last(t)!r} after a stop" for t, v in wanted.items() if late.last(t) != v]

    def new_chapter(self) -> None:
        """Discard the settled evidence and start the agent again; wait until it connects."""
        self.evidence = Evidence(self.scenes)
        self._record, self._heard = len(self.proxy.record), len(self.listener.heard)
        self.proxy.protocol = 0
        self.start_agent()
        eventually(lambda: self.proxy.protocol, "the agent connects")

    def keep(self, folder: Path, faults: List[str]) -> None:
        """Write the evidence to a folder."""
        folder.mkdir()
        (folder / "violations.txt").write_text("\n".join(faults))
        (folder / "proxy.jsonl").write_text("\n".join(p.as_line() for p in self.proxy.record[self._record :]))
        heard = [f"{h.topic} {h.retain} {h.payload[:1500]!r}" for h in self.listener.heard[self._heard :]]
        (folder / "subscriber.txt").write_text("\n".join(heard))
        (folder / "agent.log").write_text(self.agent.log)
        lives = [f"life {life}" for life in self.evidence.lives] + [f"outage {o}" for o in self.evidence.outages]
        (folder / "lives.txt").write_text("\n".join(lives))

    def _config(self) -> str:
        return f"\nacl_file {self._acl}\n"

    def _asked(self) -> None:
        self.evidence.lives[-1].saw_until = time.time()

    def _ended(self, may_forget: bool) -> None:
        life = self.evidence.lives[-1]
        life.ended_at, life.may_forget = time.time(), may_forget
        self._lives += 1
        self._disk_faults += self.agent.log.count(DISK_FAULT)
        (self._folder / f"agent-{self._lives}.log").write_text(self.agent.log)
