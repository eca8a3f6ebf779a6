"""What a web server sends, and what it says of it: compressed, endless, slow, and of another length than announced."""

from __future__ import annotations

import gzip
import http.server
import threading
import time
from collections.abc import Iterator

import pytest
from web_site import Site, drip, error, only, page

from pipeline.document import Document
from pipeline.settings import SourceSettings


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"", b"H"),
    ],
    ids=["body", "length", "header", "chunks", "status"],
)
def test_an_answer_that_drips_for_ever_ends_at_the_timeout(site: Site, head: bytes, drop: bytes) -> None:
    stop = threading.Event()
    site.pages["/"] = drip(head, drop, stop)
    began = time.monotonic()

    try:
        said = error(f"{site.url}/", SourceSettings(web_private=True, web_timeout=0.5))
    finally:
        stop.set()

    assert time.monotonic() - began < 60
    assert "try again later" in said or "does not answer" in said


def test_a_body_over_the_limit_is_cut_off_whatever_length_was_announced(site: Site) -> None:
    settings = SourceSettings(web_private=True, web_timeout=60, max_bytes=1000)
    stop = threading.Event()
    site.pages["/announced"] = page(b"x" * 1001, "text/plain")
    site.pages["/endless"] = drip(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n", b"x" * 500, stop)

    try:
        assert "the limit is 1,000" in error(f"{site.url}/announced", settings)
        assert "the limit is 1,000" in error(f"{site.url}/endless", settings)
    finally:
        stop.set()


def test_a_compressed_page_is_unpacked(site: Site) -> None:
    site.pages["/"] = page(gzip.compress(b"packed"), "text/plain", Content_Encoding="gzip")

    found = only(f"{site.url}/")

    assert isinstance(found, Document)
    assert found.data == b"packed"


def test_a_decompression_bomb_is_cut_off_at_the_limit(site: Site) -> None:
    bomb = gzip.compress(bytes(50_000_000))
    site.pages["/"] = page(bomb, "text/plain", Content_Encoding="gzip")
    settings = SourceSettings(web_private=True, max_bytes=2_000_000)

    assert "the limit is 2,000,000" in error(f"{site.url}/", settings)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_an_encoding_that_was_not_asked_for_is_rejected(site: Site, encoding: str) -> None:
    site.pages["/"] = page(b"x", "text/plain", Content_Encoding=encoding)

    assert "was not asked for" in error(f"{site.url}/")


def test_a_body_compressed_in_several_members_is_unpacked_whole(site: Site) -> None:
    site.pages["/"] = page(gzip.compress(b"first, ") + gzip.compress(b"second"), "text/plain", Content_Encoding="gzip")

    found = only(f"{site.url}/")

    assert isinstance(found, Document)
    assert found.data == b"first, second"


def test_many_small_members_are_a_bomb_too(site: Site) -> None:
    bomb = gzip.compress(bytes(1_000_000)) * 50
    site.pages["/"] = page(bomb, "text/plain", Content_Encoding="gzip")

    assert "the limit is 2,000,000" in error(f"{site.url}/", SourceSettings(web_private=True, max_bytes=2_000_000))


def test_a_broken_or_cut_off_compressed_body_is_rejected(site: Site) -> None:
    site.pages["/broken"] = page(b"not gzip at all", "text/plain", Content_Encoding="gzip")
    site.pages["/cut"] = page(gzip.compress(b"x" * 5000)[:-12], "text/plain", Content_Encoding="gzip")

    assert "cannot be decompressed" in error(f"{site.url}/broken")
    assert "broke off" in error(f"{site.url}/cut")


def test_a_body_shorter_than_announced_is_not_taken_for_the_page(site: Site) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"short")
        handler.close_connection = True

    site.pages["/"] = answer

    assert "does not answer" in error(f"{site.url}/")


def test_a_body_longer_than_announced_is_not_cut_off_in_silence(site: Site) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nshort and more")
        handler.close_connection = True

    site.pages["/"] = answer

    assert "announces 5 bytes and sends more" in error(f"{site.url}/")


def test_an_early_hint_is_no_part_of_the_page(site: Site) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
        page(b"the page", "text/plain")(handler)

    site.pages["/"] = answer

    found = only(f"{site.url}/")

    assert isinstance(found, Document)
    assert found.data == b"the page"


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n", b""],
    ids=["one", "many", "informational", "status"],
)
def test_headers_without_end_are_given_up_long_before_they_fill_the_memory(site: Site, head: bytes) -> None:
    """As fast as they come: the time alone would let gigabytes through."""
    more = {b"HTTP/1.1 200 OK\r\n": b"X: y\r\n" * 10_000, b"": b"H" * 50_000}.get(head, b"y" * 50_000)
    more = head * 2_000 if b"103" in head else more
    sent = 0

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.close_connection = True
        handler.wfile.write(head)
        while sent < 1_000_000_000:
            handler.wfile.write(more)
            sent += len(more)

    site.pages["/"] = answer

    said = error(f"{site.url}/", SourceSettings(web_private=True, web_timeout=3))

    assert "does not answer" in said or "try again later" in said
    assert sent < 1_000_000_000
