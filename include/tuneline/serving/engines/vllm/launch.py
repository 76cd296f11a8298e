"""Run `vllm serve` with this project's environment, and let no process of it outlive it.

    python -m tuneline.serving.engines.vllm.launch [--threads N] [--stop-with-stdin] MODEL …

Everything else goes to `vllm serve`. With `--stop-with-stdin` this process stays beside vLLM: it
forwards SIGTERM and SIGINT, and ends vLLM when its standard input closes, that is with the
process that started it. vLLM's engine and workers are processes of their own, which go on if the
server's process is killed; so what is left of the process group is killed when the server ends.
The caller makes it the leader of a process group.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneline.errors import EXIT_USER
from tuneline.machine.cores import default_threads
from tuneline.serving.processes import supervise

if TYPE_CHECKING:
    # What is imported when it is needed keeps the launcher's own process small.
    from tuneline.serving.engines.server import ServeRequest

ERROR_PREFIX = "error: "
NOT_INSTALLED = "vllm is not installed in this image"

# `MaxLoRARanks` in vllm/config/lora.py: `--max-lora-rank` takes no other value.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Running requests may take this long to finish after SIGTERM, in seconds.
DRAIN_SECONDS = 20
# Tokens of a block of the KV cache on a CPU (`check_and_update_config` in vllm/platforms/cpu.py).
_BLOCK = 128
# The cache holds every slot's context, and as much again for prefixes that were answered before.
_CACHE_FACTOR = 2
_BYTES = {"float32": 4, "bfloat16": 2}
# The last line of a traceback, behind the prefix of vLLM's own log lines if it has one.
_RAISED = re.compile(
    r"^(?:\([^)]*pid=\d+\) )?(?:ERROR [\d-]+ [\d:]+ \[[^\]]+\] )?"
    r"(?P<kind>[A-Za-z_][\w.]*(?:Error|Exception)): (?P<message>.+)$",
    re.M,
)
# pydantic names the field first, and the cause on the next line.
_INVALID = re.compile(r"^[^\S\n]+(?:Value error, |Assertion failed, )(?P<message>.+)$", re.M)
_USAGE = re.compile(r"^.*\bvllm[^:\n]{0,80}: error: (?P<message>.+)$", re.M)
_OURS = re.compile(rf"^{re.escape(ERROR_PREFIX)}(?P<message>.+)$", re.M)
# A worker that a signal ended says nothing itself; the exceptions are those of its readers.
_KILLED = re.compile(r"Worker proc \S+ died unexpectedly \(exit code: -(?P<signal>\d+)\)")
# What its readers raise; the engine may end before it can write the line above.
_NO_WRITER = "cancelled"
# What pydantic and vLLM append to a message for developers, and the advice on flags that this
# project sets, behind the first sentence.
_APPENDIX = re.compile(
    r" \[type=\w+, input_value=.*$|, please check the stack trace above.*$"
    r"|(?<=[a-z)])\. (?=[A-Z]).*"
)


def is_cpu_build() -> bool:
    """Return True if the installed vLLM runs on the CPU; vLLM decides by its version as well."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return False


def serve_options(request: ServeRequest) -> dict[str, Any]:
    """Return the options of `vllm serve` that have a value, an empty one for a switch.

    On a CPU weights and activations are float32, since an answer in 16 bits depends there on the
    requests that are served at the same time; a quantised checkpoint is computed in bfloat16, since
    its kernels know no float32. Nor is the model compiled there: the first start would take half a
    minute longer, and answers are not faster.
    """
    on_cpu = is_cpu_build()
    dtype = "auto"
    if on_cpu:
        quantised = "quantization_config" in _read(request.model / "config.json")
        dtype = "bfloat16" if quantised else "float32"
    options: dict[str, Any] = {
        "--host": request.host,
        "--port": request.port,
        "--served-model-name": request.alias,
        "--max-model-len": request.context_tokens,
        "--max-num-seqs": request.parallel,
        "--dtype": dtype,
        # Requests state how they sample; defaults of the checkpoint must not add to it.
        "--generation-config": "vllm",
        "--shutdown-timeout": DRAIN_SECONDS,
        "--enable-prefix-caching": "",
    }
    if on_cpu:
        options["--enforce-eager"] = ""
        # Without it vLLM takes nine tenths of the machine's memory.
        options["--kv-cache-memory-bytes"] = kv_cache_bytes(request, dtype)
    if request.adapters:
        needed = max(lora_rank(path) for path in request.adapters.values())
        # One above all of them is left to vLLM, which names the ranks that it takes.
        rank = next((allowed for allowed in LORA_RANKS if allowed >= needed), needed)
        options |= {"--enable-lora": "", "--max-lora-rank": rank}
        options["--max-loras"] = len(request.adapters)
    return options


def launch_command(request: ServeRequest, *switches: str) -> list[str]:
    """Return the command line that serves a request."""
    from tuneline.serving.engines.server import arguments

    command = [sys.executable, "-m", "tuneline.serving.engines.vllm.launch", *switches]
    if request.threads is not None:
        command += ["--threads", str(request.threads)]
    loras = [f"{name}={path}" for name, path in request.adapters.items()]
    given = [part for part in arguments(serve_options(request)) if part]
    return [*command, str(request.model), *given, *(["--lora-modules", *loras] if loras else [])]


def kv_cache_bytes(request: ServeRequest, dtype: str) -> int:
    """Return the size of the KV cache on a CPU, in bytes.

    It holds keys and values of each layer for the context of every slot, in whole blocks.
    """
    config = _read(request.model / "config.json")
    config = config.get("text_config") or config
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    values = 2 * int(config["num_hidden_layers"]) * kv_heads * width * _BLOCK
    # One block more: block 0 is a placeholder that holds nothing.
    blocks = request.parallel * math.ceil(request.context_tokens / _BLOCK) * _CACHE_FACTOR + 1
    return blocks * values * _BYTES[dtype]


def lora_rank(adapter: Path) -> int:
    """Return the rank of an adapter, the largest if modules differ."""
    config = _read(adapter / "adapter_config.json")
    return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 1)


def cause(log: str) -> str | None:
    """Return the message of the first exception in a log; None if there is none.

    The first one names the cause; later ones say that a process ended because of it.
    """
    if stated := _OURS.search(log) or _USAGE.search(log):
        return stated["message"].strip()
    # Its readers may be quicker with their exceptions than the engine is with this line.
    if killed := _KILLED.search(log):
        names, number = {one.value: one.name for one in signal.Signals}, int(killed["signal"])
        return f"a worker was ended by {names.get(number, f'signal {number}')}"
    raised = _RAISED.search(log)
    if raised is None:
        return None
    message = raised["message"]
    if message == _NO_WRITER:
        return "a worker ended without a word, as one does that a signal ended"
    if raised["kind"].endswith("ValidationError") and (
        invalid := _INVALID.search(log, raised.end())
    ):
        message = invalid["message"]
    return _APPENDIX.sub("", message).strip().rstrip(".")


def serve_environment(threads: int) -> dict[str, str]:
    """Return the environment variables that vLLM runs with."""
    return {
        # Nothing about a run leaves the machine, and no weights are looked for on a hub.
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        # Its processes talk over loopback; the default is the address of a network card.
        "VLLM_HOST_IP": "127.0.0.1",
        # Threads that spin while they wait slow everything else on the machine tenfold.
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": str(threads),
        # "auto" pins the threads to the same first cores in every server, so that two of them
        # on one machine share a core while another is idle.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Half of a W4A16 checkpoint's name: activations stay in 16 bits, as on a GPU.
        "VLLM_CPU_INT4_W4A8": "0",
    }


def _read(path: Path) -> dict[str, Any]:
    from tuneline.models.base_model import read_json

    return read_json(path)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; without `--stop-with-stdin` vLLM replaces this process."""
    parser = argparse.ArgumentParser(
        prog="python -m tuneline.serving.engines.vllm.launch", allow_abbrev=False
    )
    parser.add_argument("--threads", type=int, help="default: $TUNELINE_THREADS or all cores but 1")
    parser.add_argument(
        "--stop-with-stdin",
        action="store_true",
        help="end when standard input closes, that is with the process that started this one",
    )
    ours, rest = parser.parse_known_args(argv)
    if find_spec("vllm") is None:
        print(f"{ERROR_PREFIX}{NOT_INSTALLED}", file=sys.stderr)
        return EXIT_USER
    os.environ.update(serve_environment(ours.threads or default_threads()))
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *rest]
    if not ours.stop_with_stdin:
        os.execv(command[0], command)
    return supervise(command)


if __name__ == "__main__":
    sys.exit(main())
