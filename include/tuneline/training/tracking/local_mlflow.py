"""MLflow of this checkout: the SQLite file that holds its runs, and the server that shows them.

The stack starts the server; a training that was started by hand finds it here.
"""

from __future__ import annotations

import socket
from pathlib import Path
from urllib.parse import urlsplit

FOLDER = "mlflow"
_SERVER = "server_url.txt"
# The server is on loopback: it answers at once, or it is gone.
_CONNECT_SECONDS = 1.0


def database_uri(folder: Path) -> str:
    """Return the URI of the SQLite file in MLflow's folder."""
    return f"sqlite:///{folder / 'mlflow.db'}"


def note_server(folder: Path, url: str) -> None:
    """Note the address of the server of this folder's database."""
    (folder / _SERVER).write_text(url)


def running_server(folder: Path) -> str | None:
    """Return the address of this folder's server, None if it does not run."""
    note = folder / _SERVER
    if not note.is_file():
        return None
    url = note.read_text()
    where = urlsplit(url)
    try:
        socket.create_connection((where.hostname or "", where.port or 0), _CONNECT_SECONDS).close()
    except OSError:
        return None
    return url
