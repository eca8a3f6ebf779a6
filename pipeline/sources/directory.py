"""Directories as sources: walked in order, a directory at a time, never held in memory as a whole."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline import media
from pipeline.document import Document
from pipeline.errors import MillraceError, SourceRefused, UnsupportedFormat
from pipeline.settings import SourceSettings
from pipeline.sources import guards
from pipeline.sources.base import Rejected
from pipeline.sources.bundles import bundle_kind, member_filter
from pipeline.sources.files import document, file_uri, reason, why
from pipeline.sources.held import read_bundle
from pipeline.sources.ignore import IGNORE_FILE, MAX_IGNORE_BYTES, Rules, patterns
from pipeline.sources.rows import Rows


class _Directory(NamedTuple):
    """A directory waiting to be listed. `path`: as documents are named; `resolved`: where it really is."""

    path: str
    resolved: str
    relative: str
    rules: Rules


class _Bundle(NamedTuple):
    """A table or an archive, open for reading."""

    descriptor: int
    path: str
    relative: str


class _Entry(NamedTuple):
    name: str
    is_link: bool
    is_directory: bool


class DirectorySource:
    """The files of a directory and of those below it.

    Order: the files of a directory by name, then its directories by name. Left out: what the settings and the
    tree's own `.gitignore` files ignore, what `include` and `exclude` (gitignore patterns, relative to the
    directory) leave out, and files that no extractor knows; `skipped` counts the last. A link is followed only
    where the settings say so; one that leads out of the directory, nowhere or in a circle is rejected.
    """

    def __init__(
        self,
        path: str | Path,
        settings: SourceSettings,
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        rows: Rows | None = None,
    ) -> None:
        """rows: how the rows of tables become documents; None: a table is one document.

        Raises SourceRefused where the directory lies outside the allowed roots.
        """
        self._path = os.path.abspath(path)
        self._settings = settings
        self._include = patterns(include) if include else None
        self._exclude = patterns(exclude) if exclude else None
        self._rows = rows
        self._ended = False
        self._unlisted = False
        self._unreadable: list[str] = []
        self._seen: set[tuple[int, int]] = set()
        self.skipped = 0
        guards.check_root(self._path, settings.roots)

    @property
    def scope(self) -> str:
        return file_uri(self._path).rstrip("/") + "/"

    @property
    def complete(self) -> bool:
        return self._ended and not self._unlisted

    @property
    def unreadable(self) -> tuple[str, ...]:
        return tuple(self._unreadable) if self._ended else (*self._unreadable, self.scope)

    def __iter__(self) -> Iterator[Document | Rejected]:
        self._ended, self._unlisted, self.skipped = False, False, 0
        self._unreadable.clear()
        self._seen.clear()
        resolved = guards.check_root(self._path, self._settings.roots)
        waiting = [_Directory(self._path, resolved, "", Rules("", patterns(self._settings.ignore)))]
        while waiting:
            directories: list[_Directory] = []
            yield from self._list(waiting.pop(), directories)
            waiting.extend(reversed(directories))
        self._ended = True

    def _list(self, place: _Directory, directories: list[_Directory]) -> Iterator[Document | Rejected]:
        """The documents of one directory; adds the directories in it to `directories`, in order."""
        try:
            descriptor = guards.open_directory(place.resolved)
        except (OSError, SourceRefused) as error:
            # One that is gone was deleted since its parent was listed; the first one should have been there.
            if place.relative == "" or not isinstance(error, FileNotFoundError):
                yield self._cannot_list(place, error)
            return
        try:
            if self._settings.follow_links and self._was_seen(descriptor):
                return
            try:
                entries = self._entries(descriptor)
            except OSError as error:
                yield self._cannot_list(place, error)
                return
            rules = self._rules(descriptor, place, entries)
            for entry in entries:
                found = self._visit(descriptor, place, rules, entry)
                if isinstance(found, _Directory):
                    directories.append(found)
                elif isinstance(found, _Bundle):
                    yield from self._open(found)
                elif found is not None:
                    yield found
        finally:
            os.close(descriptor)

    def _was_seen(self, descriptor: int) -> bool:
        """Whether a directory was listed before, under another name: links must not multiply a tree."""
        status = os.fstat(descriptor)
        key = status.st_dev, status.st_ino
        seen = key in self._seen
        self._seen.add(key)
        self.skipped += seen
        return seen

    @staticmethod
    def _entries(descriptor: int) -> list[_Entry]:
        with os.scandir(descriptor) as listing:
            found = [_Entry(item.name, item.is_symlink(), item.is_dir(follow_symlinks=False)) for item in listing]
        return sorted(found, key=lambda entry: os.fsencode(entry.name))

    def _rules(self, descriptor: int, place: _Directory, entries: Sequence[_Entry]) -> Rules:
        if not any(entry.name == IGNORE_FILE for entry in entries):
            return place.rules
        try:
            file = guards.open_regular_at(descriptor, IGNORE_FILE, f"{place.path}/{IGNORE_FILE}")
            try:
                data = guards.read_regular(file, MAX_IGNORE_BYTES, IGNORE_FILE)
            finally:
                os.close(file)
        except (OSError, MillraceError):
            return place.rules  # git goes on without it too
        return place.rules.below(place.relative, data.decode("utf-8-sig", "replace"))

    def _visit(
        self, directory: int, place: _Directory, rules: Rules, entry: _Entry
    ) -> Document | Rejected | _Directory | _Bundle | None:
        """What an entry of a directory is: a document, a directory to list, something bad, or nothing of ours."""
        path = posixpath.join(place.path, entry.name)
        relative = place.relative + entry.name
        if self._leaves_out(rules, relative + "/" if entry.is_directory else relative):
            return None
        if entry.is_directory:
            return _Directory(path, posixpath.join(place.resolved, entry.name), relative + "/", rules)
        try:
            if entry.is_link:
                return self._visit_link(path, relative, rules)
            return self._visit_file(directory, entry.name, path, relative)
        except FileNotFoundError:
            return None  # deleted since the directory was listed
        except (OSError, MillraceError) as error:
            return Rejected(file_uri(path), why(error, path))

    def _visit_file(self, directory: int, name: str, path: str, relative: str) -> Document | _Bundle | None:
        if not self._wanted(relative):
            return None
        return self._document(guards.open_regular_at(directory, name, path), path, relative)

    def _visit_link(self, path: str, relative: str, rules: Rules) -> Document | Rejected | _Directory | _Bundle | None:
        resolved = os.path.realpath(path)
        is_directory = os.path.isdir(resolved)
        if is_directory:
            if self._leaves_out(rules, relative + "/"):
                return None
        elif not self._wanted(relative):
            return None
        if wrong := self._wrong_link(path, resolved):
            self._unreadable.append(file_uri(path) + "/")
            return Rejected(file_uri(path), f"{path} is a symbolic link {wrong}")
        if not self._settings.follow_links:
            self.skipped += 1  # what it leads to comes under its own name
            return None
        if is_directory:
            return _Directory(path, resolved, relative + "/", rules)
        return self._document(guards.open_regular(resolved), path, relative)

    def _wrong_link(self, path: str, resolved: str) -> str:
        """What is wrong with a link, "" where nothing is; raises SourceRefused outside the allowed roots."""
        if not os.path.lexists(resolved):
            return f"to {resolved}, which does not exist"
        if os.path.islink(resolved):
            return "that leads in a circle"
        if guards.is_below(os.path.realpath(os.path.dirname(path)), resolved):
            return f"to {resolved}, in which it lies itself: a circle"
        if self._settings.follow_links:
            guards.check_root(path, self._settings.roots)
        elif not guards.is_below(resolved, os.path.realpath(self._path)):
            return (
                f"that leads out of the directory, to {resolved}; it is not followed "
                "(MILLRACE_SOURCES__FOLLOW_LINKS=true follows links)"
            )
        return ""

    def _leaves_out(self, rules: Rules, relative: str) -> bool:
        return rules.ignores(relative) or (self._exclude is not None and self._exclude.match_file(relative))

    def _bundle(self, relative: str) -> str | None:
        """Whether a file is opened for the documents in it: "table", "archive"; None where it is one document."""
        kind = bundle_kind(relative, self._rows)
        return None if kind == "archive" and not self._settings.archives else kind

    def _wanted(self, relative: str) -> bool:
        """Whether a file can be for us by its name; counts it where no extractor knows what the name says."""
        if posixpath.basename(relative) == IGNORE_FILE:
            return False
        bundle = self._bundle(relative)
        if bundle != "archive" and self._include is not None and not self._include.match_file(relative):
            return False
        if bundle is None and media.rules_out_document(relative):
            self.skipped += 1
            return False
        return True

    def _open(self, found: _Bundle) -> Iterator[Document | Rejected]:
        """The documents in a table or an archive; `include` may name the archive, or what is in it."""
        whole = self._include is None or self._include.match_file(found.relative)
        wanted = member_filter(self._settings, None if whole else self._include, self._exclude)
        self.skipped += yield from read_bundle(
            found.descriptor, found.path, found.relative, self._settings, self._rows, wanted, self._unreadable
        )

    def _document(self, descriptor: int, path: str, relative: str) -> Document | _Bundle | None:
        if self._bundle(relative) is not None:
            return _Bundle(descriptor, path, relative)
        try:
            data = guards.read_regular(descriptor, self._settings.max_bytes, path)
        finally:
            os.close(descriptor)
        try:
            return document(file_uri(path), relative, data)
        except UnsupportedFormat:
            if media.promises_document(relative):
                raise
            self.skipped += 1
            return None

    def _cannot_list(self, place: _Directory, error: OSError | SourceRefused) -> Rejected:
        uri = file_uri(place.path).rstrip("/") + "/"
        self._unlisted = True
        self._unreadable.append(uri)
        said = reason(error) if isinstance(error, OSError) else str(error)
        return Rejected(uri, f"{place.path} cannot be listed: {said}; nothing below it was read")
