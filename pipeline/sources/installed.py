"""Sources that installed packages bring: a URL scheme each, by an entry point.

A package says in its pyproject.toml

    [project.entry-points."millrace.sources"]
    wiki = "my_package.sources:open_wiki"

where `open_wiki(url, settings)` returns a `Source`; then `millrace ingest wiki://engineering` reads it.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from pipeline.errors import InvalidRequest, MillraceError
from pipeline.settings import SourceSettings
from pipeline.sources.base import Source

GROUP = "millrace.sources"


def schemes() -> list[str]:
    """The URL schemes that installed packages bring, sorted."""
    return sorted({point.name.lower() for point in entry_points(group=GROUP)})


def open_installed(url: str, scheme: str, settings: SourceSettings) -> Source | None:
    """The source of a URL; None where no installed package brings its scheme.

    Raises InvalidRequest, naming the package, where it cannot be loaded, fails, or returns what is no source.
    """
    found = [point for point in entry_points(group=GROUP) if point.name.lower() == scheme]
    if not found:
        return None
    point, where = found[0], f"{scheme}:// (entry point {found[0].value}{_package(found[0])})"
    if len(found) > 1:
        both = " and ".join(f"{point.value}{_package(point)}" for point in found)
        raise InvalidRequest(f"{scheme}:// is brought by {both}; uninstall all but one")
    try:
        source = point.load()(url, settings)
    except MillraceError:
        raise
    except Exception as error:  # whatever code that is not ours raises
        raise InvalidRequest(f"the source {where} failed: {type(error).__name__}: {error}") from error
    if not isinstance(source, Source):
        raise InvalidRequest(f"the source {where} returned {type(source).__name__}, which is no Source")
    return source


def _package(point: EntryPoint) -> str:
    return f" of {point.dist.name}" if point.dist is not None else ""
