"""The kinds of error that a step may end with, and their exit codes."""

from __future__ import annotations

import errno
import tempfile

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER = 2
# EX_TEMPFAIL of sysexits.h: the same command may succeed later.
EXIT_RETRY = 75


class TunelineError(Exception):
    """An error with a message of one sentence for a person."""

    exit_code = EXIT_FAILED


class UserError(TunelineError):
    """An error in the input or the configuration; trying again changes nothing.

    The message says what is wrong, where (file and line, field) and what to do.
    """

    exit_code = EXIT_USER


class StepNotRun(UserError):
    """A step that this one needs has not been run."""


class RetryableError(TunelineError):
    """A failure of the surroundings (network, disk, a busy server); trying again may help."""

    exit_code = EXIT_RETRY


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def disk_full(error: OSError) -> RetryableError | None:
    """Return the error to raise if a disk is full or read-only, None for any other error.

    It catches what no step reported with its own message.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    place = error.filename or f"a file, perhaps in the temporary folder {tempfile.gettempdir()}"
    return RetryableError(
        f"can't write {place}: {error.strerror}; free some space there (TMPDIR names another "
        "temporary folder) and run it again"
    )
