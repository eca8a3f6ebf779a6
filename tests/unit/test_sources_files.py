from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.document import Document
from pipeline.errors import InvalidRequest, SourceRefused
from pipeline.settings import SourceSettings
from pipeline.sources import DirectorySource, FileSource, Rejected, Source, file_path, file_uri, open_source

SETTINGS = SourceSettings()


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; for a while, be somebody who may not."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A directory that every user may pass through."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(os.path.realpath(name))
        path.chmod(0o755)
        yield path


def documents(source: Source) -> list[Document]:
    found = list(source)
    assert [item for item in found if isinstance(item, Rejected)] == []
    return [item for item in found if isinstance(item, Document)]


def paths(source: Source) -> list[str]:
    return [str(document.metadata["path"]) for document in documents(source)]


def rejected(source: Source) -> dict[str, str]:
    return {item.uri: item.error for item in source if isinstance(item, Rejected)}


def write(root: Path, *names: str, content: str = "some text") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_a_file_becomes_a_document_named_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "notes/My day.md", content="# Day\n")
    monkeypatch.chdir(tmp_path / "notes")

    [document] = documents(open_source("My day.md", SETTINGS))

    assert document.uri == f"file://{tmp_path}/notes/My day.md"
    assert document.data == b"# Day\n"
    assert document.media_type == "text/markdown"
    assert document.metadata == {"source": "file", "path": "My day.md"}


@pytest.mark.parametrize("name", ["plain.txt", "a b.txt", "100%.txt", "what?#x.txt", "line\nbreak.txt", "日本.txt"])
def test_a_uri_leads_back_to_its_file_whatever_the_name(tmp_path: Path, name: str) -> None:
    uri = file_uri(tmp_path / name)

    assert file_path(uri) == tmp_path / name
    assert "\n" not in uri


def test_a_file_name_that_is_no_text_still_has_a_uri_and_is_read(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    with open(raw, "wb") as file:
        file.write(b"latin name")

    [document] = documents(open_source(tmp_path, SETTINGS))

    assert document.uri.endswith("/caf%E9.txt")
    assert os.fsencode(file_path(document.uri)) == raw


def test_only_file_uris_have_a_path() -> None:
    with pytest.raises(InvalidRequest, match=r"https://example\.org/a"):
        file_path("https://example.org/a")


def test_a_directory_is_listed_in_order_files_first(tmp_path: Path) -> None:
    write(tmp_path, "b.txt", "a.txt", "z/1.txt", "m/2.txt", "m/deep/3.txt")

    source = open_source(tmp_path, SETTINGS)

    assert paths(source) == ["a.txt", "b.txt", "m/2.txt", "m/deep/3.txt", "z/1.txt"]
    assert source.complete
    assert source.unreadable == ()
    assert source.scope == f"file://{tmp_path}/"


def test_a_directory_can_be_iterated_again_and_sees_what_is_new(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    source = open_source(tmp_path, SETTINGS)
    assert paths(source) == ["a.txt"]

    write(tmp_path, "b.txt")

    assert paths(source) == ["a.txt", "b.txt"]


def test_a_listing_that_broke_off_protects_everything_below_it(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.txt")
    source = open_source(tmp_path, SETTINGS)
    assert not source.complete

    next(iter(source))

    assert not source.complete
    assert source.unreadable == (source.scope,)


def test_gitignore_files_are_honoured_where_they_lie(tmp_path: Path) -> None:
    write(tmp_path, "keep.txt", "a.log", "sub/b.log", "sub/keep.log", "sub/gone.txt", "build/x.txt", "top/build/y.txt")
    (tmp_path / ".gitignore").write_text("*.log\n/build/\n[z-a]bad pattern\n")
    (tmp_path / "sub" / ".gitignore").write_text("!keep.log\ngone.txt\n")

    assert paths(open_source(tmp_path, SETTINGS)) == ["keep.txt", "sub/keep.log", "top/build/y.txt"]


def test_what_the_settings_ignore_is_left_out_everywhere(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", ".git/config.txt", "x/.venv/lib.py", "x/node_modules/m.js", "x/__pycache__/c.txt")

    assert paths(open_source(tmp_path, SETTINGS)) == ["a.txt"]


def test_include_and_exclude_are_patterns_below_the_directory(tmp_path: Path) -> None:
    write(tmp_path, "a.md", "a.txt", "docs/b.md", "docs/old/c.md", "src/d.py")

    source = open_source(tmp_path, SETTINGS, include=["*.md", "/src/"], exclude=["docs/old/"])

    assert paths(source) == ["a.md", "docs/b.md", "src/d.py"]


def test_a_glob_is_a_directory_with_a_pattern(tmp_path: Path) -> None:
    write(tmp_path, "docs/a.md", "docs/b.txt", "docs/deep/c.md", "other/d.md")

    assert paths(open_source(f"{tmp_path}/docs/**/*.md", SETTINGS)) == ["a.md", "deep/c.md"]
    assert paths(open_source(f"{tmp_path}/docs/*.md", SETTINGS)) == ["a.md"]


def test_files_that_no_extractor_knows_are_skipped_in_a_directory_and_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "picture.png")
    (tmp_path / "unknown").write_bytes(b"\x00\x01\x02\xff" * 100)
    (tmp_path / "README").write_text("text without an extension")

    source = DirectorySource(tmp_path, SETTINGS)

    assert paths(source) == ["README", "a.txt"]
    assert source.skipped == 2
    assert source.complete


def test_a_file_that_no_extractor_knows_is_rejected_when_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))

    assert rejected(open_source(tmp_path / "picture.png", SETTINGS)) == {
        f"file://{tmp_path}/picture.png": f"file://{tmp_path}/picture.png: no extractor knows image/png; "
        "convert it to text, Markdown, HTML, PDF or an office format (docs/formats.md lists all)"
    }


@pytest.mark.parametrize("spec", ["missing.txt", "missing/*.txt", "", "-", "ftp://example.org/a", "a\0b"])
def test_what_names_no_source_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest) as caught:
        open_source(spec, SETTINGS)
    assert spec.replace("\0", "\\x00") in str(caught.value)


def test_a_file_over_the_limit_is_rejected_and_the_others_go_on(tmp_path: Path) -> None:
    write(tmp_path, "big.txt", content="x" * 101)
    write(tmp_path, "fits.txt", content="x" * 100)

    big, fits = list(open_source(tmp_path, SourceSettings(max_bytes=100)))

    assert isinstance(big, Rejected)
    assert "101 bytes; the limit is 100" in big.error
    assert isinstance(fits, Document)


def test_pipes_sockets_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.txt"))

        found = rejected(open_source(tmp_path, SETTINGS))

    assert found == {
        f"file://{tmp_path}/pipe.txt": f"{tmp_path}/pipe.txt is a named pipe, not a regular file",
        f"file://{tmp_path}/s.txt": f"{tmp_path}/s.txt is a socket, not a regular file",
    }
    [device] = list(open_source("/dev/null", SETTINGS))
    assert isinstance(device, Rejected)
    assert device.error == "/dev/null is a device, not a regular file"


def test_a_link_inside_the_directory_is_skipped_as_its_target_comes_anyway(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "d/b.txt")
    (tmp_path / "link.txt").symlink_to("a.txt")
    (tmp_path / "other").symlink_to("d")

    source = DirectorySource(tmp_path, SETTINGS)

    assert paths(source) == ["a.txt", "d/b.txt"]
    assert source.skipped == 2


def test_links_out_of_the_directory_nowhere_and_in_circles_are_rejected(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(tmp_path, "root/a.txt", "secret.txt")
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "nowhere.txt").symlink_to("missing")
    (root / "self.txt").symlink_to("self.txt")
    (root / "up").symlink_to("..")
    source = open_source(root, SETTINGS)

    found = {uri.rpartition("/")[2]: error for uri, error in rejected(source).items()}

    assert sorted(found) == ["nowhere.txt", "out.txt", "self.txt", "up"]
    assert "out of the directory" in found["out.txt"]
    assert "MILLRACE_SOURCES__FOLLOW_LINKS" in found["out.txt"]
    assert "does not exist" in found["nowhere.txt"]
    assert "circle" in found["self.txt"]
    assert "circle" in found["up"]
    assert source.complete


def test_links_are_followed_where_the_settings_say_so_and_loops_end(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(tmp_path, "root/a.txt", "elsewhere/b.txt", "elsewhere/deep/c.txt")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "loop").symlink_to(tmp_path / "elsewhere")
    source = DirectorySource(root, SourceSettings(follow_links=True))

    found = [item for item in source if isinstance(item, Document)]

    assert [document.metadata["path"] for document in found] == ["a.txt", "again/b.txt", "again/deep/c.txt"]
    assert [uri.removeprefix(source.scope) for uri in rejected(source)] == ["again/deep/loop"]


def test_a_link_out_of_the_allowed_roots_is_refused_even_when_links_are_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(tmp_path, "root/a.txt", "secret.txt")
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    source = open_source(root, SourceSettings(roots=(root,), follow_links=True))

    [error] = rejected(source).values()

    assert "outside the allowed roots" in error
    assert str(tmp_path / "secret.txt") in error


def test_what_lies_outside_the_roots_cannot_be_opened(tmp_path: Path) -> None:
    write(tmp_path, "in/a.txt", "in-beside/b.txt", "out/c.txt")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "out")
    settings = SourceSettings(roots=(tmp_path / "in",))

    assert paths(open_source(tmp_path / "in" / "a.txt", settings)) == ["a.txt"]
    for path in ("in-beside", "out/c.txt", "in/../out", "in/link", "in/link/c.txt"):
        with pytest.raises(SourceRefused, match="allowed roots"):
            open_source(f"{tmp_path}/{path}", settings)


def test_a_file_that_changes_while_it_is_read_is_never_half_old_half_new(tmp_path: Path) -> None:
    path = tmp_path / "live.txt"
    size = 3_000_000
    path.write_bytes(b"a" * size)
    stop = threading.Event()

    def rewrite() -> None:
        letter = 0
        with open(path, "r+b", buffering=0) as file:
            while not stop.is_set():
                file.seek(0)
                file.write(b"abcdefgh"[letter % 8 : letter % 8 + 1] * size)
                letter += 1

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        outcomes = [item for _ in range(5) for item in FileSource(path, SETTINGS)]
    finally:
        stop.set()
        writer.join()

    for item in outcomes:
        if isinstance(item, Document):
            assert len(set(item.data)) == 1
        else:
            assert "changes while it is read" in item.error


def test_an_unreadable_directory_is_noted_and_the_rest_goes_on(open_path: Path) -> None:
    write(open_path, "a.txt", "closed/b.txt", "open/c.txt")
    (open_path / "closed").chmod(0)
    source = open_source(open_path, SETTINGS)

    with as_nobody():
        found = list(source)

    assert [type(item) for item in found] == [Document, Rejected, Document]
    assert found[1].uri == f"file://{open_path}/closed/"
    assert "Permission denied" in found[1].error  # type: ignore[union-attr]
    assert not source.complete
    assert source.unreadable == (f"file://{open_path}/closed/",)


def test_a_file_without_permission_is_rejected_and_the_listing_is_complete(open_path: Path) -> None:
    write(open_path, "a.txt", "closed.txt")
    (open_path / "closed.txt").chmod(0)
    source = open_source(open_path, SETTINGS)

    with as_nobody():
        found = rejected(source)

    assert found == {f"file://{open_path}/closed.txt": f"{open_path}/closed.txt cannot be read: Permission denied"}
    assert source.complete


def test_a_directory_that_may_be_passed_but_not_listed_on_the_way_does_no_harm(open_path: Path) -> None:
    write(open_path, "way/root/a.txt")
    (open_path / "way").chmod(0o711)

    with as_nobody():
        assert paths(open_source(open_path / "way" / "root", SETTINGS)) == ["a.txt"]


def test_a_directory_that_is_gone_when_it_is_listed_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    root = tmp_path / "root"
    write(root, "a.txt")
    source = open_source(root, SETTINGS)
    shutil.rmtree(root)

    [gone] = list(source)

    assert isinstance(gone, Rejected)
    assert not source.complete
    assert source.unreadable == (source.scope,)


def test_a_hundred_levels_and_very_long_paths_are_walked(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(120):  # over 4096 bytes in all: more than one path may have
        os.mkdir("d" * 40, dir_fd=here)
        below = os.open("d" * 40, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("leaf.txt", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)

    found = list(open_source(tmp_path, SETTINGS))

    assert len(found) == 1
    assert isinstance(found[0], Rejected)
    assert "more than 2048 bytes" in found[0].error
