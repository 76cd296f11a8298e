"""Whether a port is free, and the process that holds a taken one."""

from __future__ import annotations

import socket

import psutil

from tuneline.errors import UserError
from tuneline.stack.layout import LOOPBACK


def is_free(port: int) -> bool:
    """Return True if a server can listen on this port of the loopback address."""
    with socket.socket() as probe:
        # Servers set this option, so that a port in TIME_WAIT counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def require_free(port: int, what: str, setting: str) -> None:
    """Raise an error if another program has the port.

    Args:
        port: port to listen on.
        what: service that wants to listen there, for the message.
        setting: environment variable that chooses another port.

    Raises:
        UserError: if it is taken; the message names the program where the system shows it.
    """
    if not is_free(port):
        raise UserError(
            f"port {port} for {what} is taken by {_holder(port)}; stop it, or choose another "
            f"port with {setting}={port + 1}"
        )


def _holder(port: int) -> str:
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "another program"
    for connection in connections:
        listens = connection.status == psutil.CONN_LISTEN and connection.laddr
        # An address is a pair of host and port.
        if listens and tuple(connection.laddr)[1] == port and connection.pid:
            try:
                process = psutil.Process(connection.pid)
                return f"{process.name()} (process {process.pid})"
            except psutil.Error:
                break
    return "another program"
