"""TLS for the broker's connection, and its faults in words."""

import socket
import ssl

from edge_agent.errors import BrokerError
from edge_agent.mqtt.params import TlsParams

_CLOCK = {9: "not valid yet", 10: "expired"}
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""


def context(params: TlsParams) -> ssl.SSLContext:
    """A client's context that checks certificate and host name; made anew at every connect, so renewed files count.

    Raises:
        BrokerError: A file cannot be read or is not what it should be.
    """
    name = params.ca_file
    try:
        made = ssl.create_default_context(cafile=params.ca_file)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        if params.cert_file is not None:
            name = params.cert_file
            made.load_cert_chain(params.cert_file, params.key_file)
    except (OSError, ssl.SSLError) as error:
        raise BrokerError(
            f"TLS: {name} cannot be used: {error}", "expected a PEM file that this user may read"
        ) from None
    return made


def explain(error: Exception, host: str, port: int) -> str:
    """Why a connection could not be made, in one line."""
    where = f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _CLOCK:
            return f"{where}: the broker's certificate is {_CLOCK[error.verify_code]}; is this machine's clock right?"
        return f"{where}: the broker's certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"{where}: TLS failed: {error.reason or error}; does the broker speak TLS on this port?"
    if isinstance(error, socket.gaierror):
        return f"{host}: name not found: {error.strerror}"
    if isinstance(error, (socket.timeout, TimeoutError)):
        return f"{where}: no answer"
    if isinstance(error, OSError) and error.strerror:
        return f"{where}: {error.strerror}"
    return f"{where}: {error}"
