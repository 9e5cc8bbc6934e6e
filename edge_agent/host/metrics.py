"""An HTTP endpoint for Prometheus: what was last shown to it, in its own thread, never the frame path's."""

import contextlib
import logging
import socket
import threading
from typing import Any, Iterator, List, Mapping, Optional, Tuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from edge_agent.core.protocol.prometheus import MetricsParams, metrics_of
from edge_agent.errors import MissingPackage

log = logging.getLogger(__name__)

REQUEST_WITHIN_S = 5.0
LOOK_S = 0.5
RETRY_S = 10.0
NAMESPACE = "edge_agent"


class MetricsServer:
    """Serves one request at a time; a slow reader holds up other readers for a bounded time, and nothing else.

    `step` and `close` belong to one thread; `show` and `fault` to any.

    Args:
        params: Where.
        node: A label of every figure.
        within_s: A request that takes longer is cut off.

    Attributes:
        fault: Why nothing can be asked, in words; empty when all is well.

    Raises:
        MissingPackage: prometheus-client is not installed.
    """

    def __init__(self, params: MetricsParams, node: str, within_s: float = REQUEST_WITHIN_S) -> None:
        try:
            from prometheus_client import CollectorRegistry, make_wsgi_app
        except ImportError:
            raise MissingPackage(
                "EDGE_AGENT_METRICS__ENABLED needs prometheus-client, which is not installed",
                "pip install prometheus-client, or leave it off",
            ) from None
        self.fault = ""
        self._params, self._within_s = params, within_s
        self._collector = _Collector(node)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._collector)
        self._app = make_wsgi_app(registry)
        self._server: Optional[_Server] = None

    def show(self, health: Mapping[str, Any]) -> None:
        """From now on, this is what is told. Kept, not copied: the caller changes it no more."""
        self._collector.health = health

    def step(self) -> float:
        """Listen if it does not yet, answer at most one request; returns the seconds to wait before the next step."""
        if self._server is None:
            return self._listen()
        self._server.handle_request()
        return 0.0

    def close(self) -> None:
        """Give the port back. Idempotent."""
        if self._server is not None:
            self._server.server_close()
            self._server = None

    def _listen(self) -> float:
        where = f"{self._params.host}:{self._params.port}"
        try:
            server = _Server(self._params.host, self._params.port, self._within_s)
        except OSError as error:
            fault = f"metrics: {where}: {error.strerror or error}"
            if fault != self.fault:
                log.warning("%s; set EDGE_AGENT_METRICS__HOST and __PORT to one that is free; trying again", fault)
            self.fault = fault
            return RETRY_S
        server.set_app(self._app)
        self._server = server
        self.fault = ""
        log.info("metrics: http://%s/metrics", where)
        return 0.0


class _Server(WSGIServer):
    timeout = LOOK_S

    def __init__(self, host: str, port: int, within_s: float) -> None:
        self._within_s = within_s
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        super().__init__((str(address[0]), int(address[1])), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer, or cut it off: a time for each read would let one byte now and then hold the server for ever."""
        timer = threading.Timer(self._within_s, _cut, (request,))
        timer.daemon = True
        timer.start()
        try:
            super().process_request(request, client_address)
        finally:
            timer.cancel()

    def server_bind(self) -> None:
        """Without the look-up of the host's name that the base class does, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is none of our faults."""
        log.debug("metrics: %s went away", client_address, exc_info=True)


def _cut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        log.debug("metrics: " + format, *args)


class _Collector:
    """What prometheus-client asks at every scrape."""

    def __init__(self, node: str) -> None:
        self.health: Optional[Mapping[str, Any]] = None
        self._node = node

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}
        health = self.health
        for metric in metrics_of(health) if health is not None else ():
            labels: List[str] = ["node", *metric.labels]
            family = kinds[metric.kind](f"{NAMESPACE}_{metric.name}", metric.about, labels=labels)
            for values, number in metric.samples:
                sample: Tuple[str, ...] = (self._node, *values)
                family.add_metric(sample, number)
            yield family
