"""The cause of a failed start, read from vLLM's log."""

from __future__ import annotations

import re
import signal

from tuneline.errors import RetryableError, TunelineError, UserError
from tuneline.serving.engines.vllm.launch import ERROR_PREFIX

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
