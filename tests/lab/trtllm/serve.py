"""Stand-in of trtllm-serve: its options, its routes, its refusals; llama.cpp computes.

Written after tensorrt_llm/commands/serve.py, serve/openai_server.py and serve/openai_protocol.py
around release 1.2.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from tests.lab.trtllm.parser import parse_own
from tests.lab.trtllm.weights import export, read_engine

_INCOMPATIBLE = (
    "[TRT] [E] IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan "
    "file is generated on an incompatible device, expecting compute {} got compute {}, please "
    "rebuild.)"
)


def die(message: str) -> None:
    """End as an exception that nobody catches does."""
    print(f"Traceback (most recent call last):\n{message}", file=sys.stderr)
    raise SystemExit(1)


def load(arguments: argparse.Namespace) -> tuple[Path, dict[str, Any], Path]:
    """The weights as GGUF, the limits, and the folder of the tokenizer."""
    folder = Path(arguments.model)
    file = Path(tempfile.mkdtemp(prefix="trtllm-lab-")) / "model.gguf"
    if (arguments.backend or "pytorch") == "pytorch":
        if (folder / "rank0.engine").exists():
            die(f"ValueError: {folder} is not a Hugging Face checkpoint")
        export(folder, file)
        limits = {
            "max_batch_size": arguments.max_batch_size or 2048,
            "max_seq_len": arguments.max_seq_len,
        }
        return file, limits, Path(arguments.tokenizer or folder)
    config, header, gguf = read_engine(folder)
    here, version = os.environ["TRTLLM_LAB_SM"], os.environ["TRTLLM_LAB_VERSION"]
    build = config["build_config"]
    for name, default in (("max_batch_size", 2048), ("max_num_tokens", 8192)):
        asked = getattr(arguments, name) or default
        if asked > build[name]:
            die(
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for TrtLlmArgs\n"
                f"  Value error, {name} [{asked}] is greater than build_config.{name} "
                f"[{build[name]}] in build_config [type=value_error]"
            )
    if arguments.tokenizer is None:
        die(f"ValueError: no tokenizer in {folder}")
    if header["compute"] != here:
        print(_INCOMPATIBLE.format(header["compute"], here), file=sys.stderr)
        die("RuntimeError: Executor worker returned error")
    if header["version"] != version:
        die("RuntimeError: Serialization assertion failed: version tag does not match")
    file.write_bytes(gguf)
    limits = {
        "max_batch_size": arguments.max_batch_size or build["max_batch_size"],
        "max_seq_len": build["max_seq_len"],
    }
    return file, limits, Path(arguments.tokenizer)


def read_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the file that is named on the command line."""
    path = arguments.extra_llm_api_options or arguments.config
    return (yaml.safe_load(Path(path).read_text()) or {}) if path else {}


def main() -> None:
    arguments = parse_own("trtllm-serve")
    if not int(os.environ["TRTLLM_LAB_GPUS"]):
        die("ValueError: No GPU devices found on the node")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((arguments.host or "localhost", arguments.port or 8000))
        except OSError as error:
            die(
                f"RuntimeError: Failed to bind socket to {arguments.host}:{arguments.port}: {error}"
            )
        file, limits, tokenizer = load(arguments)
        options = read_options(arguments)
        cache = (options.get("kv_cache_config") or {}).get("max_tokens", limits["max_seq_len"])
        if cache < limits["max_seq_len"]:
            die(f"RuntimeError: a sequence of {limits['max_seq_len']} does not fit the KV cache")
        from tuneline.serving.engines import get_engine
        from tuneline.serving.engines.llama_cpp.launch import READY_PREFIX
        from tuneline.serving.engines.server import ServeRequest

        sizes = limits["max_batch_size"], limits["max_seq_len"]
        command = get_engine("llama_cpp").command(ServeRequest(file, "worker", *sizes, threads=1))
        # Its pipe stays open, so it outlives this process as an MPI worker would.
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
            assert worker.stdout is not None
            line = worker.stdout.readline()
            if not line.startswith(READY_PREFIX):
                die("RuntimeError: Executor worker returned error")
            url = line.removeprefix(READY_PREFIX).strip()
            # It is in memory now.
            shutil.rmtree(file.parent)
            from tests.lab.trtllm.routes import run

            statistics = arguments.backend == "tensorrt" or options.get("enable_iter_perf_stats")
            run(listener, url, worker, Path(arguments.model).name, limits, tokenizer, statistics)
            worker.terminate()


if __name__ == "__main__":
    main()
