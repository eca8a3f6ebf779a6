"""The server of the Batch API, asked through the unmodified client: each request once, its answer a value.

The client would send a request again by itself where the answer is lost, and a batch would be created twice: it is
opened without retries, and who asks decides what a failure means.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.embedding.openai.client import open_client, scrubbed
from pipeline.embedding.openai.headers import retry_after
from pipeline.errors import KeyRejected
from pipeline.openai_batch.answers import Batch, Failure, failure, id_of, whole_number
from pipeline.openai_batch.rendering import WINDOW
from pipeline.settings import OpenAISettings

if TYPE_CHECKING:
    import openai

_PAGE = 100
# Bytes of a file that are handed on at a time.
_PIECE = 1 << 18
# A key that is shorter is a word that may stand anywhere.
_SECRET_LETTERS = 8
_NOTHING_THERE = 416  # of a range: the file was read to its end

Answer = TypeVar("Answer")
Progress = Callable[[], None]


class Broken(Exception):
    """A file stopped coming."""

    def __init__(self, failed: Failure) -> None:
        super().__init__(failed.message)
        self.failed = failed


class Server:
    """Opened at its first use; close() closes it."""

    def __init__(self, settings: OpenAISettings) -> None:
        self._settings = settings
        self._key = settings.api_key.get_secret_value()
        self._opened: openai.OpenAI | None = None

    @property
    def _client(self) -> openai.OpenAI:
        if self._opened is None:
            self._opened = open_client(self._settings)
        return self._opened

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    # -- files -------------------------------------------------------------------------------------------------------

    def upload(self, path: Path, name: str, progress: Progress) -> Batch | Failure:
        """The new file, as the server tells it. What it is made of is read as it is sent."""

        def send() -> Batch | Failure:
            with _Told(path, progress) as file:
                made = _plain(self._client.files.create(file=(name, file), purpose="batch"))
            return made if isinstance(made, Failure) or id_of(made) else _unreadable(made)

        return self._asked(send)

    def files_since(self, back_to: datetime, progress: Progress) -> list[Batch] | Failure:
        """The input files of the account that are not older, and some that are, newest first."""
        return self._listed(lambda **page: self._client.files.list(purpose="batch", **page), back_to, progress)

    def delete_file(self, file_id: str) -> Failure | None:
        """None: it is not there any more, whoever deleted it."""

        def delete() -> Failure | None:
            answer = self._client.files.delete(file_id)
            return None if getattr(answer, "deleted", None) is True else _unreadable(answer)

        answer = self._asked(delete)
        return None if isinstance(answer, Failure) and answer.kind in {"gone", "unseen"} else answer

    def content(self, file_id: str, offset: int = 0) -> Generator[bytes, None, None]:
        """The bytes of a file from that one on, in pieces. Raises Broken where it stops coming, now or later."""
        import httpx2
        import openai

        # A server that knows no ranges sends it all, and what is known is passed over.
        ranged = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with self._client.files.with_streaming_response.content(file_id, extra_headers=ranged) as answer:
                began = _start_of(answer.headers.get("content-range")) if answer.status_code == 206 else 0
                yield from _from(answer.iter_bytes(_PIECE), offset - began)
        except openai.APIStatusError as error:
            if error.status_code != _NOTHING_THERE:
                raise Broken(self._without_key(_failure(error))) from error
        except (openai.OpenAIError, httpx2.HTTPError, OSError, ValueError, KeyRejected) as error:
            raise Broken(self._without_key(_failure(error))) from error

    # -- batches -----------------------------------------------------------------------------------------------------

    def create(self, file_id: str, metadata: Mapping[str, str]) -> Batch | Failure:
        """The one request that spends money: sent once."""

        def post() -> Batch | Failure:
            made = _plain(
                self._client.batches.create(
                    completion_window=WINDOW,
                    endpoint="/v1/embeddings",
                    input_file_id=file_id,
                    metadata=dict(metadata),
                )
            )
            return made if isinstance(made, Failure) or id_of(made) else _unreadable(made)

        return self._asked(post)

    def retrieve(self, remote_id: str) -> Batch | Failure:
        def get() -> Batch | Failure:
            found = _plain(self._client.batches.retrieve(remote_id))
            return found if isinstance(found, Failure) or id_of(found) else _unreadable(found)

        return self._asked(get)

    def cancel(self, remote_id: str) -> Batch | Failure:
        return self._asked(lambda: _plain(self._client.batches.cancel(remote_id)))

    def batches_since(self, back_to: datetime, progress: Progress) -> list[Batch] | Failure:
        """The batches of the account that are not older, and some that are, newest first. A list that cannot be read
        to its end is a failure."""
        return self._listed(self._client.batches.list, back_to, progress)

    def _listed(self, ask: Callable[..., Any], back_to: datetime, progress: Progress) -> list[Batch] | Failure:
        found: list[Batch] = []
        after: dict[str, str] = {}
        while True:
            page = self._asked(partial(_listed_page, ask, after))
            if isinstance(page, Failure):
                return page
            items, more = page
            found += items
            last = id_of(items[-1]) if items else None
            if not more or last is None or last == after.get("after") or _reaches(items[-1], back_to):
                return found
            after = {"after": last}
            progress()

    # -- answers -----------------------------------------------------------------------------------------------------

    def without_key(self, words: str) -> str:
        """What the server says, without the key: it likes to repeat it, in what it stores too."""
        return words.replace(self._key, "***") if len(self._key) >= _SECRET_LETTERS else words

    def _asked(self, ask: Callable[[], Answer | Failure]) -> Answer | Failure:
        import httpx2
        import openai

        try:
            answer = ask()
        except (openai.OpenAIError, httpx2.HTTPError, ValueError, KeyRejected) as error:
            answer = _failure(error)
        cleared: Answer | Failure = self._without_key(answer)
        return cleared

    def _without_key(self, answer: Any) -> Any:
        """The same, every text in it without the key."""
        if isinstance(answer, str):
            return self.without_key(answer)
        if isinstance(answer, Failure):
            return replace(answer, message=self.without_key(answer.message))
        if isinstance(answer, Mapping):
            return {name: self._without_key(value) for name, value in answer.items()}
        if isinstance(answer, list | tuple):
            return type(answer)(self._without_key(value) for value in answer)
        return answer


class _Told(io.FileIO):
    """A file that says whenever a piece of it is read: sending it is progress."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(path, "rb")
        self._progress = progress

    def read(self, size: int | None = -1, /) -> bytes:
        self._progress()
        return super().read(-1 if size is None else size) or b""


def _failure(error: Exception) -> Failure:
    """Not a word of what a server says of a key: it likes to repeat it."""
    import openai

    if isinstance(error, KeyRejected):
        return Failure("denied", str(error))
    if isinstance(error, openai.APIStatusError):
        key = error.request.headers.get("authorization", "").partition(" ")[2]
        said = error.body.get("message") if isinstance(error.body, dict) else None
        told = scrubbed(str(said or error.response.reason_phrase or "it gives no reason"), key)
        if error.status_code in {401, 403}:
            told = "the key is rejected; set MILLRACE_OPENAI__API_KEY to one that may do this"
        seconds = retry_after(error.response.headers)
        return failure(error.status_code, error.code or error.type, f"{error.status_code}: {told}", seconds)
    if isinstance(error, openai.APITimeoutError):
        return failure(None, None, "no answer in time")
    # What lies below says more than the client's "Connection error."
    cause = error.__cause__ if isinstance(error, openai.APIConnectionError) and error.__cause__ else error
    return failure(None, None, scrubbed(f"no answer that can be read: {type(cause).__name__}: {cause}"))


def _unreadable(answer: object) -> Failure:
    return failure(None, None, f"an answer that cannot be read: {str(answer)[:200]}")


def _plain(answer: Any) -> Batch | Failure:
    """An answer's own JSON; what is no object is none."""
    found = answer.to_dict(mode="json") if hasattr(answer, "to_dict") else None
    return found if isinstance(found, dict) else _unreadable(answer)


def _listed_page(ask: Callable[..., Any], after: Mapping[str, str]) -> tuple[Sequence[Batch], bool] | Failure:
    return _page(ask(limit=_PAGE, **after))


def _page(answer: Any) -> tuple[Sequence[Batch], bool] | Failure:
    data = getattr(answer, "data", None)
    if not isinstance(data, list):
        return _unreadable(answer)
    items = [_plain(item) for item in data]
    readable = [item for item in items if not isinstance(item, Failure)]
    if len(readable) < len(items):
        return _unreadable(answer)
    # Where it does not say so, a page that is full may not be the last.
    more = getattr(answer, "has_more", None)
    return readable, len(items) >= _PAGE if more is None else bool(more)


def _reaches(last: Batch, back_to: datetime) -> bool:
    """Whether a list, newest first, goes back so far with this one."""
    created = whole_number(last.get("created_at"))
    return created is not None and created < back_to.timestamp()


def _start_of(content_range: str | None) -> int:
    """Of `bytes 10-19/20`: 10."""
    start = (content_range or "").removeprefix("bytes ").partition("-")[0]
    return int(start) if start.isdigit() else 0


def _from(pieces: Iterator[bytes], passed_over: int) -> Iterator[bytes]:
    for piece in pieces:
        if passed_over >= len(piece):
            passed_over -= len(piece)
        else:
            yield piece[passed_over:] if passed_over else piece
            passed_over = 0
