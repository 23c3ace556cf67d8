"""A real PostgreSQL server in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from tests.ports import free_port

# Debian keeps the server's programs out of PATH.
_FOLDERS = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


def program(name: str) -> str | None:
    """Where one of the server's programs is; None when it is not installed."""
    return shutil.which(name, path=os.pathsep.join([*map(str, _FOLDERS), os.environ.get("PATH", "")]))


def missing() -> str:
    """Why no server can be started here; empty when one can."""
    if program("initdb") is None or program("postgres") is None:
        return "PostgreSQL's server is not installed: apt-get install postgresql"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed: pip install 'dicomnode[postgres]'"
    return ""


def _account() -> dict[str, object]:
    """The server refuses to run as root: another account then."""
    if os.geteuid() != 0:
        return {}
    names = [entry.pw_name for entry in pwd.getpwall()]
    entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


class PostgresServer:
    """Runs from `start` to `stop`; keeps its data in between."""

    def __init__(self) -> None:
        # Not below pytest's folder, which only its own account may enter.
        self.folder = Path(tempfile.mkdtemp(prefix="dicomnode-postgres-"))
        self._as = _account()
        if self._as:
            os.chown(self.folder, int(str(self._as["user"])), int(str(self._as["group"])))
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)
        self._run(
            "initdb", "-D", str(self.folder / "data"), "-A", "trust", "-U", "node", "-E", "UTF8", "--no-sync"
        )

    def start(self) -> None:
        postgres = program("postgres")
        assert postgres is not None
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    postgres, "-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1",
                    "-k", str(self.folder), "-c", "fsync=off", "-c", "max_connections=200",
                ],
                stdout=log, stderr=log, cwd="/", **self._as,  # type: ignore[call-overload]
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """At once, with every connection (SIGQUIT: as after a crash)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self) -> str:
        """An empty database. returns: its URL."""
        name = f"ledger{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return f"postgresql://node@127.0.0.1:{self.port}/{name}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        import psycopg

        with psycopg.connect(
            host="127.0.0.1", port=self.port, user="node", dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []

    def _answers(self) -> bool:
        import psycopg

        try:
            return self.execute("SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    def _run(self, name: str, *arguments: str) -> None:
        path = program(name)
        assert path is not None
        done = subprocess.run(
            [path, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **self._as,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, done.stderr


def running() -> Iterator[PostgresServer]:
    """For a fixture."""
    server = PostgresServer()
    server.start()
    try:
        yield server
    finally:
        server.remove()
