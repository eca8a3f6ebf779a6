"""The embedded Postgres: who it lets in, who it runs as, where it can live, and what it survives."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from command_line import eventually
from databases import PostgresServer

from pipeline.errors import PartFailed, StackError
from workers.embedded import postgres
from workers.embedded.part import LAUNCHER, run_alone
from workers.embedded.ports import free_port
from workers.embedded.postgres import EmbeddedPostgres, binaries, cluster_processes, passing_capability

AS_ROOT = os.geteuid() == 0


def _server(directory: Path, durable: bool = False) -> EmbeddedPostgres:
    identity = f"millrace-test-{secrets.token_hex(4)}"
    return EmbeddedPostgres(directory, free_port(), secrets.token_urlsafe(16), identity, durable)


@contextmanager
def _running(server: EmbeddedPostgres) -> Iterator[int]:
    """Runs a server, which is made first where it is missing; gives its pid."""
    log = server.directory.parent / "postgres.log"
    if init := server.init_part():
        with run_alone(init, log):
            pass
    with run_alone(server.part(), log) as running:
        yield running.pid


def test_nobody_gets_in_without_the_password(postgres_server: PostgresServer) -> None:
    with psycopg.connect(postgres_server.url) as connection:
        methods = connection.execute("SELECT DISTINCT auth_method FROM pg_hba_file_rules").fetchall()
        sockets = connection.execute("SHOW unix_socket_directories").fetchone()
        listening = connection.execute("SHOW listen_addresses").fetchone()
        parts = connection.info

        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(host=parts.host, port=parts.port, user=parts.user, password="wrong", dbname="postgres")

    assert (methods, sockets, listening) == ([("scram-sha-256",)], ("",), ("127.0.0.1",))


def test_it_lives_under_a_long_path_with_spaces_that_only_its_owner_may_pass(tmp_path: Path) -> None:
    # Given a path that is too long for a Unix socket, with characters that a shell would stumble over
    closed = tmp_path / "a directory with spaces, 'quotes' and ümlauts" / ("long" * 30)
    closed.mkdir(parents=True)
    closed.parent.chmod(0o700)
    server = _server(closed / "postgres")

    with _running(server) as pid, psycopg.connect(server.url) as connection:
        version = connection.execute("SELECT current_setting('server_version_num')::int / 10000").fetchone()
        encoding = connection.execute("SHOW server_encoding").fetchone()
        user = psutil.Process(pid).uids().effective

    assert (version, encoding) == ((18,), ("UTF8",))
    assert user != 0, "Postgres must not run as root"
    assert server.data.stat().st_mode & 0o777 == 0o700
    assert [found.name for found in server.directory.iterdir()] == ["data"], "a password file was left"


@pytest.mark.parametrize("mode", [0o755, 0o700], ids=["usual umask", "umask 077"])
def test_its_programs_may_lie_where_only_their_owner_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    # Given a copy of the wheel in a directory of mode 0700
    source = binaries().parent
    copy = tmp_path / "site packages" / source.parent.name / source.name
    for name in ("lib/postgresql", "share"):
        shutil.copytree(source / name, copy / name)
    (copy / "bin").mkdir()
    for name in ("initdb", "postgres"):
        shutil.copy(source / "bin" / name, copy / "bin")
        (copy / "bin" / name).chmod(mode)
    libraries = source.parent.with_name(f"{source.parent.name}.libs")
    shutil.copytree(libraries, copy.parent.with_name(libraries.name))
    (tmp_path / "site packages").chmod(0o700)
    monkeypatch.setattr(postgres, "binaries", lambda: copy / "bin")
    server = _server(tmp_path / "home" / "postgres")

    with _running(server) as pid:
        assert psutil.Process(pid).exe() == str(copy / "bin" / "postgres")
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)


def test_an_ordinary_user_runs_it_as_himself(tmp_path: Path) -> None:
    # Given a process of an ordinary user (of ours, or where we are root of the user `daemon`)
    script = """
import pathlib, os, sys, psutil, psycopg
sys.path[:0] = sys.argv[2:]
from test_embedded_postgres import _running, _server
server = _server(pathlib.Path(sys.argv[1]) / "postgres")
with _running(server) as pid, psycopg.connect(server.url) as connection:
    print(psutil.Process(pid).uids().effective == os.geteuid() != 0, connection.execute("SELECT 1").fetchone())
"""
    tests = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    argv = [sys.executable, "-c", script, str(tmp_path), *tests]
    if AS_ROOT:
        import pwd

        user = pwd.getpwnam("daemon")
        os.chown(tmp_path, user.pw_uid, user.pw_gid)
        # The capability only lets that user reach our Python, which may lie in /root.
        become = ["--uid", str(user.pw_uid), "--gid", str(user.pw_gid), "--capability", str(passing_capability())]
        launch = [sys.executable, "-I", "-S", str(LAUNCHER), "--parent", str(os.getpid()), "--death-signal", "9"]
        argv = [*launch, *become, "--", *argv]

    done = subprocess.run(argv, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=170)

    assert (done.returncode, done.stdout) == (0, "True (1,)\n"), done.stderr


def test_it_starts_after_everything_was_killed_and_its_pid_was_given_to_somebody_else(tmp_path: Path) -> None:
    # Given a server with data, killed so that some of its processes live on
    server = _server(tmp_path / "postgres", durable=True)
    with _running(server) as pid:
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
        frozen = next(process for process in cluster_processes(server.identity) if process.pid != pid)
        frozen.send_signal(signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    # and a lock file that names a living process of the same user
    with _sleeping_as_owner_of(server.data) as other:
        lock = server.data / "postmaster.pid"
        lock.write_text(f"{other}\n" + "".join(lock.read_text().splitlines(keepends=True)[1:]))

        # When it is started again
        with _running(server), psycopg.connect(server.url) as connection:
            kept = connection.execute("SELECT value FROM kept").fetchall()

        # Then the data is there, the frozen process is gone, and the other one was left alone
        assert kept == [(7,)]
        assert not frozen.is_running()
        assert psutil.pid_exists(other)
    assert cluster_processes(server.identity) == []


@contextmanager
def _sleeping_as_owner_of(path: Path) -> Iterator[int]:
    owner = path.stat()
    launch = [sys.executable, "-I", "-S", str(LAUNCHER), "--parent", str(os.getpid()), "--death-signal", "9"]
    become = ["--uid", str(owner.st_uid), "--gid", str(owner.st_gid)] if AS_ROOT else []
    with subprocess.Popen([*launch, *become, "--", "/bin/sleep", "600"]) as process:
        try:
            eventually(lambda: psutil.Process(process.pid).name() == "sleep")
            yield process.pid
        finally:
            process.kill()


def test_an_initialisation_that_was_cut_short_is_begun_anew(tmp_path: Path) -> None:
    server = _server(tmp_path / "postgres")
    unfinished = tmp_path / "postgres" / "data.new"
    (unfinished / "base").mkdir(parents=True)
    (unfinished / "PG_VERSION").write_text("18\n")

    with _running(server), psycopg.connect(server.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)

    assert not unfinished.exists()


def test_data_of_another_version_is_refused_by_name(tmp_path: Path) -> None:
    server = _server(tmp_path / "postgres")
    server.data.mkdir(parents=True)
    (server.data / "PG_VERSION").write_text("16\n")

    with pytest.raises(StackError, match=r"data was made by Postgres 16, and this is Postgres 18"):
        server.init_part()


def test_a_server_that_cannot_start_says_where_its_log_is(tmp_path: Path) -> None:
    server = _server(tmp_path / "postgres")
    server.data.mkdir(parents=True)
    (server.data / "PG_VERSION").write_text("18\n")

    expected = r"postgres ended with status \d before it was ready\. Its log is .*\.log"
    with pytest.raises(PartFailed, match=expected), _running(server):
        pass

    assert "postgresql.conf" in (tmp_path / "postgres.log").read_text()
