"""Whether an answer is the JSON that its request asked for by `response_format`.

Engines constrain their decoding by the schema, or ignore it; a chain looks at what came. Schemas
and answers come from outside, and some schemas are judged for ever. So a separate process holds
them against each other, and ends itself after a second; then the answer passes unjudged.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tuneline.machine.child_environment import bare_environment
from tuneline.serving.gateway.json_text import dump_json

# A larger one is left to the engine.
_SCHEMA_BYTES = 16_384
_JUDGED_WITHIN_S = 1.0
# With the start of the process, and requests that wait for it too.
_PATIENCE_S = 3.0
_MEMORY_BYTES = 1 << 30
_FITS, _BREAKS, _UNJUDGED = b"fits\n", b"breaks\n", b"unjudged\n"


@dataclass(frozen=True)
class JsonForm:
    """The form that a request asked for: a JSON Schema as text, None for any JSON object."""

    schema: bytes | None = None


def json_form_of(body: Mapping[str, Any]) -> JsonForm | None:
    """Return the form that a request asks for; None if it asks for none that can be judged."""
    asked = body.get("response_format")
    if not isinstance(asked, dict):
        return None
    if asked.get("type") == "json_object":
        # llama.cpp takes the schema here too.
        schema = asked.get("schema")
    elif asked.get("type") == "json_schema":
        stated = asked.get("json_schema")
        schema = stated.get("schema") if isinstance(stated, dict) else None
        if schema is None:
            return None
    else:
        return None
    if not isinstance(schema, dict):
        return JsonForm()
    text = dump_json(schema)
    return JsonForm(text) if len(text) <= _SCHEMA_BYTES else None


class FormJudge:
    """The process that judges; it starts with the first schema, and again after its end."""

    def __init__(self, unjudged: Callable[[], None]) -> None:
        self._unjudged = unjudged
        # One thread, so one request at a time speaks to the process.
        self._thread = ThreadPoolExecutor(1, "JSON forms")
        self._process: subprocess.Popen[bytes] | None = None

    async def accepts(self, form: JsonForm, texts: Sequence[str]) -> bool:
        """Return True if all texts are JSON of a form, or if nobody can say within seconds."""
        if form.schema is None:
            return all(map(_is_object, texts))
        question = b"%b\t%b\n" % (form.schema, dump_json(texts))
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                verdict = await loop.run_in_executor(self._thread, self._ask, question)
        except (TimeoutError, OSError):
            verdict = _UNJUDGED
        if verdict not in (_FITS, _BREAKS):
            self._unjudged()
        return verdict != _BREAKS

    def close(self) -> None:
        """End the process."""
        self._thread.shutdown(cancel_futures=True)
        self._end_process()

    def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.communicate()

    def _ask(self, question: bytes) -> bytes:
        process = self._process = self._process or _start()
        assert process.stdin
        assert process.stdout
        try:
            process.stdin.write(question)
            process.stdin.flush()
            verdict = process.stdout.readline()
        except OSError:
            verdict = b""
        if not verdict:
            self._end_process()
        return verdict


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # Nor does it import anything from the folder that the gateway was started in.
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # What judges texts from outside gets no secret, and no Ctrl-C.
        env=bare_environment(),
        start_new_session=True,
    )


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


@lru_cache(maxsize=64)
def _compiled(schema: bytes) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    # Nothing is fetched for a schema: an address in `$ref` stays unresolved.
    return Draft202012Validator(json.loads(schema), registry=Registry())


def _judge(question: bytes) -> bytes:
    schema, texts = question.split(b"\t")
    for text in json.loads(texts):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return _BREAKS
        try:
            if not _compiled(schema).is_valid(value):
                return _BREAKS
        except Exception:  # a schema that is none fails in as many ways
            return _UNJUDGED
    return _FITS


def main() -> int:
    """Judge line by line what comes in, until it ends."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    for question in sys.stdin.buffer:
        # Its signal ends the process, whatever it is at. Time of the processor: others use it too.
        signal.setitimer(signal.ITIMER_PROF, _JUDGED_WITHIN_S)
        sys.stdout.buffer.write(_judge(question))
        sys.stdout.buffer.flush()
        signal.setitimer(signal.ITIMER_PROF, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
