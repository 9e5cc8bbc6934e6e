"""An HTTP endpoint for Prometheus that serves the latest health, in a thread of its own."""

import contextlib
import logging
import socket
import threading
from typing import Any, Iterator, List, Mapping, Optional, Tuple
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from edge_agent.core.protocol.prometheus import MetricsParams, metrics_of
from edge_agent.errors import MissingPackage

log = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 5.0
POLL_S = 0.5
RETRY_S = 10.0
NAMESPACE = "edge_agent"


class MetricsServer:
    """Serves one request at a time; a slow client delays only other clients, and for a bounded time.

    `step` and `close` are called by one thread; `update` and `fault` may be used by any.

    Args:
        params: Host and port.
        node: Label of every sample.
        timeout_s: A request that takes longer is aborted.

    Attributes:
        fault: Why the endpoint is not available; empty without a fault.

    Raises:
        MissingPackage: prometheus-client is not installed.
    """

    def __init__(self, params: MetricsParams, node: str, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        try:
            from prometheus_client import CollectorRegistry, make_wsgi_app
        except ImportError:
            raise MissingPackage(
                "EDGE_AGENT_METRICS__ENABLED needs prometheus-client, which is not installed",
                "pip install prometheus-client, or disable it",
            ) from None
        self.fault = ""
        self._params, self._timeout_s = params, timeout_s
        self._collector = _Collector(node)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self._collector)
        self._app = make_wsgi_app(registry)
        self._server: Optional[_Server] = None

    def update(self, health: Mapping[str, Any]) -> None:
        """Set the health that is served. It is not copied: the caller must not change it."""
        self._collector.health = health

    def step(self) -> float:
        """Start listening or answer at most one request; returns the seconds to wait before the next step."""
        if self._server is None:
            return self._listen()
        self._server.handle_request()
        return 0.0

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if self._server is not None:
            self._server.server_close()
            self._server = None

    def _listen(self) -> float:
        where = f"{self._params.host}:{self._params.port}"
        try:
            server = _Server(self._params.host, self._params.port, self._timeout_s)
        except OSError as error:
            fault = f"metrics: {where}: {error.strerror or error}"
            if fault != self.fault:
                log.warning("%s; set EDGE_AGENT_METRICS__HOST and __PORT to a free address; it is retried", fault)
            self.fault = fault
            return RETRY_S
        server.set_app(self._app)
        self._server = server
        self.fault = ""
        log.info("metrics: http://%s/metrics", where)
        return 0.0


class _Server(WSGIServer):
    timeout = POLL_S

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        super().__init__((str(address[0]), int(address[1])), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer within the timeout. A timeout per read would let a slow client hold the server for ever."""
        timer = threading.Timer(self._timeout_s, _abort, (request,))
        timer.daemon = True
        timer.start()
        try:
            super().process_request(request, client_address)
        finally:
            timer.cancel()

    def server_bind(self) -> None:
        """Bind without the base class's host name lookup, which may take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a client that disconnected."""
        log.debug("metrics: %s disconnected", client_address, exc_info=True)


def _abort(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        log.debug("metrics: " + format, *args)


class _Collector:
    """Collector that prometheus-client calls at every scrape."""

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
