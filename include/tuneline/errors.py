"""The two kinds of error a step may end with, and their exit codes."""

from __future__ import annotations

import errno
import tempfile

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USER = 2
# EX_TEMPFAIL of sysexits.h: the same command may succeed later.
EXIT_RETRY = 75


class TunelineError(Exception):
    """Something went wrong that a person can read in one sentence."""

    exit_code = EXIT_FAILED


class UserError(TunelineError):
    """The input or the configuration is wrong; trying again changes nothing.

    The message says what is wrong, where (file and line, field) and what to do.
    """

    exit_code = EXIT_USER


class RetryableError(TunelineError):
    """The surroundings failed (network, disk, a busy server); trying again may help."""

    exit_code = EXIT_RETRY


def first_line(error: BaseException) -> str:
    """The first line of an error, which is what a person can use; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def disk_full(error: OSError) -> RetryableError | None:
    """An error's sentence when the disk is the reason; None when it is something else.

    The net below what names the file and the step itself.
    """
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    place = error.filename or f"a file, perhaps in the temporary folder {tempfile.gettempdir()}"
    return RetryableError(
        f"can't write {place}: {error.strerror}; free some space there (TMPDIR names another "
        "temporary folder) and run it again"
    )
