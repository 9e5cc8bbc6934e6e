"""The faults between a face and a subscriber: each one breaks a part of the system and repairs it."""

import json
import resource
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List

from edge_agent.commands.live import is_crop
from edge_agent.outbox.sqlite import RETRY_S
from scripts.lib.chaos.world import AGENT, ALL, BASE, World
from tests.fakes.broker import eventually
from tests.fakes.proxy import Passed, Verdict

SMALL = {"OUTBOX__MAX_BYTES": 65_536, "OUTBOX__MAX_CROP_BYTES": 20_000}


@dataclass(frozen=True)
class Fault:
    """One fault, its repair included."""

    strike: Callable[[World], None]
    only_5: bool = False
    only_mosquitto: bool = False

    def possible(self, broker: str, protocol: str) -> bool:
        """Whether the fault can be distinguished from success; MQTT 3.1.1 acknowledges what it refuses."""
        return (protocol == "5" or not self.only_5) and (broker == "mosquitto" or not self.only_mosquitto)


def broker_kill(world: World) -> None:
    """Kill the broker (SIGKILL); it saves nothing."""
    world.kill_broker()
    _meanwhile(world, 0.1, 1.2)
    world.start_broker()


def agent_kill(world: World) -> None:
    """Kill the agent (SIGKILL)."""
    world.kill_agent()
    world.wait(0.0, 0.5)
    world.start_agent()


def cut(world: World) -> None:
    """Cut the network."""
    world.proxy.cut()
    _meanwhile(world, 0.1, 2.0)
    world.proxy.mend()


def stall(world: World) -> None:
    """The network accepts everything and forwards nothing."""
    world.proxy.stall()
    _meanwhile(world, 0.2, 3.0)
    world.proxy.mend()


def unheard(world: World) -> None:
    """The broker receives everything, and none of its answers arrive."""
    world.proxy.stall(only_answers=True)
    _meanwhile(world, 0.2, 3.0)
    world.proxy.cut()
    world.proxy.mend()


def blink(world: World) -> None:
    """The network fails briefly several times."""
    for _ in range(world.chance.randint(2, 4)):
        world.proxy.cut()
        world.wait(0.0, 0.3)
        world.proxy.mend()
        world.wait(0.0, 0.5)


def refuse(world: World) -> None:
    """The broker refuses CONNECT as busy or unavailable."""
    world.proxy.refuse(world.chance.choice((0x88, 0x89, 0x97)) if world.protocol == "5" else 3)
    _meanwhile(world, 0.3, 1.5)
    world.proxy.mend()


def credentials(world: World) -> None:
    """The broker refuses the credentials; the agent then waits for minutes, until it is restarted."""
    codes = (0x86, 0x87, 0x8C) if world.protocol == "5" else (4, 5)
    world.proxy.refuse(world.chance.choice(codes))
    world.wait(0.3, 1.5)
    world.proxy.mend()
    agent_kill(world)


def acl(world: World) -> None:
    """Revoke the right to publish some topics, restore it, then cut the network briefly, which ends the pause."""
    world.speak_5()
    denied = world.chance.choice(("+/events", "a/events", "+/presence", "+/face_count", "a/#", "+/crops/#"))
    world.allow(f"{ALL}\nuser {AGENT}\ntopic deny {BASE}/{denied}\n{ALL}")
    world.reload_acl()
    world.wait(0.5, 2.5)
    world.allow(f"{ALL}\nuser {AGENT}\n{ALL}")
    world.reload_acl()
    world.wait(0.0, 0.5)
    world.proxy.cut()
    world.proxy.mend()


def quota(world: World) -> None:
    """The outbox overflows while the network is cut."""
    world.stop_agent()
    world.start_agent(**SMALL)
    world.wait(1.0, 1.5)
    world.proxy.cut()
    world.wait(4.5, 6.5)
    world.proxy.mend()
    world.wait(1.5, 2.0)
    world.stop_agent()
    world.start_agent()


def disk(world: World) -> None:
    """No file of the agent can grow."""
    pid = world.agent.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, hard))
    world.wait(0.5, 3.0)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))
    # Until the outbox writes again, waiting messages are in memory only and a kill would lose them.
    world.wait(RETRY_S, RETRY_S + 0.5)


def poison(world: World) -> None:
    """One message that ends every connection."""
    _strike(world, Poison("cut", world.chance.choice(("start", "end", "crop"))))
    world.wait(2.0, 3.0)
    world.proxy.mend()


def malformed(world: World) -> None:
    """Some messages that the broker refuses as malformed."""
    world.speak_5()
    _strike(world, Poison("refuse", world.chance.choice(("start", "end", "crop")), world.chance.randint(1, 5)))
    world.wait(0.5, 2.0)
    world.proxy.mend()


def oversize(world: World) -> None:
    """The broker accepts only small messages for a while: no crops, no ends, or almost no events."""
    world.speak_5()
    world.limit(f"max_packet_size {world.chance.choice((900, 1150, 1400, 1800, 2300))}\n")
    world.wait(1.5, 3.0)
    world.limit()


FAULTS: Dict[str, Fault] = {
    "broker-kill": Fault(broker_kill),
    "agent-kill": Fault(agent_kill),
    "cut": Fault(cut),
    "stall": Fault(stall),
    "unheard": Fault(unheard),
    "blink": Fault(blink),
    "refuse": Fault(refuse),
    "credentials": Fault(credentials),
    "acl": Fault(acl, only_5=True, only_mosquitto=True),
    "quota": Fault(quota),
    "disk": Fault(disk),
    "poison": Fault(poison),
    "malformed": Fault(malformed, only_5=True),
    "oversize": Fault(oversize, only_5=True, only_mosquitto=True),
}
LOSSY = ("quota", "poison", "malformed", "oversize")
"""Faults that cost messages, which gaps must account for."""


class Poison:
    """Selects the first `count` messages of a kind, and gives them the same verdict every time."""

    def __init__(self, verdict: str, kind: str, count: int = 1) -> None:
        self._verdict, self._kind, self._left = verdict, kind, count
        self._chosen: List[Any] = []

    @property
    def struck(self) -> bool:
        """Whether a message of that kind has passed."""
        return bool(self._chosen)

    def __call__(self, passed: Passed) -> Verdict:
        """Return the verdict on one PUBLISH."""
        identity: Any = passed.topic
        kind = "crop" if is_crop(passed.topic) else ""
        if passed.topic.endswith("/events"):
            body = json.loads(passed.payload)
            kind, identity = body.get("event_type", "gap"), (body["boot"], body["camera"], body.get("seq"))
        if kind == self._kind and identity not in self._chosen and self._left:
            self._left -= 1
            self._chosen.append(identity)
        return self._verdict if kind == self._kind and identity in self._chosen else None


def _strike(world: World, poison: Poison) -> None:
    """Wait until a message is affected: an agent that has just started publishes none for a while."""
    world.proxy.judge = poison
    eventually(lambda: poison.struck, "something to poison")


def _meanwhile(world: World, least_s: float, most_s: float) -> None:
    """Let the fault last; sometimes kill the agent meanwhile."""
    half_s = world.chance.uniform(least_s, most_s) / 2.0
    time.sleep(half_s)
    if world.chance.random() < 0.3:
        agent_kill(world)
    time.sleep(half_s)
