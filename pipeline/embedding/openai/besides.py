"""What is paid for at a server and is none of the texts that somebody wants."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Besides:
    """What was asked for beside the texts that are wanted: to compare a model, to see whether the server is well.

    texts, tokens: answered, as billed. doubtful_texts, doubtful_tokens: sent, and maybe paid for, and not answered.
    """

    texts: int = 0
    tokens: int = 0
    requests: int = 0
    doubtful_texts: int = 0
    doubtful_tokens: int = 0
