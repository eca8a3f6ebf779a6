"""Sources that installed packages bring, by a URL scheme: found by entry points, as pip installs them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.document import Document
from pipeline.errors import InvalidRequest
from pipeline.settings import SourceSettings
from pipeline.sources import Source, open_source

CODE = """
from pipeline import Document
from pipeline.errors import SourceUnavailable

class Wiki:
    complete = True
    unreadable = ()

    def __init__(self, url, settings):
        self.scope, self.limit = url, settings.max_bytes

    def __iter__(self):
        yield Document(self.scope + "home", f"at most {self.limit}")

def open_wiki(url, settings):
    if url.endswith("away/"):
        raise SourceUnavailable("the wiki is away; try again later")
    if url.endswith("broken/"):
        raise KeyError("page")
    return "no source" if url.endswith("odd/") else Wiki(url, settings)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on the path, as pip leaves one: a module, and its metadata beside it."""
    (tmp_path / "acme_wiki.py").write_text(CODE)
    package(tmp_path, "acme-wiki", "wiki = acme_wiki:open_wiki\ngone.er = acme_wiki:missing")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("acme_wiki", None)


def package(directory: Path, name: str, points: str) -> None:
    metadata = directory / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[millrace.sources]\n{points}\n")


@pytest.mark.usefixtures("installed")
def test_a_url_of_an_installed_scheme_is_opened_by_its_package() -> None:
    source = open_source("Wiki://engineering/", SourceSettings(max_bytes=7))

    assert isinstance(source, Source)
    assert list(source) == [Document("wiki://engineering/home", "at most 7")]


@pytest.mark.usefixtures("installed")
def test_an_unknown_scheme_is_told_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match=r"wikki:// is not a source; .*s3://, gs://, gone\.er://, wiki://"):
        open_source("wikki://x", SourceSettings())


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("wiki://broken/", r"acme_wiki:open_wiki of acme-wiki\) failed: KeyError: 'page'"),
        ("wiki://odd/", "returned str, which is no Source"),
        ("gone.er://x", r"acme_wiki:missing of acme-wiki\) failed: AttributeError"),
    ],
)
def test_a_package_that_does_not_work_is_named(url: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        open_source(url, SourceSettings())


@pytest.mark.usefixtures("installed")
def test_what_the_package_says_itself_is_said() -> None:
    from pipeline.errors import SourceUnavailable

    with pytest.raises(SourceUnavailable, match="the wiki is away"):
        open_source("wiki://away/", SourceSettings())
    with pytest.raises(InvalidRequest, match="takes no patterns and no rows"):
        open_source("wiki://engineering/", SourceSettings(), include=["*.md"])


def test_two_packages_of_one_scheme_are_refused(installed: Path) -> None:
    package(installed, "other-wiki", "wiki = other:open_wiki")

    with pytest.raises(InvalidRequest, match=r"wiki:// is brought by .* and .*; uninstall all but one"):
        open_source("wiki://engineering/", SourceSettings())
