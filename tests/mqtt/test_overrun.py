"""When the publish thread cannot keep up: what a subscriber receives of events dropped before the outbox."""

import json
from pathlib import Path
from typing import Any, List

from edge_agent.core.types import Outcome
from edge_agent.runtime.publish_queue import PublishQueue
from edge_agent.runtime.stages import PublishStage
from tests.fakes.broker import Broker, Listener, eventually, needs_mosquitto
from tests.fakes.mqtt_agent import HEALTH, INFO, Agent, event, report
from tests.fakes.schemas import validate

DOOR = "edge-agent/lobby/door"


@needs_mosquitto
def test_a_blocked_publish_thread_leaves_a_gap_and_ends_every_visit(tmp_path: Path) -> None:
    publish_queue = PublishQueue(capacity=3)
    with Broker(tmp_path) as broker, Agent(broker.port, on_notice=publish_queue.put) as agent:
        stage = PublishStage(publish_queue, agent.publisher, lambda: HEALTH, lambda: INFO, agent.clock)

        def received() -> List[Any]:
            read = [validate(payload) for payload in listener.payloads(f"{DOOR}/events")]
            return [
                (one["boot"], one["from_seq"], one["to_seq"], one["count"], one["reason"])
                if "from_seq" in one
                else (one["seq"], one["event_type"], one["event_id"][-1])
                for one in read
            ]

        def step_until(true: Any) -> None:
            def done() -> Any:
                stage.step()
                return true()

            eventually(done)

        with Listener(broker, f"{DOOR}/#") as listener:
            publish_queue.put_outcome(Outcome("door", (event(1, visit=1),), report("ON", faces=1)))
            step_until(lambda: received() == [(1, "start", "1")])
            # From here on the publish thread is blocked.
            publish_queue.put_outcome(Outcome("door", (event(2, visit=2),), report("ON", faces=2)))
            publish_queue.put_outcome(Outcome("door", (event(3, "update", visit=1),)))
            publish_queue.put_outcome(Outcome("door", (event(4, "end", visit=1, crop=True),), report("ON", faces=1)))
            publish_queue.put_outcome(Outcome("door", (event(5, "end", visit=2, crop=True),), report("OFF", faces=0)))
            for seq in range(6, 12, 2):
                publish_queue.put_outcome(Outcome("door", (event(seq, visit=3),)))
                publish_queue.put_outcome(Outcome("door", (event(seq + 1, "end", visit=3),)))
            step_until(lambda: any(one[0] == 11 for one in received()) and agent.settled())
            shown = received()
            numbers = [one[0] for one in shown if len(one) == 3]
            gaps = [one for one in shown if len(one) == 5]
            assert [(boot, reason) for boot, *_, reason in gaps] == [(41, "overrun")] * len(gaps) and gaps
            lost = [seq for _, first, last, *_ in gaps for seq in range(first, last + 1)]
            assert sorted(numbers + lost) == list(range(1, 12)) and numbers == sorted(numbers)
            assert publish_queue.lost_events == len(lost) == sum(gap[3] for gap in gaps)
            opened = {one[2] for one in shown if len(one) == 3 and one[1] == "start"}
            assert opened <= {one[2] for one in shown if len(one) == 3 and one[1] == "end"}
            assert (4, "end", "1") in shown
            eventually(lambda: listener.last(f"{DOOR}/presence") == b"OFF")
        with Listener(broker, f"{DOOR}/#") as late:
            eventually(lambda: late.last(f"{DOOR}/face_count") == b"0")
            assert late.last(f"{DOOR}/presence") == b"OFF"
            assert json.loads(late.last(f"{DOOR}/presence/attributes") or b"{}")["faces"] == 0
