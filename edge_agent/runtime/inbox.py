"""The bounded queue in front of the publish thread: outcomes from the infer thread, notices from the broker client."""

import threading
from collections import Counter, deque
from typing import Counter as CounterType
from typing import Deque, List, Union

from edge_agent.core.types import Outcome

MAX_REQUESTS = 64


class Inbox:
    """Never blocks the sender. When full the oldest outcome goes, counted; its events show as a gap in `seq`.

    A report is never lost without a newer one of the same camera: it is truth that must end up retained.

    Args:
        capacity: Outcomes kept. Notices are bounded by their sender (messages in flight, commands that wait).

    Attributes:
        lost_events: Events that went.
        lost_requests: Requests that went.
    """

    def __init__(self, capacity: int = 2048) -> None:
        self._capacity = capacity
        self._items: Deque[Union[Outcome, object]] = deque()
        self._outcomes = 0
        self._condition = threading.Condition()
        self._requests: CounterType[str] = Counter()
        self.lost_events = 0
        self.lost_requests = 0

    def put_outcome(self, outcome: Outcome) -> None:
        """From the infer thread."""
        with self._condition:
            self._items.append(outcome)
            self._outcomes += 1
            if self._outcomes > self._capacity:
                self._drop_oldest()
            self._condition.notify()

    def put_notice(self, notice: object) -> None:
        """From the broker client's thread."""
        with self._condition:
            self._items.append(notice)
            self._condition.notify()

    def put_request(self, request: object, kind: str = "") -> None:
        """From the broker client's thread: what strangers send. When many of a kind wait the newest goes, counted."""
        with self._condition:
            if self._requests[kind] >= MAX_REQUESTS:
                self.lost_requests += 1
                return
            self._requests[kind] += 1
            self._items.append(request)
            self._condition.notify()

    def take(self, timeout_s: float) -> List[object]:
        """Everything that waits, oldest first; empty after `timeout_s`."""
        with self._condition:
            if not self._items:
                self._condition.wait(timeout_s)
            items = list(self._items)
            self._items.clear()
            self._outcomes = 0
            self._requests.clear()
        return items

    def _drop_oldest(self) -> None:
        for index, item in enumerate(self._items):
            if not isinstance(item, Outcome):
                continue
            newer = any(
                isinstance(other, Outcome) and other.camera == item.camera and other.report is not None
                for other in list(self._items)[index + 1 :]
            )
            if item.report is not None and not newer and not item.events:
                continue
            self.lost_events += len(item.events)
            if item.report is not None and not newer:
                self._items[index] = Outcome(item.camera, report=item.report)
            else:
                del self._items[index]
                self._outcomes -= 1
            return
