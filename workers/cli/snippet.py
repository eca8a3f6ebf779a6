"""The part of a long text that shows why it was found."""

from __future__ import annotations

import re

SNIPPET_WORDS = 40
STEM = 6  # letters of a word that stand for its forms: "compresses", "compression"


def snippet(text: str, question: str) -> str:
    """The stretch of the text that has most of the question's words in it, those in its middle if possible."""
    words = text.split()
    asked = sorted({word[:STEM] for word in re.findall(r"\w{4,}", question.lower())})
    hits = [next((stem for stem in asked if stem in word.lower()), None) for word in words]
    scores = [
        len({*hits[start : start + SNIPPET_WORDS]} - {None}) for start in range(max(1, len(words) - SNIPPET_WORDS + 1))
    ]
    highest = max(scores)
    best = [start for start, score in enumerate(scores) if score == highest]
    start = best[len(best) // 2] if best[0] else 0
    shown = " ".join(words[start : start + SNIPPET_WORDS])
    return ("... " if start else "") + shown + (" ..." if start + SNIPPET_WORDS < len(words) else "")
