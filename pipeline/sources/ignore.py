"""Which files of a directory are left out: gitignore patterns, from the settings and from the tree itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pathspec import GitIgnoreSpec

IGNORE_FILE = ".gitignore"
MAX_IGNORE_BYTES = 1 << 20  # no ignore file that people write is longer


def patterns(lines: Iterable[str]) -> GitIgnoreSpec:
    """The patterns of the lines; a line that is no pattern is left out, as git does."""
    lines = list(lines)
    try:
        return GitIgnoreSpec.from_lines(lines)
    except Exception:  # noqa: BLE001  pathspec raises re.error, ValueError and its own, by pattern
        return GitIgnoreSpec.from_lines(line for line in lines if _is_pattern(line))


def _is_pattern(line: str) -> bool:
    try:
        GitIgnoreSpec.from_lines([line])
    except Exception:  # noqa: BLE001
        return False
    return True


@dataclass(frozen=True, slots=True)
class Rules:
    """The ignore rules in force in one directory: its own, then those of the directories above it.

    base: path of the directory that the patterns are relative to, below the walked one ("" or "a/b/").
    """

    base: str
    spec: GitIgnoreSpec
    above: Rules | None = None

    def below(self, base: str, text: str) -> Rules:
        """The rules of a directory with an ignore file of its own."""
        return Rules(base, patterns(text.splitlines()), self)

    def ignores(self, relative: str) -> bool:
        """Whether a path (a directory with a slash at its end) is left out; the nearest rule that speaks decides."""
        rules: Rules | None = self
        while rules is not None:
            verdict = rules.spec.check_file(relative[len(rules.base) :]).include
            if verdict is not None:
                return verdict
            rules = rules.above
        return False
