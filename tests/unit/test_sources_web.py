from __future__ import annotations

import http.server
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from web_site import LOCAL, Site, error, only, page, pem, status

from pipeline.document import Document
from pipeline.errors import InvalidRequest, SourceRefused
from pipeline.settings import SourceSettings
from pipeline.sources import Rejected, open_source
from pipeline.sources.web import WebSource, fetch, page_uri

# A key and a self-signed certificate of "pinned.example", valid from 2020 to 2120, made for this test alone.
PINNED_KEY = """\
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgRRQ1adsr05iG5XVL
bzIUp7cBqw6fdE8b8x8OZyS1AV2hRANCAAS+YhmDcZXvlL3HulS9IOOTTRCZ4d46
C3ilnSaQuuRgHvLu0pmaHw8/LKbbxmPDZarb8cA8VQ9ZJO+KR73Z1+7e
"""
PINNED_CERTIFICATE = """\
MIIBcDCCARagAwIBAgIBATAKBggqhkjOPQQDAjAZMRcwFQYDVQQDDA5waW5uZWQu
ZXhhbXBsZTAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowGTEXMBUG
A1UEAwwOcGlubmVkLmV4YW1wbGUwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAAS+
YhmDcZXvlL3HulS9IOOTTRCZ4d46C3ilnSaQuuRgHvLu0pmaHw8/LKbbxmPDZarb
8cA8VQ9ZJO+KR73Z1+7eo00wSzAZBgNVHREEEjAQgg5waW5uZWQuZXhhbXBsZTAP
BgNVHRMBAf8EBTADAQH/MB0GA1UdDgQWBBQrwFEu3wUpigEehS7Opf2VgzU4gzAK
BggqhkjOPQQDAgNIADBFAiB62xsw83rCZvMtXUIqsSWsnTgZKGElc8BhEb7ilA2u
1wIhAOS2ocnsVa32kat4zjUMBoWuiZdjTsBcDhQUL3W6Yx2g
"""


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def test_a_page_becomes_a_document_named_by_its_url_without_the_fragment(site: Site) -> None:
    site.pages["/a?b=1"] = page(b"<h1>Hello</h1>")

    found = only(f"{site.url}/a?b=1#part")

    assert found == Document(f"{site.url}/a?b=1", b"<h1>Hello</h1>", "text/html; charset=utf-8", {"source": "web"})
    assert site.asked == [("/a?b=1", site.url.removeprefix("http://"))]


@pytest.mark.parametrize(
    ("body", "declared", "seen"),
    [
        (b"plain", "text/plain", "text/plain"),
        (b"%PDF-1.7 x", "application/octet-stream", "application/pdf"),
        (b"<!DOCTYPE html><p>x", "", "text/html"),
        (b"# Head", "text/markdown; charset=UTF-8; variant=GFM", "text/markdown; charset=utf-8"),
        (b"text", "nonsense", "text/plain"),
    ],
)
def test_the_media_type_comes_from_the_header_or_else_from_the_content(
    site: Site, body: bytes, declared: str, seen: str
) -> None:
    site.pages["/x"] = page(body, declared)

    found = only(f"{site.url}/x")

    assert isinstance(found, Document)
    assert found.media_type == seen


def test_what_no_extractor_knows_is_rejected(site: Site) -> None:
    site.pages["/x.png"] = page(b"\x89PNG\r\n\x1a\n", "image/png")

    assert "no extractor knows image/png" in error(f"{site.url}/x.png")


def test_redirects_are_followed_and_the_document_keeps_the_first_url(site: Site) -> None:
    site.pages["/old"] = status(301, "/new")
    site.pages["/new"] = status(302, f"{site.url}/newer")
    site.pages["/newer"] = page(b"moved", "text/plain")

    found = only(f"{site.url}/old")

    assert isinstance(found, Document)
    assert (found.uri, found.data) == (f"{site.url}/old", b"moved")


def test_redirects_in_a_circle_end(site: Site) -> None:
    site.pages["/a"] = status(302, "/a")

    assert "more than 5 redirects" in error(f"{site.url}/a")
    assert len(site.asked) == 6


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.org/x", "http://user:secret@example.org/"])
def test_a_redirect_to_what_may_not_be_asked_for_is_refused(site: Site, target: str) -> None:
    site.pages["/a"] = status(302, target)

    said = error(f"{site.url}/a")

    assert "secret" not in said


def test_private_addresses_are_refused_by_default_and_nothing_is_asked(site: Site) -> None:
    said = error(f"{site.url}/a", SourceSettings())

    assert "127.0.0.1, which is not a public one" in said
    assert "MILLRACE_SOURCES__WEB_PRIVATE" in said
    assert site.asked == []


def test_a_redirect_to_a_private_address_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages["/"] = status(302, "http://internal.example/secret")
    port = site.server.server_port

    with resolving({"public.example": [("8.8.8.8", port)], "internal.example": [("10.0.0.1", 80)]}, monkeypatch, site):
        said = error("http://public.example/", SourceSettings(web_timeout=60))

    assert "internal.example has the address 10.0.0.1" in said


def test_the_address_that_was_checked_is_the_one_connected_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: public when it is checked, private when it is looked up again."""
    site.pages["/"] = page(b"public page", "text/plain")
    port = site.server.server_port
    answers = [[("8.8.8.8", port)], [("127.0.0.1", port)]]

    with resolving({"rebind.example": answers}, monkeypatch, site) as connected:
        found = only("http://rebind.example/", SourceSettings(web_timeout=60))

    assert isinstance(found, Document)
    assert found.data == b"public page"
    assert connected == ["8.8.8.8"]
    assert site.asked == [("/", "rebind.example")]


@contextmanager
def resolving(names: dict[str, list], monkeypatch: pytest.MonkeyPatch, site: Site) -> Iterator[list[str]]:  # type: ignore[type-arg]
    """Names resolve to what is given (a list of lists: one after the other); connecting to a public address reaches
    the site. Yields the addresses that were connected to."""
    connected: list[str] = []
    real_connect, real_resolve = socket.create_connection, socket.getaddrinfo

    def resolve(host: str, port: int, *given: object, **options: object) -> list:  # type: ignore[type-arg]
        known = names.get(host)
        if known is None:
            return real_resolve(host, port, *given, **options)  # type: ignore[arg-type]
        now = known.pop(0) if isinstance(known[0], list) else known
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in now]

    def connect(address: tuple[str, int], *given: object, **options: object) -> socket.socket:
        connected.append(address[0])
        return real_connect(("127.0.0.1", site.server.server_port), *given, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolve)
        patch.setattr(socket, "create_connection", connect)
        yield connected


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_a_refusal_is_final_and_asked_for_once(site: Site, code: int) -> None:
    site.pages["/"] = status(code)

    assert f"answered {code}" in error(f"{site.url}/")
    assert len(site.asked) == 1


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_in_trouble_is_asked_once_more(site: Site, code: int) -> None:
    answers = [status(code), page(b"better now", "text/plain")]

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        answers.pop(0)(handler)

    site.pages["/"] = answer

    found = only(f"{site.url}/")

    assert isinstance(found, Document)
    assert found.data == b"better now"


def test_a_page_that_cannot_be_had_is_protected_from_deletion(site: Site) -> None:
    site.pages["/good"] = page(b"good", "text/plain")
    site.pages["/bad"] = status(503)
    source = WebSource([f"{site.url}/bad", f"{site.url}/good"], LOCAL)

    bad, good = list(source)

    assert isinstance(bad, Rejected)
    assert isinstance(good, Document)
    assert source.complete
    assert source.unreadable == (f"{site.url}/bad",)


def test_a_host_that_is_not_there_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    assert "does not answer" in error(f"http://127.0.0.1:{port}/")
    assert "cannot be resolved" in error("http://nowhere.invalid/")


@pytest.mark.parametrize("url", ["http://user:hush@example.org/a", "https://token@example.org/"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SourceRefused) as caught:
        open_source(url, LOCAL)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://", "http:///path", "https://exa mple.org/", "http://[::1", "http://a/" + "x" * 2100]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest):
        open_source(url, LOCAL)


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        ("HTTP://EXAMPLE.org:80", "http://example.org/"),
        ("https://example.org/a b#c", "https://example.org/a%20b"),
        ("https://example.org:443/?q=ä", "https://example.org/?q=%C3%A4"),
    ],
)
def test_a_url_is_normalised_so_that_a_page_has_one_uri(url: str, uri: str) -> None:
    assert page_uri(url) == uri


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, tls = secure_site(tmp_path, [])
    site.pages["/"] = status(302, "http://pinned.example/")
    try:
        with (
            resolving({"pinned.example": [("8.8.8.8", 443)]}, monkeypatch, site),
            pytest.raises(SourceRefused, match="redirects from https to http:"),
        ):
            fetch("https://pinned.example/", SourceSettings(web_timeout=60), tls)
    finally:
        site.close()


def secure_site(directory: Path, names: list[str | None]) -> tuple[Site, ssl.SSLContext]:
    """A site that speaks TLS for pinned.example, and what trusts it. names: those that clients asked for."""
    site = Site()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = directory / "pinned.pem"
    certificate.write_text(pem("PRIVATE KEY", PINNED_KEY) + pem("CERTIFICATE", PINNED_CERTIFICATE))
    serving.load_cert_chain(certificate)
    serving.sni_callback = lambda _socket, name, _context: names.append(name)
    site.server.socket = serving.wrap_socket(site.server.socket, server_side=True)
    return site, ssl.create_default_context(cafile=str(certificate))


def test_tls_is_spoken_for_the_name_and_not_for_the_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str | None] = []
    site, tls = secure_site(tmp_path, names)
    site.pages["/"] = page(b"over tls", "text/plain")
    try:
        with resolving({"pinned.example": [("8.8.8.8", 443)]}, monkeypatch, site):
            found = fetch("https://pinned.example/", SourceSettings(web_timeout=60), tls)
    finally:
        site.close()

    assert found is not None
    assert found.data == b"over tls"
    assert names == ["pinned.example"]
    assert site.asked == [("/", "pinned.example")]
