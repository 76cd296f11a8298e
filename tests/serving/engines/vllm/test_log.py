"""The cause of a failed start, in logs as vLLM 0.32 writes them."""

import pytest

from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.serving.engines.vllm.launch import cause, start_error

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


def error_of(log):
    return start_error("model", 1, log)


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
            "cache blocks; give the pod more memory",
        ),
        (
            WORKER + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.\n",
            TunelineError,
            "CUDA out of memory; give the pod more memory",
        ),
        (DIED.format(4), UserError, r"ended by SIGILL; its kernels.*deployment\.variants: \[f16\]"),
        (
            WORKER + "AttributeError: '_OpNamespace' '_C' object has no attribute 'gemm_x'\n",
            UserError,
            r"'gemm_x'; this build of vLLM lacks .*deployment\.variants: \[f16\]",
        ),
        (DIED.format(9), TunelineError, "ended by SIGKILL; give the pod more memory"),
        (DIED.format(11), TunelineError, r"ended by SIGSEGV \(exit code 1\)"),
        (DIED.partition("\n")[2], TunelineError, r"ended without a word.*\(exit code 1\)"),
        ("error: vllm is not installed in this image\n", UserError, "image; choose the image"),
        (WORKER + "KeyError: 'model.layers.0'\n", TunelineError, r"layers\.0' \(exit code 1\)"),
    ],
)
def test_the_first_error_is_the_cause(log, kind, words):
    error = error_of(NOISE + log + LATER)
    assert type(error) is kind
    assert error.args[0].startswith("vLLM can't serve model: ")
    with pytest.raises(kind, match=words):
        raise error


def test_a_wrong_option_is_named():
    assert cause("usage: vllm serve\nvllm serve: error: argument --x: no\n") == "argument --x: no"


def test_a_log_without_an_error_gives_its_last_line():
    assert cause("INFO all is well\n") is None
    assert error_of("INFO all is well\n").args == (
        "vLLM can't serve model (exit code 1): INFO all is well",
    )
