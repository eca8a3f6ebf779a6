"""Plain SQL and a plain Qdrant client: what the judge and the clocks of a drill look with, and none of Millrace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg.rows import dict_row

CONNECT_SECONDS = 2


class Away(Exception):
    """Postgres does not answer."""


class Sql:
    """One connection, made anew when it broke. For one thread."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[dict[str, Any]] | None = None

    def rows(self, query: str, given: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Raises Away. A server that is held still lets it wait until it goes on."""
        try:
            if self._connection is None:
                self._connection = psycopg.connect(
                    self._url, autocommit=True, row_factory=dict_row, connect_timeout=CONNECT_SECONDS
                )
            return self._connection.execute(query, given).fetchall()
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            self.close()
            raise Away(str(error)) from error

    def one(self, query: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The only row. Raises Away."""
        (row,) = self.rows(query, given)
        return row

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def qdrant_client(url: str) -> Any:
    """qdrant-client's own client for `grpc://:KEY@host:port`."""
    from workers.light_import import bring_back_clients

    bring_back_clients()
    from qdrant_client import QdrantClient

    parts = urlsplit(url)
    # The key as a header: qdrant-client would warn of a key on a connection without TLS, which goes to loopback.
    return QdrantClient(
        host=parts.hostname,
        grpc_port=parts.port or 6334,
        prefer_grpc=True,
        https=False,
        headers={"api-key": unquote(parts.password or "")},
        check_compatibility=False,
    )
