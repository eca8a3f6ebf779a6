"""One fault of kombu's Redis transport, mended: what a closed connection cannot do must be a connection error.

A worker that loses Redis closes its channels. Where a message that it has not acknowledged is put back then, or is
acknowledged, the channel asks its connection for an address that is None already; the AttributeError passes by
everything that waits for connection errors, and ends the worker (kombu 5; tests/acceptance/test_outages.py saw it).
"""

from __future__ import annotations

from typing import Any

import redis
from kombu.transport import redis as transport


class Channel(transport.Channel):
    """kombu's channel, whose closed connection is away, as one that never was."""

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        if self.connection.client is None:
            raise redis.ConnectionError("the connection to Redis is closed")
        params: dict[str, Any] = super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call]
        return params


def install() -> None:
    """From now on connections of this process have such channels."""
    transport.Transport.Channel = Channel
