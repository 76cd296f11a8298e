"""Move `main` forward to a commit once the whole suite has passed on exactly that commit.

land.py [BRANCH]    try a branch, by default the current one
land.py --status    which commit is being tried, since when, how far it is, and what failed
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from supervised import INTERRUPTED, supervised

REFUSED = 2
# Ignored files of the worktree that are kept from one try to the next.
KEPT = (".venv-*", ".tuneline", ".mypy_cache", ".ruff_cache")
_DONE = re.compile(r"^\[ *\d+ s\] (\d+/\d+) ", re.MULTILINE)
_FAILED = re.compile(r"^(?:FAILED|ERROR)[ :].*|^.*: process \d+: .*", re.MULTILINE)


class Refused(Exception):
    """Raised when a branch can't be tried or main can't be moved; says what to do."""


def main() -> int:
    """Try a branch or say how a try stands; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("branch", nargs="?", default="")
    parser.add_argument("--status", action="store_true")
    arguments = parser.parse_args()
    common = Path(_git("rev-parse", "--path-format=absolute", "--git-common-dir"))
    home = common.parent / ".tuneline"
    home.mkdir(mode=0o700, exist_ok=True)
    with (home / "land.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        try:
            if arguments.status or not free:
                print(status(home, free))
                return 0 if arguments.status else REFUSED
            return land(arguments.branch, common, home)
        except Refused as refusal:
            print(f"land: {refusal}", file=sys.stderr)
            return REFUSED


def land(branch: str, common: Path, home: Path) -> int:
    """Check a branch, run the suite on its commit and move main there if it passed."""
    branch = branch or _git("branch", "--show-current")
    before, commit = check(branch)
    log = home / f"land-{commit[:12]}.log"
    print(f"land: {branch} at {commit[:12]}; log: {log}", flush=True)
    attempt = {"branch": branch, "commit": commit, "began": time.time(), "log": str(log)}
    (home / "land.json").write_text(json.dumps(attempt))
    tree = check_out(commit, home / "land")
    code = supervised(lambda: run_suite(tree, log))
    ended = {0: "passed", INTERRUPTED: "interrupted"}.get(code, f"failed with exit code {code}")
    (home / "land.json").write_text(json.dumps({**attempt, "ended": ended}))
    if code:
        failed = [] if code == INTERRUPTED else failures(log)
        print("\n".join([f"land: {ended}; main stays at {before[:12]}", *failed]), file=sys.stderr)
        return code
    move_main(before, commit)
    (common / "land-passed").write_text(commit + "\n")
    print(f"land: passed; main is at {commit[:12]} now")
    return 0


def check(branch: str) -> tuple[str, str]:
    """Return the commit of main and the one to try; refuse what can't become main."""
    if not branch:
        raise Refused("no branch is checked out here; name one: make land BRANCH=name")
    if not _git("branch", "--list", branch):
        raise Refused(f"there is no branch {branch}; `git branch` lists them")
    if tree := worktrees().get(branch):
        changed = _git("-C", tree, "status", "--porcelain").splitlines()
        if changed:
            names = ", ".join(line.strip().split()[-1] for line in changed[:3])
            raise Refused(
                f"{len(changed)} files in {tree} are not committed ({names}); "
                "git commit or git stash them"
            )
    before, commit = _git("rev-parse", "main"), _git("rev-parse", branch)
    if _git("rev-list", "--count", f"main..{branch}") == "0":
        raise Refused(f"{branch} is not ahead of main; commit something on it first")
    if _git("merge-base", before, commit) != before:
        raise Refused(f"{branch} does not stand on main; run git rebase main {branch}")
    return before, commit


def check_out(commit: str, tree: Path) -> Path:
    """Put exactly the files of a commit into the worktree for tries, next to its environments."""
    if not (tree / ".git").exists():
        shutil.rmtree(tree, ignore_errors=True)
        _git("worktree", "prune")
        _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
    _git("-C", str(tree), "checkout", "--quiet", "--detach", "--force", commit)
    _git("-C", str(tree), "clean", "-ffdxq", *(f"--exclude={name}" for name in KEPT))
    return tree


def run_suite(tree: Path, log: Path) -> int:
    """Run .ci/run with low priority and its output in a log; return its exit code."""
    os.nice(10)
    # Linux weighs sessions against each other first, each with a value of its own.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("10")
    # The variables of this make are not for the one in the worktree.
    environment = {key: v for key, v in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    with log.open("w") as output, log.open() as said:
        process = subprocess.Popen(
            ["bash", ".ci/run"],
            cwd=tree,
            env=environment,
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )
        try:
            while process.poll() is None:
                time.sleep(1)
                print("".join(line for line in said if line[0] in "[="), end="", flush=True)
        except KeyboardInterrupt:
            # It was interrupted as well, and stops what it started.
            process.wait()
            raise
    return process.returncode


def move_main(before: str, commit: str) -> None:
    """Move main forward, with the files of the worktree in which it is checked out."""
    now = _git("rev-parse", "main")
    if now != before:
        raise Refused(
            f"{commit[:12]} passed, but main moved meanwhile from {before[:12]} to {now[:12]}; "
            "nothing was moved: git rebase main, then make land"
        )
    if tree := worktrees().get("main"):
        _git("-C", tree, "merge", "--quiet", "--ff-only", commit)
    else:
        _git("update-ref", "refs/heads/main", commit, before)


def status(home: Path, free: bool) -> str:
    """Say which commit is or was tried, since when, how far it is, and what failed."""
    try:
        attempt = json.loads((home / "land.json").read_text())
    except OSError:
        return "land: nothing was tried yet"
    log = Path(attempt["log"])
    text = log.read_text(errors="replace") if log.exists() else ""
    done = ["0", *_DONE.findall(text)][-1]
    state = attempt.get("ended", "ended by force") if free else "being tried"
    minutes = (time.time() - attempt["began"]) / 60
    said = f"land: {attempt['branch']} at {attempt['commit'][:12]} {state}; began {minutes:.0f} min ago"
    return "\n".join([f"{said}; {done} of the queue done; log: {log}", *failures(log)])


def failures(log: Path) -> list[str]:
    """Return the lines of a log that name failed tests and processes left behind, once each."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return list(dict.fromkeys(_FAILED.findall(text)))


def worktrees() -> dict[str, str]:
    """Return the folder of each branch that is checked out somewhere."""
    listed = _git("worktree", "list", "--porcelain")
    return {b: tree for tree, b in re.findall(r"worktree (.+)\n.*\nbranch refs/heads/(.+)", listed)}


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"git {' '.join(words)}: {done.stderr.strip() or done.returncode}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
