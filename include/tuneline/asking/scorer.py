"""A team's own metric: a command that scores answers (`evaluation.scorer`)."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Sequence

from tuneline.errors import UserError
from tuneline.machine.child_environment import bare_environment
from tuneline.serving.client import Messages

# Several times what a judging model takes for a thousand answers; a command that hangs ends.
SECONDS = 3600


def scores_by(
    command: Sequence[str], rows: Sequence[tuple[Messages, str, str]]
) -> tuple[float, ...]:
    """Return the scores of rows of question, expected answer and given answer.

    The command gets a JSON object a line, `{"messages": [...], "expected": "...", "answer":
    "..."}`, and writes a number from 0 to 1 a line. It runs in the step's image, as its user; its
    environment holds no secret. What it writes on standard error is in the log.

    Raises:
        UserError: if the command can't be started, fails, takes over an hour, or writes other than
            one such number for each row.
    """
    if not rows:
        return ()
    fields = ("messages", "expected", "answer")
    lines = "".join(json.dumps(dict(zip(fields, row, strict=True))) + "\n" for row in rows)
    environment = {**bare_environment(), "PATH": os.environ.get("PATH", os.defpath)}
    try:
        done = subprocess.run(
            command,
            input=lines.encode(),
            stdout=subprocess.PIPE,
            env=environment,
            timeout=SECONDS,
            check=True,
        )
    except OSError as error:
        raise UserError(
            f"evaluation.scorer: {command[0]!r} can't be started ({error.strerror}); name a "
            "program of the image that judges (pods.image, pods.sizes.engine.image)"
        ) from None
    except subprocess.CalledProcessError as error:
        raise _refused(f"ended with exit code {error.returncode}; see the log") from None
    except subprocess.TimeoutExpired:
        raise _refused(f"took longer than {SECONDS} s for {len(rows)} rows") from None
    written = done.stdout.decode(errors="replace").splitlines()
    if len(written) != len(rows):
        raise _refused(f"wrote {len(written)} lines for {len(rows)} rows; write one for each")
    try:
        scores = tuple(map(float, written))
    except ValueError:
        scores = (math.nan,)
    if not all(0 <= score <= 1 for score in scores):
        raise _refused("must write a number from 0 to 1 in each line")
    return scores


def _refused(why: str) -> UserError:
    return UserError(f"the command of evaluation.scorer {why}")
