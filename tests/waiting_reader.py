"""The child of an extractor, to which a text is never read to its end where it says so.

Run as a program: `python -P tests/waiting_reader.py ...`; the rest is `pipeline.extract.isolation.child`.
"""

from __future__ import annotations

import sys
import time
from typing import Any, cast

from pipeline import extract
from pipeline.extract.isolation import child

PROGRAM = (sys.executable, "-P", __file__)
NEVER_ENDS = "this text is never read to its end"


def _install() -> None:
    readers = cast(dict[str, Any], extract._READERS)
    real = readers["text"]

    def reader(data: bytes, kind: str, uri: str) -> Any:
        if NEVER_ENDS.encode() in data:
            time.sleep(3600)
        return real(data, kind, uri)

    readers["text"] = reader


if __name__ == "__main__":
    _install()
    child.main()
