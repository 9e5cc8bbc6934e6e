"""The outbox in memory."""

from edge_agent.outbox.memory import MemoryOutbox
from edge_agent.outbox.params import OutboxParams
from tests.fakes.mqtt_agent import moment
from tests.outbox.contract import OutboxContract, message


class TestMemoryOutbox(OutboxContract):
    def make(self, max_bytes: int = 1_000_000, max_crop_bytes: int = 1_000_000) -> MemoryOutbox:
        return MemoryOutbox(OutboxParams(max_bytes, max_crop_bytes), lambda: 100.0)


def test_age_is_that_of_the_oldest() -> None:
    outbox = MemoryOutbox(OutboxParams(), lambda: 100.0)
    assert outbox.status().oldest_s == 0.0
    outbox.put([message(1)], moment(60.0))
    outbox.put([message(2)], moment(90.0))
    assert outbox.status().oldest_s == 40.0
    outbox.accept(outbox.batch(1)[0].key)
    assert outbox.status().oldest_s == 10.0
