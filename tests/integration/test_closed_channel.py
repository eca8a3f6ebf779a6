"""A channel to Redis whose connection was closed under it: what it is asked for is a connection error, and no other."""

from __future__ import annotations

import pytest
import redis
from kombu import Connection
from kombu.common import ignore_errors
from kombu.transport.redis import Transport

from workers import channel


@pytest.fixture
def connection(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setattr(Transport, "Channel", Transport.Channel)
    channel.install()
    return Connection(redis_url)


def test_what_a_closed_channel_cannot_put_back_passes_for_a_connection_error(connection: Connection) -> None:
    # Given a message that was taken and not acknowledged
    queue = connection.SimpleQueue("mill")
    queue.put({"id": 1})
    message = queue.get(timeout=60)
    taken = queue.channel
    assert isinstance(taken, channel.Channel)

    # When the connection has lost its address before its channel is closed, as it does when Redis is lost
    taken.connection.client = None
    taken._disconnect_pools()
    taken.__dict__.pop("pool", None)
    taken._pool = None

    # Then what kombu does about it is what it does about a lost connection
    with pytest.raises(redis.ConnectionError, match="closed"):
        message.ack()
    ignore_errors(connection, taken.close)
