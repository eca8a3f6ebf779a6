"""The rows of a SQL query as a source: a document each, and rows that did not change are not even read.

For any DB-API driver (sqlite3, psycopg, ...); of a SQLAlchemy engine, `engine.raw_connection` opens the connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

from pipeline import Document
from pipeline.sources import Item, Known, Rejected, Unchanged

PAGE = 500


class SqlSource:
    """connect: opens a connection.

    listing: a query whose first column is the id of a row and whose second one changes whenever the row does (a time,
    a counter); the others become metadata. text: a query for the text of a row, by its id.
    scope: what the uris begin with; the rest of a uri is the id. Let it belong to this query alone.
    cursor: makes the cursor that lists; one on the server's side (psycopg: `lambda c: c.cursor("rows")`) streams.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        listing: str,
        text: str,
        scope: str,
        cursor: Callable[[Any], Any] = lambda connection: connection.cursor(),
    ) -> None:
        self._connect, self._listing, self._text, self._cursor = connect, listing, text, cursor
        self.scope = scope
        self.complete = False

    @property
    def unreadable(self) -> tuple[str, ...]:
        return () if self.complete else (self.scope,)

    def __iter__(self) -> Iterator[Document | Rejected]:
        for item in self.since(lambda _: {}):
            if not isinstance(item, Unchanged):
                yield item

    def since(self, known: Known) -> Iterator[Item]:
        self.complete = False
        with closing(self._connect()) as connection, closing(self._cursor(connection)) as rows:
            rows.execute(self._listing)
            while page := rows.fetchmany(PAGE):
                names = [column[0] for column in rows.description[2:]]
                metadata = {f"{self.scope}{row[0]}": dict(zip(names, row[2:], strict=True)) for row in page}
                held = known(metadata)
                for (key, version, *_), (uri, found) in zip(page, metadata.items(), strict=True):
                    validators = {"version": str(version)}
                    if held.get(uri) == validators:
                        yield Unchanged(uri, partial(self._read_again, key, uri, found, validators))
                    else:
                        yield self._read(connection, key, uri, found, validators)
        self.complete = True

    def _read(self, connection: Any, key: Any, uri: str, metadata: Any, validators: Any) -> Document | Rejected:
        with closing(connection.cursor()) as cursor:
            cursor.execute(self._text, (key,))
            row = cursor.fetchone()
        if row is None or row[0] is None:
            return Rejected(uri, f"{uri} has no text" if row else f"{uri} is gone since it was listed")
        return Document(uri, row[0], metadata=metadata, validators=validators)

    def _read_again(self, *row: Any) -> Document | Rejected:
        with closing(self._connect()) as connection:
            return self._read(connection, *row)
