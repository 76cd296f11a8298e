"""A real PostgreSQL server in a folder of its own, for the tests that need one."""

import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.lab.waiting import wait_for

# Where Debian keeps the server's programs.
_DEBIAN = "/usr/lib/postgresql"


def why_not() -> str | None:
    """Why no server can be started here, None if one can."""
    if not _program("initdb"):
        return "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"
    if os.geteuid() == 0 and not _other_user():
        return "PostgreSQL does not run as root, and there is no other user to run it"
    return None


class PostgresServer:
    """A server on a Unix socket; `url` names its database, `stop` and `start` a restart."""

    def __init__(self) -> None:
        self._user = _other_user() if os.geteuid() == 0 else None
        # A socket's path may have 107 bytes, so it can't lie in a test's own folder.
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))
        if self._user:
            shutil.chown(self.folder, self._user)
        self._run("initdb", "--auth=trust", "--username=tester", "--no-sync", "-D", self._data)
        self.start()

    @property
    def url(self) -> str:
        return self.database("postgres")

    def database(self, name: str) -> str:
        return f"postgresql://tester@/{name}?host={self.folder}"

    def create(self, name: str) -> str:
        """Make a database and return its URL."""
        self.run_sql(f"CREATE DATABASE {name}")
        return self.database(name)

    def run_sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement with psql and return what it prints, unaligned."""
        command = ["-h", str(self.folder), "-U", "tester", "-d", database, "-Atc", statement]
        return self._run("psql", *command)

    def start(self) -> None:
        # Without fsync a test does not wait for a disk that others use as well.
        settings = f"-k {self.folder} -c listen_addresses= -c fsync=off -c max_connections=50"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", self._data, "-l", log, "-o", settings, "-w", "start")
        wait_for(lambda: self.run_sql("SELECT 1").strip() == "1")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._data, "-m", "immediate", "-w", "stop")

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, program: str, *arguments: str) -> str:
        # Output goes to a file: a server that inherits a pipe would keep it open for ever.
        with tempfile.TemporaryFile("w+") as out:
            done = subprocess.run(
                [str(_program(program)), *arguments],
                user=self._user,
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=120,
                check=False,
            )
            out.seek(0)
            text = out.read()
        assert done.returncode == 0, f"{program}: {text}"
        return text


def _program(name: str) -> Path | None:
    found = sorted(Path(_DEBIAN).glob(f"*/bin/{name}"))
    path = shutil.which(name) or (str(found[-1]) if found else None)
    return Path(path).resolve() if path and name != "psql" else Path(path) if path else None


def _other_user() -> str | None:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((name for name in ("postgres", "nobody") if name in known), None)
