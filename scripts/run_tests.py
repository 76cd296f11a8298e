"""Run the tests in the environments that they need, and with the whole suite lint and types.

Without a path the suite is one queue of test files, the longest first, in one lane more than there
are cores. Each file runs in a fork of a process that has imported what is slow to import: no file
waits for imports or sees what another one left. With paths, only these tests run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from supervised import supervised

ROOT = Path(__file__).resolve().parents[1]
DURATIONS = ROOT / "tests" / "durations.json"
MEASURED = ROOT / ".tuneline" / "test-durations.json"

# Folders whose tests need the Airflow environment; all others need the ML environment.
AIRFLOW_FOLDERS = ("dags", "plugins", "localpods", "stack", "cluster")
IMPORTED = {
    "ml": "torch transformers.models.auto peft pandas pyarrow.dataset great_expectations "
    "scipy.stats sklearn.linear_model matplotlib.pyplot boto3 sqlalchemy uvicorn httpx openai "
    "moto.server tuneline.training.loop.trainer tuneline.cli",
    "airflow": "airflow.sdk airflow.providers.cncf.kubernetes.operators.pod "
    "airflow.dag_processing.dagbag great_expectations httpx",
}
MARKS = {
    "all": "not long and not celery",
    "fast": "not stack and not long and not celery",
    "long": "long",
    "cluster": "cluster",
    "vllm": "vllm",
    "celery": "celery",
    "spark": "spark",
}
# Seconds from which on a file has to begin early, or a core is idle at the end.
LONG = 60
# Tests with an environment that no others have.
APART = {"vllm": "tests/vllm", "celery": "tests/stack/test_celery.py", "spark": "tests/spark"}
# Several lanes share the cores, so that none may use them all.
ONE_THREAD = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Tests in which a server has to answer in time; one of these runs at a time.
QUIET = "evaluation/latency test_hostile test_canary cold_start health_checks cost_tracking".split()
# What the whole suite may leave out, by words of the reason; any other skipped test is a failure.
MAY_BE_SKIPPED = (
    "CUDA",
    "TensorRT-LLM image",
    "root may read every file",
    "requirements/openlineage.txt",
    "bounds of host memory",
    "`make bench` installs the peers",
    "chart of Apache Airflow",
)
# Programs that tests start, and their Debian packages.
PROGRAMS = {
    "docker-compose": "docker-compose",
    "kubectl": "kubernetes-client",
    "initdb": "postgresql",
    "chromium": "chromium",
    "sqlite3": "sqlite3",
    "aws": "awscli",
    "docker-registry": "docker-registry",
    "oras": "oras",
    "faketime": "faketime",
}
# What the tests of one environment need besides.
PROGRAMS_OF = {
    "spark": {"java": "openjdk-17-jre-headless"},
    "celery": {**PROGRAMS, "redis-server": "redis-server"},
}


@dataclass
class Entry:
    """One entry of the queue: a file of tests, or a command.

    Attributes:
        name: path of the file, or what the command is called.
        environment: environment whose pytest runs the file, None for a command.
        command: the command, empty for a file.
        seconds: how long it took when it was last measured.
    """

    name: str
    environment: str | None = None
    command: tuple[str, ...] = ()
    seconds: float = 5.0
    code: int | None = None
    took: float = 0.0
    cpu: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)

    @property
    def quiet(self) -> bool:
        """True if no other quiet entry may run at the same time."""
        return any(words in self.name for words in QUIET)


class ForkingPytest:
    """The process of an environment that forks for each file of tests."""

    def __init__(self, environment: str) -> None:
        self._process = subprocess.Popen(
            [_python(environment), "scripts/forking_pytest.py", *IMPORTED[environment].split()],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._ended: dict[str, tuple[int, float]] = {}
        self._change = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def run(self, name: str, arguments: list[str], log: Path) -> tuple[int, float]:
        """Run pytest in a fork; return its exit code and the CPU seconds that it used."""
        asked = {"id": name, "arguments": arguments, "log": str(log)}
        assert self._process.stdin
        with self._change:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._change.wait_for(lambda: name in self._ended or self._process.poll() is not None)
            return self._ended.pop(name, (3, 0.0))

    def close(self) -> None:
        """Have the process end after its last run."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()

    def _listen(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            name, code, cpu = line.split()
            with self._change:
                self._ended[name] = int(code), float(cpu)
                self._change.notify_all()
        self._process.wait()
        with self._change:
            self._change.notify_all()


class Suite:
    """The queue of the whole suite and the lanes that empty it."""

    def __init__(self, entries: list[Entry], marks: str, folder: Path) -> None:
        self._waiting = sorted(entries, key=lambda entry: -entry.seconds)
        self.done: list[Entry] = []
        self._all = len(entries)
        self._marks = marks
        self._folder = folder
        self._lock = threading.Lock()
        self._quiet_runs = False
        self._began = time.monotonic()
        self._servers = {name: ForkingPytest(name) for name in IMPORTED}

    def run(self) -> None:
        """Run every entry; Ctrl-C ends the lanes after the tests have stopped what they started."""
        lanes = [threading.Thread(target=self._lane) for _ in range((os.cpu_count() or 1) + 1)]
        for lane in lanes:
            lane.start()
        try:
            for lane in lanes:
                lane.join()
        except KeyboardInterrupt:
            with self._lock:
                self._waiting.clear()
            for lane in lanes:
                lane.join()
            raise
        finally:
            for server in self._servers.values():
                server.close()

    def _lane(self) -> None:
        while entry := self._next():
            began = time.monotonic()
            log = self._folder / f"{len(self.done)}-{entry.name.replace('/', '.')}.log"
            if entry.environment:
                self._run_tests(entry, log)
            else:
                with log.open("wb") as output:
                    process = subprocess.Popen(
                        entry.command, cwd=ROOT, stdout=output, stderr=output
                    )
                    _, status, used = os.wait4(process.pid, 0)
                entry.code = process.returncode = os.waitstatus_to_exitcode(status)
                entry.cpu = used.ru_utime + used.ru_stime
            entry.took = time.monotonic() - began
            self._end(entry, log)

    def _next(self) -> Entry | None:
        """Take the longest entry, but no second quiet one."""
        while True:
            with self._lock:
                for position, entry in enumerate(self._waiting):
                    if not (entry.quiet and self._quiet_runs):
                        self._quiet_runs |= entry.quiet
                        return self._waiting.pop(position)
                if not self._waiting:
                    return None
            time.sleep(0.5)

    def _run_tests(self, entry: Entry, log: Path) -> None:
        report = log.with_suffix(".xml")
        arguments = ["-q", "-m", self._marks, f"--junitxml={report}", "-p", "no:cacheprovider"]
        assert entry.environment
        server = self._servers[entry.environment]
        entry.code, entry.cpu = server.run(entry.name, [*arguments, entry.name], log)
        if entry.code == 5:  # all of its tests have another mark
            entry.code = 0
        if report.exists():
            for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - pytest's own
                kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
                entry.counts[kinds.pop() if kinds else "passed"] += 1
                entry.skipped += [f"{s.get('message')} {s.text}" for s in case.iter("skipped")]

    def _end(self, entry: Entry, log: Path) -> None:
        refused = [r for r in entry.skipped if not any(words in r for words in MAY_BE_SKIPPED)]
        if refused and not entry.code:
            entry.code = 1
        with self._lock:
            self.done.append(entry)
            self._quiet_runs &= not entry.quiet
            now = time.monotonic() - self._began
            counts = ", ".join(f"{n} {kind}" for kind, n in sorted(entry.counts.items()))
            state = "FAILED" if entry.code else "ok"
            print(
                f"[{now:5.0f} s] {len(self.done)}/{self._all} {state} {entry.name} "
                f"{entry.took:.0f} s (cpu {entry.cpu:.0f}) {counts}",
                flush=True,
            )
            if entry.code:
                print(log.read_text(errors="replace"), flush=True)
            for reason in refused:
                print(f"skipped, which the whole suite may not: {reason}", flush=True)


def main() -> int:
    """Run what the arguments name; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=MARKS)
    parser.add_argument("paths", nargs="*", metavar="PATH")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    os.environ["OMP_WAIT_POLICY"] = ONE_THREAD["OMP_WAIT_POLICY"]
    if arguments.which in ("long", "cluster", *APART):
        arguments.paths = arguments.paths or ["tests"]
    for path in arguments.paths:
        if not Path(path.split("::")[0]).exists():
            print(f"run_tests: there is no {path}", file=sys.stderr)
            return 2
    # One folder for all that tests make, and short, since sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="tuneline-") as folder:
        # A server that runs as another user may look into its own folder here.
        os.chmod(folder, 0o711)  # noqa: S103 - it can't list it
        os.environ["TMPDIR"] = folder
        if arguments.paths:
            return run_paths(arguments.which, arguments.paths)
        code = supervised(lambda: run_suite(arguments.which, Path(folder)))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"=== {(used.ru_utime + used.ru_stime) / 60:.1f} CPU minutes")
    return code


def run_paths(which: str, paths: list[str]) -> int:
    """Run the tests of some paths, those of the ML environment first, and print as they go."""
    programs = PROGRAMS_OF.get(which, {})
    _install_programs(programs)
    # A test whose server is missing is skipped, which would count as passed.
    if missing := _missing(programs):
        return _summary(missing)
    if which in APART:
        by_environment = {which: [APART[which]] if paths == ["tests"] else paths}
    else:
        by_environment = {"ml": [], "airflow": []}
        for path in paths:
            folder = Path(os.path.relpath(path.split("::")[0])).parts[1:2]
            if not folder:
                by_environment["ml"] += [path, *(f"--ignore=tests/{f}" for f in AIRFLOW_FOLDERS)]
                folders = [f"tests/{f}" for f in AIRFLOW_FOLDERS]
                by_environment["airflow"] += [name for name in folders if Path(name).is_dir()]
            else:
                by_environment["airflow" if folder[0] in AIRFLOW_FOLDERS else "ml"].append(path)
    failed = []
    for environment, asked in by_environment.items():
        if not asked:
            continue
        _set_up("--only", environment)
        if which == "celery":
            # Its pods run in the ML environment.
            _set_up("--only", "ml")
        command = [_python(environment), "-m", "pytest", "-q", "-m", MARKS[which], *asked]
        # 5: none of these tests has the mark.
        if subprocess.run(command, check=False).returncode not in (0, 5):
            failed.append(f"tests of the {environment} environment")
    return _summary(failed)


def run_suite(which: str, folder: Path) -> int:
    """Run all tests of a mark, lint and types in lanes, and print what took longest.

    `fast` leaves out the files that DURATIONS names.
    """
    installing = threading.Thread(target=_install_programs)
    installing.start()
    _set_up()
    installing.join()
    if missing := _missing(PROGRAMS):
        return _summary(missing)
    os.environ.update(ONE_THREAD)
    kept = json.loads(DURATIONS.read_text()) if DURATIONS.exists() else {}
    known = (json.loads(MEASURED.read_text()) if MEASURED.exists() else {}) | kept
    # What is slow to make and never changed is made once for all files.
    os.environ["SHARED_TEST_MODELS"] = f"{folder}/shared"
    (folder / "shared").mkdir()
    (folder / "logs").mkdir()
    entries = _entries(known)
    if which == "fast":
        entries = [entry for entry in entries if entry.name not in kept]
    suite = Suite(entries, MARKS[which], folder / "logs")
    suite.run()
    done = sorted(suite.done, key=lambda entry: -entry.took)
    if which == "all":
        # To become DURATIONS, which needs those alone that are not over in a moment.
        measured = {entry.name: round(entry.took) for entry in done if entry.took > 10}
        MEASURED.write_text(json.dumps(dict(sorted(measured.items())), indent=1) + "\n")
    print("=== the slowest")
    for entry in done[:20]:
        print(f"{entry.took:6.0f} s (cpu {entry.cpu:5.0f}) {entry.name}")
    for entry in done:
        if entry.took > LONG and entry.name not in known:
            print(f"=== {entry.name} takes long and began late: tests/durations.json lacks it")
    counts = sum((entry.counts for entry in done), Counter())
    print(f"=== {', '.join(f'{n} {kind}' for kind, n in counts.items())}")
    return _summary([entry.name for entry in done if entry.code])


def _entries(known: dict[str, float]) -> list[Entry]:
    entries = [Entry("lint", command=("scripts/lint.sh",))]
    for part in ("ml", "airflow"):
        entries.append(Entry(f"types-{part}", command=("scripts/types.sh", part)))
    for path in sorted(Path("tests").rglob("test_*.py")):
        if path.parts[1] not in ("vllm", "spark", "cluster"):
            environment = "airflow" if path.parts[1] in AIRFLOW_FOLDERS else "ml"
            entries.append(Entry(str(path), environment))
    for entry in entries:
        entry.seconds = known.get(entry.name, entry.seconds)
    return entries


def _set_up(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "scripts/setup.py", *arguments], check=False)
    if done.returncode:
        sys.exit(done.returncode)


def _install_programs(programs: Mapping[str, str] = PROGRAMS) -> None:
    """Install the Debian packages of missing programs where that is possible."""
    missing = [package for program, package in programs.items() if not _found(program)]
    if not missing or os.geteuid() or not shutil.which("apt-get"):
        return
    print(f"=== installing {' '.join(missing)}", flush=True)
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    for command in (["apt-get", "update", "-q"], install):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-2000:], flush=True)


def _missing(programs: Mapping[str, str]) -> list[str]:
    """Return what fails for want of programs: one line, or none."""
    packages = [package for program, package in programs.items() if not _found(program)]
    needed = f"tests that need {', '.join(packages)}: not installed (apt-get install)"
    return [needed] if packages else []


def _found(program: str) -> bool:
    return bool(shutil.which(program) or list(Path("/usr/lib/postgresql").glob(f"*/bin/{program}")))


def _python(environment: str) -> str:
    return str(ROOT / f".venv-{environment}" / "bin" / "python")


def _summary(failed: list[str]) -> int:
    print("=== summary")
    for name in failed:
        print(f"FAILED: {name}")
    if not failed:
        print("all passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
