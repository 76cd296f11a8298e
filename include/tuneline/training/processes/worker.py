"""One of several training processes: `python -m tuneline.training.processes.worker RUN_URI FOLDER`.

torchrun starts it. It is the step `train` with a file of its own for its last words, so that the
launcher can find out which process failed and why.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def last_words(folder: Path, rank: int) -> Path:
    """Return the file in which a process leaves the reason of its failure."""
    return folder / f"rank-{rank}.txt"


def main(run_uri: str, folder: Path) -> int:
    """Run the step as one of several processes and return its exit code."""
    os.environ["TERMINATION_MESSAGE_PATH"] = str(last_words(folder, int(os.environ["RANK"])))
    from tuneline.step import run_step
    from tuneline.terminal import guarded

    return guarded(lambda: run_step("train", run_uri))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
