"""What an application gives to a stack, by the real program: bad documents are named with their reason, and good ones
beside them indexed; a stack that has enough to do says so; and whoever wants to is told of the end.

One real stack for all: whatever is fed to it, the next document is indexed, so no worker was lost for good.
"""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine, MakeHome, eventually
from office_files import changed, make_docx, make_zip, word_part
from pdf_files import make_pdf
from webhook_endpoint import Endpoint, status

from pipeline import Client
from pipeline.settings import load_settings
from pipeline.sources import file_uri
from pipeline.webhooks import verify

PATIENCE_SECONDS = 90.0
MAX_BYTES = 12_000_000
MEGABYTE = 1 << 20
GOOD = "The miller keeps the race clear of weed, so that the wheel turns all summer.\n"
ENVIRONMENT = {
    "MILLRACE_SOURCES__MAX_BYTES": str(MAX_BYTES),
    "MILLRACE_EXTRACTION__MEMORY_MB": "512",
    "MILLRACE_EXTRACTION__CPU_SECONDS": "20",
    # An endpoint that fails is told again within the test.
    "MILLRACE_WEBHOOKS__PRIVATE": "true",
    "MILLRACE_WEBHOOKS__BACKOFF_SECONDS": "0.5",
}
FULL = {"MILLRACE_INGEST__MAX_STAGED_BYTES": "20"}


@pytest.fixture(scope="module")
def line(make_home: MakeHome) -> Iterator[CommandLine]:
    made = CommandLine(make_home("intake"), ENVIRONMENT)
    made.run("up", "--detach", "--workers", "1", "--concurrency", "1")
    yield made
    made.run("down")


@pytest.fixture
def collection(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)[-60:]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def _bomb() -> bytes:
    """A DOCX of some hundred kilobytes with a paragraph of 300 MB."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(make_docx())) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            if entry != "word/document.xml":
                new.writestr(entry, old.read(entry))
        head, _, tail = word_part("<w:p><w:r><w:t>|</w:t></w:r></w:p>").partition("|")
        with new.open("word/document.xml", "w") as part:
            part.write(head.encode())
            for _ in range(300):
                part.write(b"A" * MEGABYTE)
            part.write(tail.encode())
    return made.getvalue()


def _picture() -> bytes:
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0\0")), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


ENTITIES = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a0 "lol">'
    + "".join(f'<!ENTITY a{number} "{f"&a{number - 1};" * 10}">' for number in range(1, 12))
    + "]>"
)
ENTITY_BOMB = word_part("<w:p><w:r><w:t>&a11;</w:t></w:r></w:p>", ENTITIES)

# Name -> content, and a word of the reason that is to be given.
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty.md": (lambda: b"", "is empty"),
    "blank.txt": (lambda: b" \n\t\n" * 500, "has no text"),
    "junk.md": (lambda: random.Random(1).randbytes(50_000), "octet-stream"),
    "junk.pdf": (lambda: random.Random(2).randbytes(50_000), "not a PDF"),
    "picture.md": (_picture, "image/png"),
    "broken.pdf": (lambda: make_pdf([["A mill."] * 20] * 5)[:700], "PDF"),
    "encrypted.pdf": (lambda: make_pdf([["A secret mill."]], password="sesame"), "encrypted"),
    "cut.docx": (lambda: make_docx()[:-400], "broken"),
    "notreally.docx": (lambda: make_zip({"a.txt": "no document"}), "docx"),
    "large.txt": (lambda: b"x" * (MAX_BYTES + 1), "MILLRACE_SOURCES__MAX_BYTES"),
    "entities.docx": (lambda: changed(make_docx(), {"word/document.xml": ENTITY_BOMB}), ""),
    "bomb.docx": (_bomb, ""),
}

# What looks bad and is not: the words must be found.
GOOD_AFTER_ALL: dict[str, Callable[[], bytes]] = {
    "pdf-inside.txt": lambda: make_pdf([["The wheelwright mends paddles."]]),
    "latin1.txt": lambda: "Le meunier était là, près de la roue à aubes, tout l'été.".encode("latin-1"),
    "invalid.md": lambda: b"# Grain\n\nRye and \xff\xfe\x80 barley are ground on Mondays.\n",
    "utf16.txt": lambda: "The sluice gate is opened at six.".encode("utf-16"),
    "nul.txt": lambda: b"The flour\x00 bags are sewn by\x00 hand.\n",
    "oneline.txt": lambda: b"the stone is dressed twice a year " * (MEGABYTE // 34),
    "deep.html": lambda: b"<div>" * 50_000 + b"<p>The eel trap is below the weir." + b"</div>" * 50_000,
    "bomb.xml": f"{ENTITIES}<mill><text>The crane lifts sacks. &a11;</text></mill>".encode,
}


def _errors(job: dict[str, Any]) -> dict[str, str]:
    return {error["uri"]: error["error"] for error in job["errors"]}


def test_bad_documents_are_named_with_their_reason_and_the_good_ones_beside_them_are_found(
    line: CommandLine, tmp_path: Path, collection: str
) -> None:
    # Given a directory of what people really have, good and bad
    for name, (content, _) in BAD.items():
        (tmp_path / name).write_bytes(content())
    for name, made in GOOD_AFTER_ALL.items():
        (tmp_path / name).write_bytes(made())
    (tmp_path / "good.md").write_text(GOOD)

    # When it is ingested
    job = line.json("ingest", str(tmp_path), "--collection", collection, "--wait", status=3)

    # Then a part is done, each bad document is named with its reason, and nothing else
    assert job["state"] == "partial"
    told = _errors(job)
    assert set(told) == {file_uri(tmp_path / name) for name in BAD}
    for name, (_, reason) in BAD.items():
        said = told[file_uri(tmp_path / name)]
        assert name in said, said
        assert reason.lower() in said.lower(), said
    assert job["documents"]["indexed"] == len(GOOD_AFTER_ALL) + 1

    # And every good one is in the collection, with its words
    listed = {row["uri"] for row in line.json("documents", "--collection", collection)["documents"]}
    assert listed == {file_uri(tmp_path / name) for name in [*GOOD_AFTER_ALL, "good.md"]}
    for words, name in (
        ("wheelwright mends paddles", "pdf-inside.txt"),
        ("meunier était près de la roue à aubes", "latin1.txt"),
        ("Rye and barley ground on Mondays", "invalid.md"),
        ("sluice gate is opened at six", "utf16.txt"),
        ("flour bags are sewn by hand", "nul.txt"),
        ("the stone is dressed twice a year", "oneline.txt"),
        ("eel trap below the weir", "deep.html"),
        ("crane lifts sacks", "bomb.xml"),
    ):
        found = line.json("search", words, "--collection", collection, "--limit", "3")["results"]
        assert file_uri(tmp_path / name) in [result["uri"] for result in found], name

    # And the index is as the ledger says
    audit = line.json("audit", "--collection", collection)
    assert (audit["missing"], audit["orphaned"], audit["duplicate"]) == (0, 0, 0)


def test_links_pipes_and_devices_are_named_and_nothing_is_waited_for(
    line: CommandLine, tmp_path: Path, collection: str
) -> None:
    # Given a directory with a file, and what only looks like files
    tree = tmp_path / "tree"
    tree.mkdir()
    (tmp_path / "secret.txt").write_text("nobody may read this")
    (tree / "good.md").write_text(GOOD)
    (tree / "loop").symlink_to(".")
    (tree / "circle").symlink_to("circle")
    (tree / "out.txt").symlink_to(tmp_path / "secret.txt")
    (tree / "device.txt").symlink_to("/dev/zero")
    os.mkfifo(tree / "pipe.txt")

    job = line.json("ingest", str(tree), "--collection", collection, "--wait", status=3)

    told = _errors(job)
    assert set(told) == {file_uri(tree / name) for name in ("loop", "circle", "out.txt", "device.txt", "pipe.txt")}
    assert "circle" in told[file_uri(tree / "loop")]
    assert "circle" in told[file_uri(tree / "circle")]
    assert "out of the directory" in told[file_uri(tree / "out.txt")]
    assert "named pipe" in told[file_uri(tree / "pipe.txt")]
    assert job["documents"]["indexed"] == 1
    found = line.json("search", "nobody may read this", "--collection", collection)["results"]
    assert [result["uri"] for result in found] == [file_uri(tree / "good.md")]


def test_a_page_on_a_private_address_is_refused_by_name(line: CommandLine, tmp_path: Path, collection: str) -> None:
    (tmp_path / "good.md").write_text(GOOD)
    page = "http://127.0.0.1:9/secrets"

    job = line.json("ingest", page, str(tmp_path), "--collection", collection, "--wait", status=3)

    assert set(_errors(job)) == {page}
    assert "127.0.0.1" in job["errors"][0]["error"]
    assert job["documents"]["indexed"] == 1


def test_an_unknown_collection_model_or_field_is_named_with_what_there_is(
    line: CommandLine, tmp_path: Path, collection: str
) -> None:
    # Given a collection made with one model
    (tmp_path / "good.md").write_text(GOOD)
    line.json("ingest", str(tmp_path), "--collection", collection, "--wait")

    # Then a collection that is not there is named
    missing = line.run("search", "weed", "--collection", "nowhere", status=2)
    assert "nowhere" in missing.stderr

    # And so is a field that is none, beside those that there are
    unknown = line.run("search", "weed", "--collection", collection, "--filter", "colour=red", status=2)
    assert "colour" in unknown.stderr
    assert "path" in unknown.stderr

    # And both models, where the collection was made with another
    other = CommandLine(line.home, {**line.env, "MILLRACE_EMBEDDING__PRECISION": "int8"})
    mismatch = other.run("ingest", str(tmp_path), "--collection", collection, status=2)
    assert "float32" in mismatch.stderr
    assert "int8" in mismatch.stderr
    assert len(line.json("search", "weed", "--collection", collection)["results"]) == 1


def write(tmp_path: Path, name: str, count: int = 1) -> str:
    directory = tmp_path / name
    directory.mkdir()
    for number in range(count):
        (directory / f"{number}.txt").write_text(f"{name} {number} is what this is about")
    return str(directory)


def test_a_person_sees_why_an_ingest_waits_and_another_is_refused_by_name(line: CommandLine, tmp_path: Path) -> None:
    # Given a stack in which everything is paused, and more on its way than a client allows
    with Client(load_settings(home=line.home)) as client:
        line.run("pause", "--all")
        first = line.json("ingest", write(tmp_path, "first"), "--collection", "intake")
        full = CommandLine(line.home, {**line.env, **FULL})

        # Then one that does not want to wait ends with the name of the limit
        refused = full.run(
            "ingest", write(tmp_path, "second"), "--collection", "intake", "--when-full", "refuse", status=1
        )
        assert "ingest.max_staged_bytes" in refused.stderr
        assert "Nothing was enqueued" in refused.stderr

        # And one that waits says for what
        said = tmp_path / "said"
        with said.open("wb") as output:
            waiting = subprocess.Popen(
                full.argv("ingest", write(tmp_path, "third"), "--collection", "intake", "--wait"),
                env=full.environment(), cwd=tmp_path, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            eventually(lambda: b"ingest.max_staged_bytes" in said.read_bytes(), PATIENCE_SECONDS)
            assert "waiting: the backlog is full: " in said.read_text()
            assert "everything is paused: `millrace resume --all` lets it go on" in said.read_text()
            assert waiting.poll() is None

            # And it goes on when the others do
            line.run("resume", "--all")
            assert waiting.wait(PATIENCE_SECONDS) == 0, said.read_text()
        finally:
            line.run("resume", "--all")  # the tests after this one are at work too
            waiting.kill()
            waiting.wait()
        assert client.wait(first["job_id"], PATIENCE_SECONDS).state == "succeeded"
    names = {row["uri"].split("/")[-2] for row in line.json("documents", "--collection", "intake")["documents"]}
    assert names == {"first", "third"}


def test_an_application_is_told_by_the_stack_and_verifies_it_with_what_env_prints(
    line: CommandLine, tmp_path: Path, endpoint: Endpoint
) -> None:
    # Given the secret that the stack has made
    secret = line.addresses()["MILLRACE_WEBHOOKS__SECRET"]
    endpoint.answers = [status(500), status(200)]

    # When a job with a webhook ends
    job = line.json("ingest", write(tmp_path, "told"), "--collection", "told", "--webhook", endpoint.url, "--wait")

    # Then the application is told until it has taken it, and can tell that it was us
    eventually(lambda: len(endpoint.got) == 2, PATIENCE_SECONDS)
    first, second = endpoint.got
    assert first.id == second.id
    told = verify(second.headers, second.body, secret)
    assert (told["type"], told["job_id"], told["state"]) == ("job.finished", job["job_id"], "succeeded")


def test_a_webhook_on_a_private_address_is_refused_where_that_is_not_allowed(
    line: CommandLine, tmp_path: Path, endpoint: Endpoint
) -> None:
    public = CommandLine(line.home)
    refused = public.run("ingest", write(tmp_path, "x"), "--webhook", endpoint.url.replace("http", "https"), status=2)
    assert "MILLRACE_WEBHOOKS__PRIVATE" in refused.stderr
