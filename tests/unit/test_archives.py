"""Archives as sources: their members are documents, and what is made to do harm does none."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest

from pipeline.document import Document
from pipeline.settings import SourceSettings
from pipeline.sources import Bundle, Rejected, Rows, open_source
from pipeline.sources.archives.archive import archive_kind
from pipeline.sources.archives.unpacking import FREE_BYTES

SETTINGS = SourceSettings()
FILES = {"a.txt": b"first", "docs/b.md": b"# Second"}
Found = tuple[dict[str, bytes], dict[str, str]]


def zipped(files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(files: Mapping[str, bytes], mode: str = "w", extra: Iterable[tarfile.TarInfo] = ()) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]
        for member in extra:
            archive.addfile(member)
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def read(data: bytes, name: str, settings: SourceSettings = SETTINGS, rows: Rows | None = None) -> Found:
    """Contents and errors by what follows the archive's name in the uri."""
    return sort_out(Bundle(io.BytesIO(data), "x:" + name, name, settings, rows=rows))


def sort_out(items: Iterable[object]) -> Found:
    documents: dict[str, bytes] = {}
    rejected: dict[str, str] = {}
    for item in items:
        if isinstance(item, Document):
            documents[item.uri.partition("!/")[2]] = item.data
        elif isinstance(item, Rejected):
            rejected[item.uri.partition("!/")[2]] = item.error
    return documents, rejected


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.zip", zipped(FILES)),
        ("x.zip", zipped(FILES, zipfile.ZIP_STORED)),
        ("x.zip", zipped(FILES, zipfile.ZIP_BZIP2)),
        ("x.zip", b"#!/bin/sh\n" + zipped(FILES)),
        ("x.tar", tarred(FILES)),
        ("x.tar.gz", tarred(FILES, "w:gz")),
        ("x.TGZ", tarred(FILES, "w:gz")),
        ("x.tar.bz2", tarred(FILES, "w:bz2")),
        ("x.tar.xz", tarred(FILES, "w:xz")),
    ],
)
def test_the_members_of_an_archive_are_documents_below_it(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    source = open_source(tmp_path / name, SETTINGS)

    documents = [item for item in source if isinstance(item, Document)]

    assert [(item.uri, item.data) for item in documents] == [
        (f"file://{tmp_path}/{name}!/a.txt", b"first"),
        (f"file://{tmp_path}/{name}!/docs/b.md", b"# Second"),
    ]
    assert documents[1].media_type == "text/markdown"
    assert documents[1].metadata == {"source": "file", "path": f"{name}!/docs/b.md"}
    assert source.scope == f"file://{tmp_path}/{name}!/"
    assert (source.complete, source.unreadable) == (True, ())


@pytest.mark.parametrize(("name", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_a_compressed_file_is_one_document(name: str, compress: Callable[[bytes], bytes]) -> None:
    assert read(compress(b"# A") + compress(b"\nmore"), f"a.md.{name}") == ({"a.md": b"# A\nmore"}, {})


@pytest.mark.parametrize("name", ["a.jar", "a.whl", "a.docx", "a.xlsx", "a.epub", "a.zip.txt", "zip"])
def test_what_is_a_zip_only_inside_is_no_archive(name: str) -> None:
    assert archive_kind(name) is None


def test_archives_inside_archives_are_opened_to_a_depth(tmp_path: Path) -> None:
    innermost = zipped({"c.txt": b"third"})
    data = zipped({"inner.tgz": tarred({"b.txt": b"second", "deep.zip": innermost}, "w:gz"), "a.txt": b"first"})

    documents, rejected = read(data, "x.zip")

    assert documents == {"inner.tgz!/b.txt": b"second", "a.txt": b"first"}
    assert (
        "is an archive in 2 others, and is not opened (MILLRACE_SOURCES__ARCHIVE_DEPTH)"
        in rejected["inner.tgz!/deep.zip"]
    )
    assert read(data, "x.zip", SourceSettings(archive_depth=3))[0]["inner.tgz!/deep.zip!/c.txt"] == b"third"


def test_tables_in_archives_are_read_row_by_row() -> None:
    table = b"id,body\n1,a\n2,b\n"
    rows = Rows("id", ("body",))

    for data, name in ((zipped({"t.csv": table}), "x.zip"), (tarred({"t.csv": table}, "w:gz"), "x.tar.gz")):
        assert read(data, name, rows=rows) == ({"t.csv#1": b"a", "t.csv#2": b"b"}, {})
    assert read(gzip.compress(table), "t.csv.gz", rows=rows) == ({"t.csv#1": b"a", "t.csv#2": b"b"}, {})


def test_names_are_paths_below_the_archive_whatever_they_say() -> None:
    files = {"/etc/passwd.txt": b"1", "../../up.txt": b"2", "a/./b//../c.txt": b"3", "what?#%.txt": b"4", "ü.txt": b"5"}

    expected = {"etc/passwd.txt": b"1", "up.txt": b"2", "a/c.txt": b"3", "what%3F%23%25.txt": b"4", "ü.txt": b"5"}
    assert read(zipped(files), "x.zip") == (expected, {})
    assert read(tarred(files), "x.tar") == (expected, {})


def test_names_in_other_encodings_and_of_other_systems_are_read() -> None:
    unmarked = zipped({"XX.txt": b"1", "dir\\b.txt": b"2"}).replace(b"XX.txt", "ü.txt".encode())
    latin = tarred({"caf\udce9.txt": b"3", "long/" * 60 + "x.txt": b"4"})

    assert read(unmarked, "x.zip")[0] == {"ü.txt": b"1", "dir/b.txt": b"2"}
    assert read(latin, "x.tar")[0] == {"caf%E9.txt": b"3", "long/" * 60 + "x.txt": b"4"}


def test_of_members_with_one_name_the_last_is_the_document() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "old")
        archive.writestr("b.txt", "other")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.txt", "new")

    assert read(file.getvalue(), "x.zip")[0] == {"b.txt": b"other", "a.txt": b"new"}


def test_links_devices_and_directories_are_left_out() -> None:
    extra = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        member = tarfile.TarInfo(f"special-{kind.decode()}.txt")
        member.type, member.linkname = kind, "/etc/passwd"
        extra.append(member)
    link = zipfile.ZipInfo("link.txt")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("a.txt", "first")

    assert read(tarred(FILES, extra=extra), "x.tar") == (FILES, {})
    assert read(file.getvalue(), "x.zip") == ({"a.txt": b"first"}, {})


def test_members_of_unknown_formats_and_what_systems_add_are_skipped_and_counted() -> None:
    files = {
        "a.txt": b"first",
        "b.png": b"\x89PNG",
        "lib.so": b"\x7fELF",
        "__MACOSX/._a.txt": b"\0",
        ".git/config": b"x",
    }
    bundle = Bundle(io.BytesIO(zipped(files)), "x:x.zip", "x.zip", SETTINGS)

    assert sort_out(bundle) == ({"a.txt": b"first"}, {})
    assert bundle.skipped == 2


def test_a_member_over_the_limit_is_rejected_alone() -> None:
    files = {"a.txt": b"x" * 2000, "b.txt": b"second"}
    settings = SourceSettings(max_bytes=1000)

    for data, name in ((zipped(files), "x.zip"), (tarred(files, "w:gz"), "x.tar.gz")):
        documents, rejected = read(data, name, settings)
        assert documents == {"b.txt": b"second"}
        assert f"{name}!/a.txt has 2,000 bytes; the limit is 1,000" in rejected["a.txt"]
    assert "the limit is 1,000" in read(gzip.compress(files["a.txt"]), "a.txt.gz", settings)[1]["a.txt"]


def test_an_encrypted_member_is_rejected_alone() -> None:
    data = bytearray(zipped({"a.txt": b"secret", "b.txt": b"second"}))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + offset] |= 1

    documents, rejected = read(bytes(data), "x.zip")

    assert documents == {"b.txt": b"second"}
    assert "x.zip!/a.txt is encrypted" in rejected["a.txt"]


def test_a_damaged_member_of_a_zip_is_rejected_alone_and_protected() -> None:
    data = bytearray(zipped({"a.txt": b"first" * 100, "b.txt": b"second"}))
    data[40] ^= 0xFF
    bundle = Bundle(io.BytesIO(bytes(data)), "x:x.zip", "x.zip", SETTINGS)

    documents, rejected = sort_out(bundle)

    assert documents == {"b.txt": b"second"}
    assert "x.zip!/a.txt is damaged" in rejected["a.txt"]
    assert bundle.unreadable == ["x:x.zip!/a.txt"]


@pytest.mark.parametrize("cut", [100, 600, 1100, 1536, 2048])
@pytest.mark.parametrize(
    ("name", "pack"),
    [("x.tar", bytes), ("x.tar.gz", gzip.compress), ("x.tar.xz", lzma.compress), ("x.tar.bz2", bz2.compress)],
)
def test_of_a_cut_archive_what_came_before_is_kept_and_the_rest_is_protected(
    cut: int, name: str, pack: Callable[[bytes], bytes]
) -> None:
    packed = pack(tarred({f"{number}.txt": bytes([65 + number]) * 400 for number in range(4)}))
    data = packed[:cut] if name == "x.tar" else packed[: len(packed) * cut // 4000]
    bundle = Bundle(io.BytesIO(data), "x:" + name, name, SETTINGS)

    documents, rejected = sort_out(bundle)

    assert list(documents) == [f"{number}.txt" for number in range(len(documents))]
    if name == "x.tar":
        assert len(documents) == cut // 1024
    assert [f"{name} is damaged or cut off" in error for error in rejected.values()] == [True]
    assert bundle.unreadable == ["x:" + name]


def test_a_cut_zip_is_rejected_as_a_whole_for_its_directory_is_at_its_end() -> None:
    bundle = Bundle(io.BytesIO(zipped(FILES)[:-30]), "x:x.zip", "x.zip", SETTINGS)

    documents, rejected = sort_out(bundle)

    assert documents == {}
    assert "x.zip is damaged or cut off" in rejected[""]
    assert bundle.unreadable == ["x:x.zip"]


@pytest.mark.parametrize(
    "name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz", "x.tar.bz2", "x.tar.xz", "x.txt.gz", "x.txt.xz"]
)
@pytest.mark.parametrize("data", [b"", b"junk", b"PK\5\6" + b"\xff" * 18, b"\x1f\x8b\x08\0", b"x" * 512, b"\0" * 100])
def test_what_is_no_archive_is_rejected_by_name(name: str, data: bytes) -> None:
    documents, rejected = read(data, name)

    assert documents == {}
    assert all(name in error for error in rejected.values())
    assert rejected


def test_a_bomb_is_stopped_long_before_it_is_unpacked() -> None:
    zeros = b"\0" * (FREE_BYTES * 2)
    deep = zipped({f"{number}.zip": zipped({"a.txt": zeros, "b.txt": b"text"}) for number in range(3)})

    one, rejected = read(zipped({"bomb.txt": zeros, "b.txt": b"text"}), "x.zip")
    _, stream = read(tarred({"bomb.txt": zeros}, "w:gz"), "x.tar.gz")
    _, single = read(gzip.compress(zeros), "x.txt.gz")
    inner, nested = read(deep, "x.zip")

    assert one == {"b.txt": b"text"}
    assert "as decompression bombs do" in rejected["bomb.txt"]
    assert "unpacks to more than 200 times its size" in stream[""]
    assert "unpacks to more than 200 times its size" in single[""]
    assert inner == {f"{number}.zip!/b.txt": b"text" for number in range(3)}
    assert len(nested) == 3


def test_members_that_share_their_bytes_are_refused() -> None:
    content = b"text " * 1000
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packed.compress(content) + packed.flush()
    fields = (20, 0, 8, 0, 0x21, zlib.crc32(content), len(body), len(content), 5, 0)
    local = b"PK\3\4" + struct.pack("<5H3L2H", *fields) + b"a.txt" + body
    central = b"".join(
        b"PK\1\2" + struct.pack("<6H3L5H2L", 20, *fields, 0, 0, 0, 0, 0) + name for name in (b"a.txt", b"b.txt")
    )
    end = b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 2, 2, len(central), len(local), 0)

    documents, rejected = read(local + central + end, "x.zip")

    assert documents == {}
    assert "members that share their bytes" in rejected[""]


def test_members_and_unpacked_bytes_are_limited_across_nested_archives() -> None:
    files = {f"{number}.txt": b"x" * 100 for number in range(10)}
    nested = zipped({"a.zip": zipped(files, zipfile.ZIP_STORED), "b.zip": zipped(files, zipfile.ZIP_STORED)})

    few, too_many = read(nested, "x.zip", SourceSettings(archive_members=15))
    _, flat = read(zipped(files), "x.zip", SourceSettings(archive_members=5))
    _, tar = read(tarred(files), "x.tar", SourceSettings(archive_members=5))
    _, large = read(tarred(files, "w:gz"), "x.tar.gz", SourceSettings(archive_bytes=5000))

    assert len(few) == 10
    assert "b.zip has more than 15 members" in too_many["b.zip"]
    assert "x.zip has more than 5 members; none was read" in flat[""]
    assert "x.tar has more than 5 members" in tar[""]
    assert "unpacks to more than 5,000 bytes" in large[""]


def test_a_header_that_asks_for_memory_is_refused() -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 32
    long_name = member.tobuf(tarfile.GNU_FORMAT)
    asks = bytearray(lzma.compress(b"x" * 100))

    _, rejected = read(long_name + b"\0" * 4096, "x.tar")
    _, xz = read(bytes(asks[:6] + b"\0\0" + asks[8:]), "x.txt.xz")

    assert "a header says that it has 4,294,967,296 bytes" in rejected[""]
    assert xz


def test_a_sparse_file_and_unknown_compression_are_rejected_alone() -> None:
    sparse = tarfile.TarInfo("sparse.txt")
    sparse.type = tarfile.GNUTYPE_SPARSE
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.txt", b"first")

    documents, rejected = read(sparse.tobuf(tarfile.GNU_FORMAT) + tarred(FILES), "x.tar")
    _, packed = read(file.getvalue(), "x.zip")

    assert documents == FILES
    assert "is a sparse file" in rejected["sparse.txt"]
    assert "compressed by method 14" in packed["a.txt"]


def test_archives_in_a_directory_are_opened_and_patterns_choose_among_their_members(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.zip").write_bytes(zipped(FILES))
    (tmp_path / "y.txt").write_text("outside")

    def uris(settings: SourceSettings = SETTINGS, **patterns: list[str]) -> list[str]:
        source = open_source(tmp_path, settings, **patterns)  # type: ignore[arg-type]
        return [item.uri.removeprefix(f"file://{tmp_path}/") for item in source]

    assert uris() == ["y.txt", "sub/x.zip!/a.txt", "sub/x.zip!/docs/b.md"]
    assert uris(SourceSettings(archives=False)) == ["y.txt"]
    assert uris(exclude=["*.zip"]) == ["y.txt"]
    assert uris(include=["*.md"]) == ["sub/x.zip!/docs/b.md"]
    assert uris(include=["*.zip"]) == ["sub/x.zip!/a.txt", "sub/x.zip!/docs/b.md"]
    assert uris(exclude=["docs/"]) == ["y.txt", "sub/x.zip!/a.txt"]


def test_patterns_for_a_named_archive_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped(FILES))

    source = open_source(tmp_path / "x.zip", SETTINGS, include=["/docs/*.md"])

    assert sort_out(source)[0] == {"docs/b.md": b"# Second"}


def test_a_broken_archive_in_a_directory_is_rejected_and_protects_what_was_in_it(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(b"no zip")
    (tmp_path / "y.txt").write_text("outside")
    source = open_source(tmp_path, SETTINGS)

    found = list(source)

    assert [type(item) for item in found] == [Rejected, Document]
    assert source.complete
    assert source.unreadable == (f"file://{tmp_path}/x.zip",)
