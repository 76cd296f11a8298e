"""`exec` into a pod: answered from the pod's directory, never executed.

Airflow reads an XCom by running `cat` in a sidecar and ends the sidecar by
`kill -2 $(pgrep -u $(id -u) -f 'sh')`, which on a laptop would hit the shells of its user.
Here the sidecar is not a process: the first is answered with the file, the second marks the
sidecar as ended, and every other command is refused.

Protocol: v4.channel.k8s.io, where the first byte of a message names its channel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from aiohttp import WSMsgType, web

from localpods.objects import XCOM_SIDECAR

_PROTOCOL = "v4.channel.k8s.io"
_STDOUT, _STDERR, _ERROR = "\x01", "\x02", "\x03"
_XCOM_FILE = "/airflow/xcom/return.json"
# `if [ -s FILE ]; then cat FILE; else echo WORD; fi`, as the provider writes it.
_READ = re.compile(
    rf"if \[ -s {re.escape(_XCOM_FILE)} \]; *then cat {re.escape(_XCOM_FILE)}; "
    r"*else echo (\w+); *fi"
)
_INTERRUPT = re.compile(r"\bkill -(2|INT)\b")
# What a shell returns for a command that may not be executed.
_REFUSED = 126


async def serve_exec(
    request: web.Request, container: str, xcom: Path, end_sidecar: Callable[[], None]
) -> web.WebSocketResponse:
    """Answer an exec request.

    Args:
        request: The request, an upgrade to a websocket.
        container: The container named in it.
        xcom: The directory that stands for `/airflow/xcom`.
        end_sidecar: Marks the sidecar as ended.

    Returns:
        The closed websocket.
    """
    socket = web.WebSocketResponse(protocols=(_PROTOCOL,))
    await socket.prepare(request)
    command = request.query.getall("command", [])
    read = _READ.fullmatch(command[-1]) if command[:2] == ["/bin/sh", "-c"] else None
    if container == XCOM_SIDECAR and read and len(command) == 3:
        await socket.send_bytes(_STDOUT.encode() + _xcom(xcom, if_empty=read[1]))
        await _conclude(socket, 0)
    elif container == XCOM_SIDECAR and command == ["/bin/sh"]:
        ended = await _await_interrupt(socket)
        if ended:
            end_sidecar()
        await _conclude(socket, 0 if ended else _REFUSED)
    else:
        await _conclude(socket, _REFUSED)
    await socket.close()
    return socket


def _xcom(directory: Path, *, if_empty: str) -> bytes:
    try:
        content = (directory / "return.json").read_bytes()
    except FileNotFoundError:
        content = b""
    return content or f"{if_empty}\n".encode()


async def _await_interrupt(socket: web.WebSocketResponse) -> bool:
    """Read what the client types until it interrupts the sidecar or goes away."""
    typed = ""
    async for message in socket:
        if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
            return False
        data = message.data
        text = data.decode("utf-8", errors="replace") if isinstance(data, bytes) else str(data)
        # Channel 0 is standard input.
        if text.startswith("\x00"):
            typed += text[1:]
        if "\n" in typed:
            return _INTERRUPT.search(typed) is not None
    return False


async def _conclude(socket: web.WebSocketResponse, exit_code: int) -> None:
    status: dict[str, object] = {"metadata": {}, "status": "Success"}
    if exit_code:
        message = "localpods never executes a command in a pod"
        await socket.send_str(f"{_STDERR}{message}\n")
        causes = [{"reason": "ExitCode", "message": str(exit_code)}]
        status = {
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": message,
            "details": {"causes": causes},
        }
    await socket.send_str(_ERROR + json.dumps(status))
