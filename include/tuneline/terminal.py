"""What a command says to terminal, log and Kubernetes: progress, an error, its exit code."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from tuneline.errors import EXIT_FAILED, EXIT_OK, TunelineError, disk_full
from tuneline.machine.redaction import redact

T = TypeVar("T")

# Often enough to show life in a task log, rarely enough not to fill it.
LOG_SECONDS = 10.0


def to_stderr(line: str) -> None:
    """Print a line to stderr at once."""
    print(line, file=sys.stderr, flush=True)


def track(
    items: Iterable[T], total: int | None, what: str, log: Callable[[str], None] = to_stderr
) -> Iterator[T]:
    """Yield the items and show the progress, by `log` where there is no terminal."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(items, description=what, total=total, console=Console(stderr=True))
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            passed = last - start
            left = f" of {total}, {passed / done * (total - done):.0f} s left" if total else ""
            log(f"{what}: {done}{left} ({passed:.0f} s)")


_INTERRUPTED = 130


def guarded(work: Callable[[], int]) -> int:
    """Run a command and turn its errors into one sentence on stderr and their exit code."""
    try:
        return work()
    except TunelineError as error:
        return _report(error)
    except BrokenPipeError:
        # `tuneline … | head` closed the pipe, which is not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:
        full = disk_full(error)
        if full is None:
            raise
        return _report(full)
    except KeyboardInterrupt:
        print("tuneline: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _report(error: TunelineError) -> int:
    """Report an error on stderr and in the container's termination message."""
    said = redact(str(error))
    print(f"tuneline: {said}", file=sys.stderr)
    kind = {2: "user_error", 75: "retryable"}.get(error.exit_code, "error")
    leave_termination_message(f"{kind}: {said}")
    return error.exit_code or EXIT_FAILED


def leave_termination_message(text: str) -> None:
    """Write the container's termination message, if it has a file for it."""
    target = Path(os.environ.get("TERMINATION_MESSAGE_PATH", "/dev/termination-log"))
    # Kubernetes keeps 4096 bytes of it.
    if target.exists() or "TERMINATION_MESSAGE_PATH" in os.environ:
        target.write_text(text[:4000])
