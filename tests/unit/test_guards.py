from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import eventually

from pipeline.errors import DocumentTooLarge, SourceRefused, SourceUnavailable
from pipeline.sources import guards


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "8.8.8.8", "1.1.1.1", "2606:2800:220:1:248:1893:25c8:1946", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert guards.is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.9.10",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",  # where clouds keep the credentials of their machines
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12:3456::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:192.168.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",  # 127.0.0.1 by way of a NAT64 gateway
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",  # by way of 6to4
        "2002:c0a8:101::1",
        "not an address",
        "",
    ],
)
def test_private_local_multicast_and_reserved_addresses_are_not_public(address: str) -> None:
    assert not guards.is_public(address)


Resolver = Callable[..., list[Any]]


def resolving_to(*addresses: str) -> Resolver:
    def resolve(host: str, port: int, **_: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return resolve


def test_a_host_is_resolved_to_its_addresses_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("8.8.8.8", "1.1.1.1", "8.8.8.8"))

    assert guards.resolve_public("example.org", 443, allow_private=False) == ["8.8.8.8", "1.1.1.1"]


def test_a_host_with_one_private_address_among_public_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving_to("8.8.8.8", "10.0.0.7"))

    with pytest.raises(SourceRefused, match=r"trick\.example has the address 10\.0\.0\.7.*WEB_PRIVATE"):
        guards.resolve_public("trick.example", 443, allow_private=False)
    assert guards.resolve_public("trick.example", 443, allow_private=True) == ["8.8.8.8", "10.0.0.7"]


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost", "[::1]"])
def test_other_ways_to_write_a_local_address_are_seen_through(host: str) -> None:
    with pytest.raises((SourceRefused, SourceUnavailable)):
        guards.resolve_public(host, 80, allow_private=False)


@pytest.mark.parametrize("host", ["name.invalid", "a" * 300, "\udcff.example"])
def test_a_host_that_does_not_resolve_may_do_so_later(host: str) -> None:
    with pytest.raises(SourceUnavailable, match="cannot be resolved"):
        guards.resolve_public(host, 80, allow_private=False)


def test_a_link_put_in_place_of_a_checked_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "checked").symlink_to("secret")

    with pytest.raises(SourceRefused, match="symbolic link"):
        guards.open_regular(f"{os.path.realpath(tmp_path)}/checked")


def test_a_link_put_in_place_of_a_directory_on_the_way_is_not_followed(tmp_path: Path) -> None:
    root = os.path.realpath(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("secret")
    (tmp_path / "way").symlink_to("real")

    with pytest.raises((SourceRefused, NotADirectoryError)):
        guards.open_regular(f"{root}/way/file")
    with pytest.raises((SourceRefused, NotADirectoryError)):
        guards.open_directory(f"{root}/way")


def test_a_file_exchanged_for_a_pipe_between_look_and_open_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("text")
    status = os.stat(tmp_path / "file")
    (tmp_path / "file").unlink()
    os.mkfifo(tmp_path / "file")
    directory = os.open(tmp_path, os.O_RDONLY)
    real_stat = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **given: status if path == "file" else real_stat(path, **given))

    try:
        with pytest.raises(SourceRefused, match="named pipe"):
            guards.open_regular_at(directory, "file", "file")
    finally:
        os.close(directory)


def test_a_file_that_grows_past_the_limit_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"x" * 90)
    descriptor = guards.open_regular(os.path.realpath(path))
    real_read = os.read

    def read_and_grow(file: int, count: int) -> bytes:
        with open(path, "ab") as log:
            log.write(b"y" * 50)
        return real_read(file, count)

    monkeypatch.setattr(os, "read", read_and_grow)
    try:
        with pytest.raises(DocumentTooLarge, match="the limit is 100"):
            guards.read_regular(descriptor, 100, str(path))
    finally:
        os.close(descriptor)


def test_no_descriptor_is_left_open_whatever_is_refused(tmp_path: Path) -> None:
    root = os.path.realpath(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    before = len(os.listdir("/proc/self/fd"))

    for name in ("pipe", "link", "missing", "pipe/below"):
        with pytest.raises((OSError, SourceRefused)):
            guards.open_regular(f"{root}/{name}")

    eventually(lambda: len(os.listdir("/proc/self/fd")) <= before)  # another thread may have one open for a moment
