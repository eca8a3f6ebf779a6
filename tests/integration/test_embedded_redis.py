"""The embedded Redis: who it lets in, what it keeps, and that it does not outlive who started it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis
from command_line import eventually
from redis.backoff import NoBackoff
from redis.retry import Retry
from services import RedisServer

from workers.embedded.part import run_alone
from workers.embedded.ports import free_port
from workers.embedded.redis import EmbeddedRedis


def _server(directory: Path) -> EmbeddedRedis:
    return EmbeddedRedis(directory, free_port(), secrets.token_urlsafe(16))


def test_nobody_gets_in_without_the_password(redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        place = client.connection_pool.connection_kwargs
    stranger = redis.Redis(host=place["host"], port=place["port"], retry=Retry(NoBackoff(), 0))
    with stranger, pytest.raises(redis.exceptions.AuthenticationError):
        stranger.ping()


def test_a_killed_server_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    # Given a server in a directory with a space and a quote in its name
    server = _server(tmp_path / 'a "quoted" home' / "redis")
    server.directory.parent.mkdir()
    log = tmp_path / "redis.log"

    # When it is killed right after an answer
    with run_alone(server.part(), log) as running, redis.Redis.from_url(server.url) as client:
        client.set("kept", "7")
        policy = client.config_get("maxmemory-policy")["maxmemory-policy"]
        assert server.password not in " ".join(psutil.Process(running.pid).cmdline())
        os.kill(running.pid, signal.SIGKILL)
        eventually(lambda: running.poll() is not None)

    # Then the next one has it
    with run_alone(server.part(), log), redis.Redis.from_url(server.url) as client:
        assert client.get("kept") == b"7"
    assert policy == "noeviction"
    assert (server.directory / "redis.conf").stat().st_mode & 0o777 == 0o600
    assert server.password not in log.read_text()


def test_it_ends_when_the_process_that_started_it_is_killed(tmp_path: Path) -> None:
    # Given a server started by another process
    script = """
import pathlib, sys, time
from workers.embedded.part import run_alone
from workers.embedded.redis import EmbeddedRedis
directory = pathlib.Path(sys.argv[1])
with run_alone(EmbeddedRedis(directory / "redis", int(sys.argv[2]), "secret").part(), directory / "log") as running:
    print(running.pid, flush=True)
    time.sleep(600)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), str(free_port())], stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))

        # When that process is killed
        parent.kill()

    # Then the server ends by itself
    eventually(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)
