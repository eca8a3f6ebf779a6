"""Buckets of Google Cloud Storage: the extra `gs`.

Credentials are Google's own: GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth application-default login`, or the service
account of the machine. STORAGE_EMULATOR_HOST names another server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from pipeline.errors import ExtractionFailed, InvalidRequest, MillraceError, SourceRefused, SourceUnavailable
from pipeline.settings import SourceSettings
from pipeline.sources.stores.buckets import AsyncBucket, Listed, Received, one_line, seconds_for

_CLOSE_SECONDS = 5
_READ_STEP = 1 << 20
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_FIELDS = "nextPageToken,items(name,size,generation)"


class GcsBucket(AsyncBucket):
    """A bucket, by way of gcsfs."""

    def __init__(self, bucket: str, settings: SourceSettings) -> None:
        """Raises InvalidRequest where gcsfs is not installed or there are no credentials."""
        try:
            from gcsfs.core import GCSFileSystem  # not the package's own, which asks over gRPC what kind a bucket is
        except ImportError as error:
            raise InvalidRequest(
                f"gs://{bucket} needs gcsfs, which is not installed here ({error}): pip install 'millrace[gs]'"
            ) from None
        super().__init__(bucket, settings.store_timeout)
        try:
            self._files = GCSFileSystem(
                token="anon" if settings.store_anonymous else "google_default",
                skip_instance_cache=True,
                use_listings_cache=False,
            )
        except Exception as error:
            translated = translate(error, bucket, None)
            if translated is None:
                raise
            raise translated from error

    def pages(self, prefix: str, size: int) -> Iterator[list[Listed]]:
        given: dict[str, Any] = {"prefix": prefix, "maxResults": size, "fields": _FIELDS}
        while True:
            answer = self._call(
                self._files, translate, self._files._call, "GET", "b/{}/o", self._bucket, json_out=True, **given
            )
            found = answer.get("items", ())
            yield [
                Listed(item["name"], int(item.get("size", 0)), _validators(item.get("generation"))) for item in found
            ]
            token = answer.get("nextPageToken")
            if not token:
                return
            if token == given.get("pageToken"):
                raise SourceUnavailable(f"the listing of the bucket {self._bucket} does not go on; try again later")
            given["pageToken"] = token

    def read(self, key: str, limit: int, into: IO[bytes]) -> Received:
        seconds = seconds_for(limit, self._timeout)
        found: Received = self._call(self._files, translate, self._receive, key, limit, into, seconds=seconds, key=key)
        return found

    async def _receive(self, key: str, limit: int, into: IO[bytes]) -> Received:
        from gcsfs.retry import validate_response

        size = 0
        await self._files._set_session()
        url = self._files.url(f"{self._bucket}/{key}")
        async with self._files.session.get(url, headers=self._files._get_headers({})) as answer:
            if answer.status >= 400:
                validate_response(answer.status, await answer.content.read(_READ_STEP), url)
            while size < limit:
                piece = await answer.content.read(min(_READ_STEP, limit - size))
                if not piece:
                    break
                into.write(piece)
                size += len(piece)
            headers = answer.headers
        return Received(size, headers.get("Content-Type"), _validators(headers.get("x-goog-generation")))

    def close(self) -> None:
        session = self._files.session
        if session is not None and not session.closed:
            self._end(self._files, session.close)


def _validators(generation: object) -> dict[str, str]:
    return {"generation": str(generation)} if generation else {}


def translate(error: Exception, bucket: str, key: str | None) -> MillraceError | None:
    """The Millrace error for what gcsfs, google.auth, aiohttp or the loop raised; None for a fault of our own."""
    import asyncio

    import aiohttp
    import requests
    from gcsfs.retry import HttpError
    from google.auth import exceptions as auth

    name = f"gs://{bucket}/{key}" if key is not None else f"the bucket {bucket}"
    code = int(error.code or 0) if isinstance(error, HttpError) else 0
    away = (aiohttp.ClientError, requests.RequestException, auth.TransportError, asyncio.TimeoutError)
    found: MillraceError | None = None
    if isinstance(error, FileNotFoundError):
        there_is_none = f"there is no bucket {bucket}; check its name, and STORAGE_EMULATOR_HOST where it is set"
        found = (
            InvalidRequest(there_is_none) if key is None else ExtractionFailed(f"{name} is gone since it was listed")
        )
    elif code in {401, 403} or (isinstance(error, OSError) and str(error).startswith("Forbidden")):
        right = "storage.objects.list on the bucket" if key is None else "storage.objects.get on its objects"
        found = SourceRefused(f"{name} may not be read with these credentials; they need {right}")
    elif isinstance(error, auth.DefaultCredentialsError | auth.RefreshError):
        found = InvalidRequest(
            f"there are no credentials for {name}: set GOOGLE_APPLICATION_CREDENTIALS, or run `gcloud auth "
            "application-default login`; for a public bucket MILLRACE_SOURCES__STORE_ANONYMOUS=true"
        )
    elif code in _TRANSIENT or isinstance(error, (*away, OSError)):
        found = SourceUnavailable(f"{name} cannot be reached: {one_line(error)}; try again later")
    elif isinstance(error, HttpError | ValueError):
        found = InvalidRequest(f"{name}: the store answered {one_line(error)}")
    return found
