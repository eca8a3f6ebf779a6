"""What processes leave on the disk when they are killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sweeping import enough, kept
from workshop import Workshop

from pipeline import Settings
from pipeline.duties import Bounds
from pipeline.embedding import bundled
from pipeline.scratch import PREFIX, Scratch
from tasks import garbage


@pytest.fixture
def workshop(settings: Settings) -> Iterator[Workshop]:
    made = Workshop(kept(settings))
    yield made
    made.close()


_HOLDER = """
import time
from pipeline.scratch import Scratch
print(Scratch().path, flush=True)
time.sleep(600)
"""


def test_temporary_files_go_when_their_process_is_dead(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Given directories of a process that lives, of one that was killed, of somebody else, and half a model
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("pipeline.scratch._YOUNG_SECONDS", -1.0)
    mine = Scratch()
    other = tmp_path / "millrace-benchmark-1"
    other.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)}
    ) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        (theirs / "half").write_text("x")
        assert theirs.name.startswith(f"{PREFIX}{process.pid}-")
        assert garbage.collect(workshop.services, enough())["files"] == 0, "both live"
        process.kill()
        process.wait()
    models = workshop.services.settings.home / "models"
    models.mkdir(parents=True, exist_ok=True)
    (models / bundled._LOCK).touch()
    (models / f"{bundled._BUILDING}1").mkdir()

    # When garbage is collected
    assert garbage.collect(workshop.services, Bounds(100, 20.0, dry_run=True))["files"] == 2
    assert garbage.collect(workshop.services, enough())["files"] == 2

    # Then what nobody has any more is gone
    assert (mine.path.is_dir(), other.is_dir(), theirs.exists()) == (True, True, False)
    assert not list(models.glob(f"{bundled._BUILDING}*"))
    mine.close()
    assert not mine.path.exists()


def test_a_child_that_reads_documents_leaves_no_temporary_files(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pipeline.extract import Raw
    from pipeline.extract.isolation.extractor import Extractor

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    extractor = Extractor(workshop.services.settings.extraction)
    list(extractor.extract_many([Raw(b"ash", "text/plain", "a")], lambda: None))
    (directory,) = tmp_path.iterdir()
    (directory / "left").write_text("x")
    extractor.close()
    assert list(tmp_path.iterdir()) == []
