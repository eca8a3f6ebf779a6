"""How the two sides of an extraction talk over pipes: frames of a JSON header and raw bytes, never pickle."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

_LENGTHS = struct.Struct(">IQ")  # of the header, of the payload
# Metadata and pages of a document; a hundred thousand pages are under a megabyte.
MAX_HEADER_BYTES = 16 * 1024 * 1024

Header = dict[str, Any]
Frame = tuple[Header, bytes]


class BrokenFrame(Exception):
    """What came is no frame: the other side has lost its way."""


def pack(header: Header) -> bytes:
    """The header of a frame with `payload_bytes` in it; the payload itself follows. Raises BrokenFrame, ValueError."""
    # ASCII, so that a uri with lone surrogates passes too.
    written = json.dumps(header, default=str, allow_nan=False).encode("ascii")
    if len(written) > MAX_HEADER_BYTES:
        raise BrokenFrame(f"a header of {len(written)} bytes")
    return _LENGTHS.pack(len(written), header["payload_bytes"]) + written


def receive(stream: BufferedReader) -> Frame | None:
    """The next frame of a blocking stream; None at its end."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header_length, payload_length = _LENGTHS.unpack(lengths)
    header, payload = stream.read(header_length), stream.read(payload_length)
    if len(payload) < payload_length:
        return None
    return json.loads(header), payload


class Frames:
    """Frames out of bytes as they arrive. max_payload: bytes; what announces more is no frame."""

    def __init__(self, max_payload: int) -> None:
        self._max_payload = max_payload
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are whole with this data. Raises BrokenFrame."""
        self._buffer += data
        while len(self._buffer) >= _LENGTHS.size:
            header_length, payload_length = _LENGTHS.unpack_from(self._buffer)
            if header_length > MAX_HEADER_BYTES or payload_length > self._max_payload:
                raise BrokenFrame(f"a frame of {header_length} and {payload_length} bytes")
            start = _LENGTHS.size + header_length
            end = start + payload_length
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view:
                written, payload = bytes(view[_LENGTHS.size : start]), bytes(view[start:end])
            del self._buffer[:end]
            try:
                header = json.loads(written)
            except (ValueError, RecursionError) as error:
                raise BrokenFrame(str(error)) from error
            if not isinstance(header, dict):
                raise BrokenFrame(f"a header that is {type(header).__name__}")
            yield header, payload
