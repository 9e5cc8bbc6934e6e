"""Notifications to a service manager over a real socket."""

import logging
import time
import uuid

import pytest

from edge_agent.host import systemd
from tests.fakes.broker import eventually
from tests.fakes.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    address = str(tmp_path / "notify") if request.param == "path" else f"@edge-agent-{uuid.uuid4().hex}"
    with ServiceManager(address) as manager:
        yield manager


def test_every_notification_is_one_datagram(manager):
    service = systemd.ServiceManager({**manager.environ, "WATCHDOG_USEC": "30000000"})
    before_us = time.monotonic_ns() // 1000
    service.extend(60.0)
    service.status("two\nlines")
    service.ready("all well")
    service.reloading()
    service.alive()
    service.stopping()
    eventually(lambda: len(manager.heard) == 6)
    reload = manager.heard.pop(3)
    assert manager.heard == [
        "EXTEND_TIMEOUT_USEC=60000000",
        "STATUS=two lines",
        "READY=1\nSTATUS=all well",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=stopping",
    ]
    word, stamp = reload.splitlines()
    assert word == "RELOADING=1"
    name, _, value = stamp.partition("=")
    assert name == "MONOTONIC_USEC" and before_us <= int(value) <= time.monotonic_ns() // 1000


def test_the_watchdog_is_reset_only_when_it_watches_this_process(manager):
    assert systemd.ServiceManager({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "7"}, pid=7).watchdog_s == 2.5
    for other in (
        {},
        {"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "8"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "x"},
    ):
        service = systemd.ServiceManager({**manager.environ, **other}, pid=7)
        assert service.watchdog_s is None
        service.alive()
    service.status("the end")
    eventually(lambda: manager.heard)
    assert manager.heard == ["STATUS=the end"]


@pytest.mark.parametrize("address", ["", "relative/path", "vsock:2:1234"])
def test_without_a_usable_socket_nothing_happens(address):
    service = systemd.ServiceManager({"NOTIFY_SOCKET": address})
    service.ready("ready")
    service.stopping()


def test_an_absent_manager_and_its_return_are_logged_once(tmp_path, caplog):
    caplog.set_level(logging.INFO, "edge_agent.host.systemd")
    address = str(tmp_path / "notify")
    service = systemd.ServiceManager({"NOTIFY_SOCKET": address})
    service.status("1")
    service.status("2")
    with ServiceManager(address) as manager:
        service.status("3")
        eventually(lambda: manager.heard == ["STATUS=3"])
    warning, recovery = caplog.records
    assert warning.levelno == logging.WARNING and recovery.levelno == logging.INFO
