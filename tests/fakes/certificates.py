"""Certificates as `scripts/make-certs` makes them, and some that must be refused."""

import os
import ssl
import subprocess
from pathlib import Path
from typing import Any, Dict

from edge_agent.mqtt.params import TlsParams
from edge_agent.mqtt.tls import context

ROOT = Path(__file__).resolve().parents[2]


def make(folder: Path, host: str, *names: str, days: int = 365) -> None:
    """An authority, if there is none yet, and certificates for the broker and for each name."""
    environ = {**os.environ, "DAYS": str(days)}
    command = [str(ROOT / "scripts" / "make-certs"), str(folder), host, *names]
    subprocess.run(command, check=True, capture_output=True, env=environ)


def postpone(folder: Path, name: str, until: str = "20410101000000Z") -> None:
    """Make NAME's certificate one of the year 2040, as seen by a machine whose clock is behind."""
    _date(folder, name, "20400101000000Z", until)


def expire(folder: Path, name: str) -> None:
    """Make NAME's certificate one of the year 2020; openssl from 3.6 on makes none of -1 days."""
    _date(folder, name, "20200101000000Z", "20210101000000Z")


def _date(folder: Path, name: str, since: str, until: str) -> None:
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca=d\n[d]\ndatabase=index.txt\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
        "[p]\ncommonName=supplied\n[e]\nsubjectAltName=IP:127.0.0.1\n"
    )
    (folder / "index.txt").write_text("")
    (folder / "serial").write_text("7001\n")
    request = ["req", "-new", "-key", f"{name}.key", "-subj", f"/CN={name}", "-out", "dated.csr"]
    sign = [
        "ca", "-batch", "-notext", "-config", "ca.cnf", "-cert", "ca.pem", "-keyfile", "ca.key", "-in", "dated.csr",
        "-startdate", since, "-enddate", until, "-extensions", "e", "-out", f"{name}.pem",
    ]  # fmt: skip
    for arguments in (request, sign):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def client(folder: Path, name: str, ca: str = "ca") -> ssl.SSLContext:
    """For a subscriber of that name."""
    return context(TlsParams(True, str(folder / f"{ca}.pem"), str(folder / f"{name}.pem"), str(folder / f"{name}.key")))


def settings(folder: Path, name: str) -> Dict[str, Any]:
    """The agent's, as config/mosquitto/README.md has them."""
    return {
        "MQTT__TLS__ENABLED": "true",
        "MQTT__TLS__CA_FILE": folder / "ca.pem",
        "MQTT__TLS__CERT_FILE": folder / f"{name}.pem",
        "MQTT__TLS__KEY_FILE": folder / f"{name}.key",
    }
