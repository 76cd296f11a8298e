"""Move `main` forward to a commit once the whole suite has passed on exactly that commit.

land.py [BRANCH]    try a branch, by default the current one
land.py --status    which commit is being tried, since when, how far it is, and what failed
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from supervised import INTERRUPTED, supervised

# Ignored files of the worktree that are kept from one try to the next.
KEPT = (".venv-*", ".tuneline", ".mypy_cache", ".ruff_cache")
# Of the priorities, from -20 to 19, that leaves most of the machine to other work.
LOW = 10
_DONE = re.compile(r"^\[ *\d+ s\] (\d+/\d+) ", re.MULTILINE)
_FAILED = re.compile(r"^(?:FAILED|ERROR)[ :].*|^.*: process \d+: .*", re.MULTILINE)


def main(branch: str) -> int:
    """Try a branch or say how a try stands; return the exit code."""
    common = Path(_git("rev-parse", "--path-format=absolute", "--git-common-dir"))
    home = common.parent / ".tuneline"
    home.mkdir(mode=0o700, exist_ok=True)
    state = home / "land.json"
    with (home / "land.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(status(json.loads(state.read_text())))
            return branch != "--status"
        if branch != "--status":
            code = land(branch or _git("branch", "--show-current"), home, state)
            if not code:
                (common / "land-passed").write_text(_git("rev-parse", "main") + "\n")
            return code
    print(status(json.loads(state.read_text())) if state.exists() else "land: nothing was tried")
    return 0


def status(attempt: dict[str, Any]) -> str:
    """Say which commit is or was tried, since when, how far it is, and what failed."""
    text = Path(attempt["log"]).read_text(errors="replace")
    done = ["0", *_DONE.findall(text)][-1]
    minutes = (time.time() - attempt["began"]) / 60
    head = (
        f"land: {attempt['branch']} at {attempt['commit'][:12]}: {attempt['state']}; began "
        f"{minutes:.0f} min ago; {done} of the queue done; log: {attempt['log']}"
    )
    return "\n".join([head, *dict.fromkeys(_FAILED.findall(text))])


def land(branch: str, home: Path, state: Path) -> int:
    """Check a branch, run the suite on its commit and move main there if it passed."""
    before, commit = check(branch)
    log = home / f"land-{commit[:12]}.log"
    log.touch()
    attempt = {"branch": branch, "commit": commit, "began": time.time(), "log": str(log)}
    state.write_text(json.dumps({**attempt, "state": "being tried"}))
    print(f"land: {branch} at {commit[:12]}; log: {log}", flush=True)
    tree = check_out(commit, home / "land")
    code = supervised(lambda: run_suite(tree, log))
    ended = {0: "passed", INTERRUPTED: "interrupted"}.get(code, f"failed with exit code {code}")
    state.write_text(json.dumps({**attempt, "state": ended}))
    if code:
        print(f"land: main stays at {before[:12]}\n{status({**attempt, 'state': ended})}")
        return code
    move_main(before, commit)
    print(f"land: passed; main is at {commit[:12]} now")
    return 0


def check(branch: str) -> tuple[str, str]:
    """Return the commit of main and the one to try; refuse what can't become main."""
    if not branch or not _git("branch", "--list", branch):
        sys.exit(f"land: there is no branch {branch!r}; name one of `git branch`: BRANCH=name")
    tree = worktrees().get(branch, "")
    changed = _git("-C", tree, "status", "--porcelain").splitlines() if tree else []
    if changed:
        names = ", ".join(line.split()[-1] for line in changed[:3])
        sys.exit(
            f"land: {len(changed)} files in {tree} are not committed ({names}); "
            "git commit or git stash them"
        )
    before, commit = _git("rev-parse", "main"), _git("rev-parse", branch)
    base = _git("merge-base", before, commit)
    if base == commit:
        sys.exit(f"land: {branch} is not ahead of main; commit something on it first")
    if base != before:
        sys.exit(f"land: {branch} is not on top of main; run git rebase main {branch}")
    return before, commit


def check_out(commit: str, tree: Path) -> Path:
    """Put exactly the files of a commit into the worktree for tries, next to its environments."""
    if not (tree / ".git").exists():
        _git("worktree", "prune")
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
    _git("-C", str(tree), "checkout", "--quiet", "--detach", "--force", commit)
    _git("-C", str(tree), "clean", "-ffdxq", *(f"--exclude={name}" for name in KEPT))
    return tree


def run_suite(tree: Path, log: Path) -> int:
    """Run .ci/run with low priority and its output in a log; return its exit code."""
    os.nice(LOW)
    # The variables of this make are not for the one in the worktree.
    environment = {
        name: v for name, v in os.environ.items() if not name.startswith(("MAKE", "MFL"))
    }
    with log.open("w") as output, log.open() as said:
        process = subprocess.Popen(
            ["bash", ".ci/run"],
            cwd=tree,
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        # Linux weighs sessions against each other first, each by a number of its own.
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/autogroup").write_text(str(LOW))
        try:
            while process.poll() is None:
                time.sleep(1)
                print("".join(line for line in said if line[0] in "[="), end="", flush=True)
        except KeyboardInterrupt:
            os.killpg(process.pid, signal.SIGINT)
            process.wait()
            raise
    return process.returncode


def move_main(before: str, commit: str) -> None:
    """Move main forward, with the files of the worktree in which it is checked out."""
    now = _git("rev-parse", "main")
    if now != before:
        sys.exit(
            f"land: {commit[:12]} passed, but main moved meanwhile from {before[:12]} to "
            f"{now[:12]}; nothing was moved: run git rebase main, then make land again"
        )
    if tree := worktrees().get("main"):
        _git("-C", tree, "merge", "--quiet", "--ff-only", commit)
    else:
        _git("update-ref", "refs/heads/main", commit, before)


def worktrees() -> dict[str, str]:
    """Return the folder of each branch that is checked out somewhere."""
    listed = _git("worktree", "list", "--porcelain")
    return {b: tree for tree, b in re.findall(r"worktree (.+)\n.*\nbranch refs/heads/(.+)", listed)}


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"land: git {' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main("".join(sys.argv[1:2])))
