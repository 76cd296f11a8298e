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
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from tuneline.errors import EXIT_USER, RetryableError, TunelineError, UserError
from tuneline.machine.cores import default_threads
from tuneline.models.base_model import read_json
from tuneline.serving.engines.engine import arguments
from tuneline.serving.engines.server import ServeRequest
from tuneline.serving.processes import supervise

ERROR_PREFIX = "error: "
NOT_INSTALLED = "vllm is not installed in this image"

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

# `MaxLoRARanks` in vllm/config/lora.py: `--max-lora-rank` takes no other value.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Running requests may take this long to finish after SIGTERM, in seconds.
DRAIN_SECONDS = 20
# Tokens of a block of the KV cache on a CPU (`check_and_update_config` in vllm/platforms/cpu.py).
_BLOCK = 128
# The cache holds every slot's context, and as much again for prefixes that were answered before.
_CACHE_FACTOR = 2
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def is_cpu_build() -> bool:
    """Return True if the installed vLLM runs on the CPU; vLLM decides by its version as well."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:
        return False


def serve_options(
    request: ServeRequest,
    *,
    dtype: Dtype | None = None,
    prefix_caching: bool = True,
    eager: bool | None = None,
) -> dict[str, Any]:
    """Return the options of `vllm serve` that have a value.

    Args:
        request: the model and the sizes.
        dtype: type of weights and activations. None takes the checkpoint's on a GPU and float32
            on a CPU, where an answer in 16 bits depends on the requests beside it; a quantised
            checkpoint is computed in bfloat16 there, since its kernels know no float32.
        prefix_caching: whether the start of a prompt that was answered before is reused.
        eager: whether the model runs without compilation. None compiles on a GPU only: on a CPU
            the first start takes half a minute longer and answers are not faster.
    """
    on_cpu = is_cpu_build()
    dtype = dtype or (_cpu_dtype(request.model) if on_cpu else "auto")
    eager = on_cpu if eager is None else eager
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
        _switch("prefix-caching", prefix_caching): "",
    }
    if eager:
        options["--enforce-eager"] = ""
    if on_cpu:
        # Without it vLLM takes nine tenths of the machine's memory.
        options["--kv-cache-memory-bytes"] = kv_cache_bytes(request, dtype)
    if request.adapters:
        options |= _adapter_options(request.adapters)
    return options


def _cpu_dtype(model: Path) -> Dtype:
    quantised = "quantization_config" in read_json(model / "config.json")
    return "bfloat16" if quantised else "float32"


def launch_command(request: ServeRequest, options: Mapping[str, Any], *switches: str) -> list[str]:
    """Return the command line of the launcher (see `launch`).

    Args:
        request: the model and the number of threads.
        options: options of `vllm serve`; those without a value have an empty one.
        switches: switches of the launcher.
    """
    command = [sys.executable, "-m", "tuneline.serving.engines.vllm.launch", *switches]
    if request.threads is not None:
        command += ["--threads", str(request.threads)]
    loras = [f"{name}={path}" for name, path in request.adapters.items()]
    given = [part for part in arguments(options) if part]
    return [*command, str(request.model), *given, *(["--lora-modules", *loras] if loras else [])]


def kv_cache_bytes(request: ServeRequest, dtype: Dtype) -> int:
    """Return the size of the KV cache on a CPU, in bytes.

    It holds keys and values of each layer for the context of every slot, in whole blocks.

    Raises:
        UserError: if the model's config.json is missing.
    """
    config = read_json(request.model / "config.json")
    config = config.get("text_config") or config
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    size = _BYTES[config.get("dtype", "bfloat16") if dtype == "auto" else dtype]
    per_block = 2 * int(config["num_hidden_layers"]) * kv_heads * width * size * _BLOCK
    # One block more: block 0 is a placeholder that holds nothing.
    blocks = request.parallel * math.ceil(request.context_tokens / _BLOCK) * _CACHE_FACTOR + 1
    return blocks * per_block


def lora_rank(adapter: Path) -> int:
    """Return the rank of an adapter, the largest if modules differ."""
    config = read_json(adapter / "adapter_config.json")
    return max(int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values()), 1)


def _adapter_options(adapters: Mapping[str, Path]) -> dict[str, Any]:
    needed = max(lora_rank(path) for path in adapters.values())
    # One above all of them is left to vLLM, which names the ranks that it takes.
    rank = next((allowed for allowed in LORA_RANKS if allowed >= needed), needed)
    return {"--enable-lora": "", "--max-lora-rank": rank, "--max-loras": len(adapters)}


def _switch(name: str, on: bool) -> str:
    return f"--enable-{name}" if on else f"--no-enable-{name}"


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
# What pydantic and vLLM append to a message for developers.
_APPENDIX = re.compile(r" \[type=\w+, input_value=.*$|, please check the stack trace above.*$")

# A cause that the configuration or the image has to change for, and what to do.
_USER = (
    (
        r"max_model_len .* is greater than the derived",
        "lower deployment.context_tokens to what the model was made for",
    ),
    (
        r"does not recognize this architecture|are not supported for now",
        "choose another base model or engine",
    ),
    (
        r"Unsupported CPU attention configuration|head size .* is not supported",
        "vLLM serves heads of this size on a GPU only; choose another base model or llama_cpp",
    ),
    (
        r"LoRA rank .* is greater than|does not yet support DoRA|modules_to_save",
        "train an adapter that vLLM loads (docs/training.md), or ship the merged model",
    ),
    (
        r"ended by SIGILL",
        "its kernels use instructions that this machine lacks (those for four-bit weights need AMX "
        "where the CPU names it); set deployment.variants: [f16], or serve on another machine",
    ),
    (
        r"'_OpNamespace' '\w+' object has no attribute",
        "this build of vLLM lacks that kernel for the CPU of this machine (those for four-bit "
        "weights need AVX-512); set deployment.variants: [f16], or serve on another machine",
    ),
    (
        r"is not installed in this image",
        "choose the image of vLLM (docker/vllm.Dockerfile), or run `make setup-vllm`",
    ),
)
# Memory that may be free later: another process holds it now.
_BUSY = re.compile(r"Available memory on node|Free memory on device|Address already in use")
_MEMORY = re.compile(
    r"ended by SIGKILL|out of memory|OutOfMemory|No available memory|can't allocate memory", re.I
)


def cause(log: str) -> str | None:
    """Return the message of the first exception in a log; None if there is none.

    The first one names the cause; later ones say that a process ended because of it.
    """
    if stated := _OURS.search(log) or _USAGE.search(log):
        return stated["message"].strip()
    # Its readers may be quicker with their exceptions than the engine is with this line.
    if killed := _KILLED.search(log):
        return f"a worker was ended by {_signal_name(int(killed['signal']))}"
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
    # The first sentence says it; what follows is advice on flags that this project sets.
    sentence = re.split(r"(?<=[a-z)])\. (?=[A-Z])", _APPENDIX.sub("", message))[0]
    return sentence.strip().rstrip(".")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def start_error(model: object, code: int, log: str, last_words: str) -> TunelineError:
    """Return the error of a server that ended before it was ready.

    Args:
        model: the model, as it is named in the message.
        code: exit code of the server.
        log: its output.
        last_words: last line of its output, for a log without an exception.
    """
    found = cause(log)
    if found is None:
        return TunelineError(f"vLLM can't serve {model} (exit code {code}): {last_words}")
    said = f"vLLM can't serve {model}: {found}"
    for pattern, remedy in _USER:
        if re.search(pattern, found):
            return UserError(f"{said}; {remedy}")
    if _BUSY.search(found):
        return RetryableError(f"{said}; free it or wait until it is free")
    if _MEMORY.search(found):
        return TunelineError(f"{said}; give the pod more memory, or lower deployment.parallel")
    return TunelineError(f"{said} (exit code {code})")


def serve_environment(threads: int) -> dict[str, str]:
    """Return the environment variables that vLLM runs with.

    Args:
        threads: CPU threads of the model; a GPU's worker does not depend on them.
    """
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


def serve_command(arguments: Sequence[str]) -> list[str]:
    """Return the command line of `vllm serve` in this Python's environment."""
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments]


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
    command = serve_command(rest)
    if not ours.stop_with_stdin:
        os.execv(command[0], command)
    return supervise(command)


if __name__ == "__main__":
    sys.exit(main())
