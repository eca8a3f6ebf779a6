"""Parquet files as tables, read by Arrow a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from pipeline.errors import ExtractionFailed
from pipeline.sources.rows import Row, Rows
from pipeline.sources.tables.table import Table, sampled

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_BYTES = 8 * 1024 * 1024
_MAX_BATCH_ROWS = 1024
_SAMPLE_ROWS = 20


def read_parquet(file: IO[bytes], name: str, rows: Rows, max_bytes: int) -> Table:
    """The rows of a Parquet file, a batch at a time. Row 1 is the first. Raises ExtractionFailed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)
        columns = list(opened.schema_arrow.names)
        wanted = None
        if rows.text_columns and rows.metadata_columns is not None:
            heads = {column.partition(".")[0] for column in rows.named} | set(rows.named)
            wanted = [column for column in columns if column in heads]
        groups = [opened.metadata.row_group(number) for number in range(opened.metadata.num_row_groups)]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ExtractionFailed(f"{name} cannot be read as Parquet: {error}") from None
    size = max((group.total_byte_size / max(group.num_rows, 1) for group in groups), default=1.0)
    batch_rows = max(1, min(_MAX_BATCH_ROWS, int(_BATCH_BYTES / max(size, 1.0))))

    def read() -> Iterator[Row]:
        number = 0
        try:
            for batch in opened.iter_batches(batch_size=batch_rows, columns=wanted, use_threads=False):
                values = {column: _values(batch.column(column)) for column in batch.schema.names}
                for position in range(batch.num_rows):
                    number += 1
                    yield Row(number, {column: found[position] for column, found in values.items()})
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ExtractionFailed(f"{name} cannot be read beyond row {number}: {error}") from None

    return Table(columns, sampled(columns, read(), _SAMPLE_ROWS).sample, read())


def _values(column: pa.Array) -> Any:
    """The values of a column; as text where Python has no such value (nanoseconds, years after 9999)."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    try:
        return column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        return column.cast(pa.string()).to_pylist()
