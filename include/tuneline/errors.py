"""The two kinds of error a step may end with, and their exit codes."""

from __future__ import annotations

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
