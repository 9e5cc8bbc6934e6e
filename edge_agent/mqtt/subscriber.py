"""A subscriber that queues what arrives, for commands that show what agents publish."""

import queue
from typing import Any, List, Optional, Sequence, Tuple

from edge_agent.errors import EdgeAgentError
from edge_agent.mqtt.params import MqttParams
from edge_agent.mqtt.tls import context, explain, password, probe_refusal

ANSWER_S = 10.0

Item = Tuple[str, Any]
"""Kind and value: "message" with paho's message, "lost", "again" after a reconnect; internally also "connected" and
"subscribed" with reason codes."""


class Subscriber:
    """One connection with QoS 1 subscriptions, renewed after every reconnect.

    Args:
        params: Address, credentials and TLS of the broker. The protocol is always 3.1.1, which every broker supports.
        filters: Topic filters.
    """

    def __init__(self, params: MqttParams, filters: Sequence[str]) -> None:
        self._params = params
        self._filters: List[Tuple[str, int]] = [(topic, 1) for topic in filters]
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._client: Any = None

    def open(self) -> None:
        """Connect and subscribe.

        Raises:
            EdgeAgentError: The broker does not answer, refuses the connection, or refuses every subscription.
        """
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

        params = self._params
        client = Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
        client.connect_timeout = ANSWER_S
        if params.username is not None:
            client.username_pw_set(params.username, password(params.password_file))
        if params.tls.enabled:
            client.tls_set_context(context(params.tls))
        put = self._items.put
        client.on_connect = lambda _client, _data, _flags, reason, _properties: put(("connected", reason))
        client.on_disconnect = lambda *_: put(("lost", None))
        client.on_subscribe = lambda _client, _data, _mid, reasons, _properties: put(("subscribed", reasons))
        client.on_message = lambda _client, _data, message: put(("message", message))
        try:
            client.connect(params.host, params.port)
        except (OSError, ValueError) as error:
            raise EdgeAgentError(
                f"no broker: {explain(error, params.host, params.port)}",
                "start it, or name another with --broker mqtt://HOST",
            ) from None
        self._client = client
        client.loop_start()
        try:
            self._subscribe()
        except EdgeAgentError:
            client.loop_stop()
            raise

    def next(self, timeout_s: float) -> Optional[Item]:
        """The next item, or None when there is none in time."""
        try:
            return self._items.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()

    def _subscribe(self) -> None:
        where = f"{self._params.host}:{self._params.port}"
        reason = self._expect("connected", where)
        if reason.is_failure:
            raise EdgeAgentError(
                f"{where}: refused: {reason.getName()}", "check USER in --broker, and the file of --password-file"
            )

        def again(client: Any, *_: Any) -> None:
            self._items.put(("again", None))
            client.subscribe(self._filters)

        self._client.on_connect = again
        self._client.subscribe(self._filters)
        if all(reason.is_failure for reason in self._expect("subscribed", where)):
            topics = f"{self._filters[0][0]} and the like"
            raise EdgeAgentError(f"{where}: this user may not read {topics}", "check the broker's access list")

    def _expect(self, kind: str, where: str) -> Any:
        found, value = self.next(ANSWER_S) or ("silent", None)
        if found == kind:
            return value
        refused = probe_refusal(self._params) if self._params.tls.enabled else None
        hint = "" if self._params.tls.enabled else "does it require TLS (mqtts://)?"
        raise EdgeAgentError(
            f"{where}: {refused or 'accepts the connection, but does not answer as an MQTT broker'}", hint
        )
