"""Run llama.cpp's own OpenAI-compatible server in this process, through xllamacpp.

    python -m tuneline.serving.engines.llama_cpp.launch --model model.gguf --port 8081

Once it serves, it prints `listening at http://host:port` on its standard output. SIGTERM lets
running requests finish, then ends with 0. It listens on loopback unless `--host` is given: it
checks no keys, which is the gateway's task.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tuneline.errors import EXIT_FAILED, EXIT_OK, TunelineError, UserError
from tuneline.machine.cores import default_threads

READY_PREFIX = "listening at "
ERROR_PREFIX = "error: "
DEFAULT_CONTEXT = 2048
# For running requests to finish.
GRACE_SECONDS = 20.0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tuneline.serving.engines.llama_cpp.launch",
        description="Serve a GGUF model with llama.cpp's OpenAI-compatible server.",
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, help="GGUF file")
    add("--port", type=int, default=0, help="0 takes a free one (default)")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--threads", type=int, help="default: $TUNELINE_THREADS or all cores but 1")
    add("--parallel", type=int, default=1, help="requests served at once")
    add("--ctx", type=int, default=DEFAULT_CONTEXT, help="context of one request, tokens")
    lora = 'GGUF adapter, may be repeated; off unless a request has "lora":[{"id":0,"scale":1}]'
    add("--lora", type=Path, action="append", default=[], help=lora)
    add("--alias", help="model name in the API (default: the file's)")
    stop = "end when standard input closes, that is with the process that started this one"
    add("--stop-with-stdin", action="store_true", help=stop)
    return parser


def serve(arguments: argparse.Namespace) -> int:
    """Load the model, serve until a signal arrives, drain and stop; return the exit code.

    Raises:
        UserError: if a file is missing.
        TunelineError: if the engine could not load the model or take the port.
    """
    for path in (arguments.model, *arguments.lora):
        if not path.is_file():
            raise UserError(f"{path} does not exist")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if arguments.stop_with_stdin:
        threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    # Loading blocks in C++, where no signal handler runs, so a second thread loads and the
    # main one stays free to receive a signal.
    loading = ThreadPoolExecutor(1).submit(_start, arguments)
    while not loading.done():
        if stop.wait(0.02):
            return _leave(EXIT_OK)
    if error := loading.exception():
        raise TunelineError(f"llama.cpp can't serve {arguments.model}: {error}")
    server = loading.result()
    address = str(server.listening_address)
    _say(1, f"{READY_PREFIX}{address}")
    stop.wait()
    _drain(address)
    return _leave(EXIT_OK)


def _start(arguments: argparse.Namespace) -> Any:
    # Must be set before libgomp is loaded with the library: spinning workers cost a factor of
    # ten as soon as anything else runs on the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(arguments.model)
    params.hostnames = [arguments.host]
    params.port = arguments.port
    params.n_parallel = arguments.parallel
    # The engine divides its context among the slots.
    params.n_ctx = arguments.ctx * arguments.parallel
    threads = arguments.threads or default_threads()
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.endpoint_metrics = True
    params.ui = False
    # No web page may read answers of an engine on this machine.
    params.cors_origins = "null"
    params.cors_origins_explicit = True
    # Sizes are stated, not fitted to the free memory. There is no 8 GiB cache of old prompts,
    # for which a pod with a memory limit would be killed.
    params.fit_params = False
    params.cache_ram_mib = 0
    if arguments.alias:
        params.model_alias = {arguments.alias}
    # Scale 0: with 1 every request without a `lora` field, or an empty one, would get all
    # adapters at once.
    params.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(str(path), 0.0) for path in arguments.lora
    ]
    # A slot keeps its prefix cache when the next request turns the adapter off, so one
    # tenant's answer would start from another's state: no prefix cache with adapters.
    params.cache_prompt = not arguments.lora
    return xllamacpp.Server(params)


def _wait_for_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def _drain(address: str) -> None:
    """Wait until every slot is idle, for `GRACE_SECONDS` at most; without an answer it is not.

    The last bytes of an answer leave after its slot is idle, so that two looks decide.
    """
    deadline, idle = time.monotonic() + GRACE_SECONDS, 0
    while idle < 2 and time.monotonic() < deadline:
        idle += 1
        try:
            with urllib.request.urlopen(f"{address}/slots", timeout=2) as answer:  # noqa: S310
                if any(slot.get("is_processing") for slot in json.load(answer)):
                    idle = 0
        except (OSError, ValueError):
            idle = 0
        time.sleep(0.05)


def _say(descriptor: int, line: str) -> None:
    """Write a line in one piece: the engine's log threads write to the same file."""
    os.write(descriptor, f"{line}\n".encode())


def _flush_engine_log() -> None:
    """Wait until the engine's log thread has written its messages: the cause is among them."""
    engine = sys.modules.get("xllamacpp")
    if engine is None:
        return
    # `common_log_flush(common_log_main())`, C++ functions that the wheel's library exports.
    library = ctypes.CDLL(engine.xllamacpp.__file__)
    with contextlib.suppress(AttributeError):
        main_log, flush = library._Z15common_log_mainv, library._Z16common_log_flushP10common_log
        main_log.restype, flush.restype, flush.argtypes = ctypes.c_void_p, None, [ctypes.c_void_p]
        flush(main_log())


def _leave(code: int) -> int:
    """End at once, without waiting for the engine's threads and destructors."""
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; errors are one line on standard error."""
    arguments = build_parser().parse_args(argv)
    try:
        return serve(arguments)
    except TunelineError as error:
        _flush_engine_log()
        _say(2, f"{ERROR_PREFIX}{error}")
        return _leave(error.exit_code or EXIT_FAILED)


if __name__ == "__main__":
    sys.exit(main())
