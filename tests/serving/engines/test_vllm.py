"""vLLM without vLLM: its launcher's processes, options, the causes of a failed start, W4A16."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from tests.lab.waiting import wait_for

from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.machine.child_environment import child_environment
from tuneline.serving.engines import get_engine
from tuneline.serving.engines.server import ServeRequest, end_error
from tuneline.serving.engines.vllm import launch
from tuneline.serving.engines.vllm.launch import (
    cause,
    kv_cache_bytes,
    serve_environment,
    serve_options,
)
from tuneline.serving.engines.vllm.quantize import group_size

# A server that has a worker, which goes on if the server is killed; both ids are printed.
SERVER = (
    "import os, signal, subprocess, sys, time; "
    "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); "
    "print(os.getpid(), worker.pid, flush=True); "
)
PATIENT = SERVER + "time.sleep(60)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + PATIENT


@pytest.fixture
def launched():
    """Start a launcher of a program; gives its process and the ids of server and worker."""
    started = []

    def start(program):
        code = (
            "import sys; from tuneline.serving import processes; "
            "processes.GRACE_SECONDS = 0.3; "
            f"sys.exit(processes.supervise([sys.executable, '-c', {program!r}]))"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, env=child_environment(), process_group=0, **pipes)
        started.append(process)
        return process, [int(pid) for pid in process.stdout.readline().split()]

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def gone(pids):
    def state(pid):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                return stat.read().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return "gone"

    return all(state(pid) in ("gone", "Z") for pid in pids)


@pytest.mark.parametrize(
    ("program", "end", "code"),
    [
        (PATIENT, lambda process, _: process.send_signal(signal.SIGTERM), 128 + signal.SIGTERM),
        (PATIENT, lambda _, pids: os.kill(pids[0], signal.SIGKILL), 128 + signal.SIGKILL),
        (PATIENT, lambda process, _: process.stdin.close(), None),
        # It ignores SIGTERM.
        (DEAF, lambda process, _: process.stdin.close(), -signal.SIGKILL),
        (SERVER + "sys.exit(3)", lambda *_: None, 3),
    ],
)
def test_a_launcher_takes_server_and_worker_with_it(program, end, code, launched):
    process, pids = launched(program)
    end(process, pids)
    if process.stdin.closed:
        process.stdin = None
    assert process.wait(10) == code or code is None
    wait_for(lambda: gone(pids))


def test_the_child_says_what_is_missing_and_nothing_leaves_the_machine(monkeypatch, capsys):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    assert launch.main(["model"]) == 2
    assert capsys.readouterr().err == "error: vllm is not installed in this image\n"
    given = serve_environment(3)
    assert given["OMP_NUM_THREADS"] == "3"
    for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "HF_HUB_OFFLINE"):
        assert given[name] == "1"


@pytest.fixture
def asked(tiny_dir):
    return ServeRequest(tiny_dir, "m", 4, 512)


def built_for(monkeypatch, cpu):
    monkeypatch.setattr(launch, "is_cpu_build", lambda: cpu)


def adapter(folder, **config):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_gpu_computes_in_the_type_of_the_checkpoint(asked, monkeypatch):
    built_for(monkeypatch, cpu=False)
    options = serve_options(asked)
    assert options["--dtype"] == "auto"
    assert not {"--enforce-eager", "--kv-cache-memory-bytes"} & set(options)
    assert "--enable-prefix-caching" in options
    command = get_engine("vllm").command(asked)
    assert "" not in command
    assert command[command.index("--max-model-len") + 1] == "512"
    assert command[command.index("--max-num-seqs") + 1] == "4"
    assert command[command.index("--served-model-name") + 1] == "m"


def test_a_cpu_computes_in_float32_with_a_bounded_cache(asked, monkeypatch, tmp_path):
    built_for(monkeypatch, cpu=True)
    options = serve_options(asked)
    assert options["--dtype"] == "float32"
    assert "--enforce-eager" in options
    assert options["--kv-cache-memory-bytes"] == kv_cache_bytes(asked, "float32")
    # A quantised checkpoint is computed in 16 bits.
    config = json.loads((asked.model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert serve_options(replace(asked, model=tmp_path))["--dtype"] == "bfloat16"


def test_the_cache_holds_every_slot_twice(asked):
    # Two layers, two key-value heads of 16, four bytes, keys and values, blocks of 128 tokens.
    block = 2 * 2 * 2 * 16 * 4 * 128
    assert kv_cache_bytes(asked, "float32") == (4 * 4 * 2 + 1) * block
    assert kv_cache_bytes(replace(asked, context_tokens=513), "float32") == (4 * 5 * 2 + 1) * block
    assert kv_cache_bytes(asked, "bfloat16") == (4 * 4 * 2 + 1) * block // 2


@pytest.mark.parametrize(("rank", "given"), [(1, 8), (5, 8), (16, 16), (257, 320), (600, 600)])
def test_the_rank_is_rounded_up_to_one_that_vllm_takes(asked, monkeypatch, tmp_path, rank, given):
    built_for(monkeypatch, cpu=True)
    # The rank of a single module counts.
    first = adapter(tmp_path / "a", r=1, rank_pattern={"q_proj": 4})
    adapters = {"a": first, "b": adapter(tmp_path / "b", r=rank)}
    request = replace(asked, adapters=adapters)
    options = serve_options(request)
    assert options["--max-lora-rank"] == given
    assert options["--max-loras"] == 2
    command = get_engine("vllm").command(request)
    at = command.index("--lora-modules")
    assert command[at + 1 :] == [f"{name}={path}" for name, path in adapters.items()]


WORKER = "(Worker pid=7) ERROR 11-26 07:45:01 [multiproc_executor.py:1063] "
NOISE = """\
(APIServer pid=5) WARNING 11-26 07:41:44 [system_utils.py:255] This can cause fd limit errors like \
`OSError: [Errno 24] Too many open files`. Consider increasing with ulimit -n
(Worker pid=7) ERROR 11-26 07:45:01 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=7) ERROR 11-26 07:45:01 [multiproc_executor.py:1063]     raise ValueError(
"""
LATER = """
(EngineCore pid=6) ERROR 11-26 07:45:01 [core.py:1510] RuntimeError: Worker failed with error 'x'
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
TOO_LONG = """\
Traceback (most recent call last):
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (99999) is greater than the derived max_model_len \
(max_position_embeddings=2048.0 or model_max_length=None in model's config.json). To allow \
overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. [type=value_error, \
input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]
"""
MEMORY = (
    "ValueError: Available memory on node 0 (17.43/23.54 GiB) on kv cache allocation is less than "
    "requested memory for kv (93.13 GiB). Decrease --kv-cache-memory-bytes.\n"
)
# A worker that a signal ended leaves no traceback of its own.
DIED = (
    "(EngineCore pid=6) ERROR 11-26 07:45:01 [multiproc_executor.py:315] Worker proc VllmWorker-0 "
    "died unexpectedly (exit code: -{}), shutting down executor.\n"
    '(EngineCore pid=6) ERROR 11-26 07:45:01 [core.py:1512]     raise RuntimeError("cancelled")\n'
    "(EngineCore pid=6) ERROR 11-26 07:45:01 [core.py:1512] RuntimeError: cancelled\n"
)


@pytest.mark.parametrize(
    ("log", "kind", "words"),
    [
        (TOO_LONG, UserError, r"\(99999\) is greater than .*config\.json\); lower deployment\.con"),
        (WORKER + "ValueError: LoRA rank 16 is greater than max_lora_rank 8.\n", UserError, "ship"),
        (WORKER + MEMORY, RetryableError, r"\(93\.13 GiB\); free it"),
        ("OSError: [Errno 98] Address already in use\n", RetryableError, "Address already in use"),
        (
            WORKER + "ValueError: No available memory for the cache blocks. Try increasing it.\n",
            TunelineError,
            "cache blocks; lower deployment.parallel",
        ),
        (
            WORKER + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.\n",
            TunelineError,
            "CUDA out of memory; lower deployment.parallel",
        ),
        (DIED.format(4), UserError, r"ended by SIGILL; its kernels.*deployment\.variants: \[f16\]"),
        (
            WORKER + "AttributeError: '_OpNamespace' '_C' object has no attribute 'gemm_x'\n",
            UserError,
            r"'gemm_x'; this build of vLLM lacks .*deployment\.variants: \[f16\]",
        ),
        (DIED.format(9), TunelineError, "ended by SIGKILL; lower deployment.parallel"),
        (DIED.format(11), TunelineError, r"ended by SIGSEGV \(exit code 1\)"),
        # Real-time signals have no name.
        (DIED.format(40), TunelineError, r"ended by signal 40 \(exit code 1\)"),
        (DIED.partition("\n")[2], TunelineError, r"ended without a word.*\(exit code 1\)"),
        ("error: vllm is not installed in this image\n", UserError, "image; choose the image"),
        (WORKER + "KeyError: 'model.layers.0'\n", TunelineError, r"layers\.0' \(exit code 1\)"),
    ],
)
def test_the_first_error_is_the_cause(log, kind, words):
    error = end_error("vLLM", "model", 1, cause(NOISE + log + LATER))
    assert type(error) is kind
    assert error.args[0].startswith("vLLM can't serve model: ")
    with pytest.raises(kind, match=words):
        raise error


def test_a_wrong_option_is_named_and_a_log_without_an_error_has_no_cause():
    assert cause("usage: vllm serve\nvllm serve: error: argument --x: no\n") == "argument --x: no"
    assert cause("INFO all is well\n") is None


@pytest.mark.parametrize(
    ("sizes", "group"),
    [
        ({"hidden_size": 4096, "intermediate_size": 14336}, 128),
        # SmolLM2-135M
        ({"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9}, 64),
        ({"hidden_size": 128, "intermediate_size": 96}, 32),
        # The attention's output has another width than the model.
        ({"hidden_size": 256, "intermediate_size": 256, "head_dim": 40}, 64),
        ({"hidden_size": 128, "intermediate_size": 100}, None),
    ],
)
def test_the_group_of_w4a16_divides_the_inputs_of_all_layers(tmp_path, sizes, group):
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 8, **sizes}))
    if group is None:
        with pytest.raises(UserError, match=r"128, 128, 100 inputs.*deployment.variants"):
            group_size(tmp_path)
    else:
        assert group_size(tmp_path) == group
