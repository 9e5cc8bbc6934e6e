"""paho's client, within bounds that it does not keep by itself."""

from paho.mqtt.client import Client

INBOUND_BYTES = 65_536


class BoundedClient(Client):
    """Keeps the beginning of a packet, however long it is: MQTT 3.1.1 has no Maximum Packet Size to say so.

    What was cut is acknowledged, and refused for its length by whoever judges it. Were the connection dropped instead,
    one retained message could keep the agent away for ever.
    """

    def heed_keepalive(self, seconds: int) -> None:
        """What the broker asks for instead of what we have said; paho 2.1 passes it over."""
        self._keepalive = seconds

    def _sock_recv(self, bufsize: int) -> bytes:
        del self._in_packet["packet"][INBOUND_BYTES:]
        return super()._sock_recv(min(bufsize, INBOUND_BYTES))
