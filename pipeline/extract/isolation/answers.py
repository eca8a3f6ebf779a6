"""What the answers of a child mean, and what is said of a document that went over a limit."""

from __future__ import annotations

from pipeline import errors
from pipeline.errors import ExtractionFailed, ExtractionOverLimit, InvalidDocument
from pipeline.extract import Extracted
from pipeline.extract.isolation.wire import Header
from pipeline.settings import ExtractionSettings


def too_much_memory(uri: str, limits: ExtractionSettings) -> InvalidDocument:
    return ExtractionOverLimit(
        f"{uri} took more than {limits.memory_mb} MB of memory to read; split it, or raise "
        "MILLRACE_EXTRACTION__MEMORY_MB"
    )


def too_much_time(uri: str, limits: ExtractionSettings) -> InvalidDocument:
    return ExtractionOverLimit(
        f"{uri} was given up after {limits.cpu_seconds:g} s of CPU time; split it, or raise "
        "MILLRACE_EXTRACTION__CPU_SECONDS"
    )


def too_much_text(uri: str, limits: ExtractionSettings) -> InvalidDocument:
    return ExtractionOverLimit(
        f"{uri} has more than {limits.max_text_bytes} bytes of text; split it, or raise "
        "MILLRACE_EXTRACTION__MAX_TEXT_BYTES"
    )


def invalid(name: str, message: str) -> InvalidDocument:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, InvalidDocument):
        return kind(message)
    return ExtractionFailed(message)


def extracted(header: Header, payload: bytes) -> Extracted:
    """Raises KeyError, TypeError and ValueError for what is no answer of `extract`."""
    text = payload.decode("utf-8")
    markup, pages = header["markup"], tuple(header["pages"])
    if markup not in {"markdown", "plain"} or not isinstance(header["title"], str):
        raise TypeError("markup and title")
    if not isinstance(header["metadata"], dict) or not all(isinstance(page, int) for page in pages):
        raise TypeError("metadata and pages")
    if not text or "\0" in text or any(not 0 <= page <= len(text) for page in pages):
        raise ValueError("text and pages")
    return Extracted(text, markup, header["title"], header["metadata"], pages)
