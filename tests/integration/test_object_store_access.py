"""Who may read an object store, and what is said where that goes wrong; and that forks and exits do no harm."""

from __future__ import annotations

import subprocess
import sys

import pytest
from object_store import ObjectStore

from pipeline.errors import InvalidRequest, MillraceError, SourceRefused, SourceUnavailable
from pipeline.settings import SourceSettings
from pipeline.sources import open_source

SETTINGS = SourceSettings(store_timeout=60, max_bytes=10_000)


def refused(spec: str, kind: type[MillraceError], settings: SourceSettings = SETTINGS) -> str:
    with pytest.raises(kind) as caught:
        open_source(spec, settings)
    said = str(caught.value)
    assert "test-secret-word" not in said
    assert "hush" not in said
    return said


def test_what_is_not_there_is_told_before_a_job_is_made(store: ObjectStore) -> None:
    store.bucket("docs", {"docs-old/a.txt": b"a"})

    assert "there is no bucket missing" in refused("s3://missing/x/", InvalidRequest)
    assert "s3://docs/docs does not exist" in refused("s3://docs/docs", InvalidRequest)
    assert "is no bucket" in refused("s3://", InvalidRequest)
    assert "is no bucket" in refused("s3:///key", InvalidRequest)
    assert "credentials in it" in refused("s3://me:hush@docs/x", InvalidRequest)


def test_missing_or_wrong_credentials_are_told_with_the_remedy(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.bucket("docs", {"a.txt": b"a"})
    store.answer = lambda _: (403, "AccessDenied")
    assert "s3:ListBucket" in refused("s3://docs", SourceRefused)
    store.answer = lambda _: (403, "SignatureDoesNotMatch")
    assert "the credentials are not taken (SignatureDoesNotMatch)" in refused("s3://docs", SourceRefused)
    store.answer = lambda _: None

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    said = refused("s3://docs", InvalidRequest)
    assert "no credentials for the bucket docs" in said
    assert "AWS_ACCESS_KEY_ID" in said
    anonymous = SETTINGS.model_copy(update={"store_anonymous": True})
    assert len(list(open_source("s3://docs", anonymous))) == 1

    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "nobody" in refused("s3://docs", InvalidRequest)


def test_a_store_that_does_not_answer_is_told_without_its_password(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hush@127.0.0.1:9")

    said = refused("s3://docs", SourceUnavailable)

    assert "the bucket docs cannot be reached" in said
    assert "AWS_ENDPOINT_URL" in said


@pytest.mark.parametrize(
    ("spec", "module", "extra"), [("s3://docs", "s3fs", "millrace[s3]"), ("gs://docs", "gcsfs", "millrace[gs]")]
)
def test_a_missing_extra_is_named(spec: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.core", None)

    assert f"pip install '{extra}'" in refused(spec, InvalidRequest)


FORKING = """
import os, sys, threading
from pipeline.settings import SourceSettings
from pipeline.sources import open_source

def read():
    return len(list(open_source("s3://docs/", SourceSettings(store_timeout=60))))

assert read() == 3
child = os.fork()
if child == 0:
    os._exit(0 if read() == 3 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
found = []
threads = [threading.Thread(target=lambda: found.append(read())) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert found == [3, 3, 3], found
iterator = iter(open_source("s3://docs/", SourceSettings(store_timeout=60)))
next(iterator)
print("read")
"""


def test_forks_threads_and_an_exit_in_the_middle_work_without_a_warning(store: ObjectStore) -> None:
    store.bucket("docs", {f"{name}.txt": name.encode() for name in "abc"})

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKING],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "read\n", "")
