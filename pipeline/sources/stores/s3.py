"""Buckets of S3, and of what speaks its protocol (MinIO, R2, Ceph): the extra `s3`.

Credentials, region and endpoint are botocore's own: the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE,
AWS_ENDPOINT_URL, ...), ~/.aws, or the role of the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any

from pipeline.errors import ExtractionFailed, InvalidRequest, MillraceError, SourceRefused, SourceUnavailable
from pipeline.settings import SourceSettings
from pipeline.sources.stores.buckets import AsyncBucket, Listed, Received, one_line, seconds_for

_CONNECT_SECONDS = 5
_READ_STEP = 1 << 20
_DENIED = frozenset({"401", "403", "AccessDenied", "AllAccessDisabled", "AccountProblem", "InvalidPayer"})
_BAD_CREDENTIALS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"}
)


class S3Bucket(AsyncBucket):
    """A bucket, by way of s3fs."""

    def __init__(self, bucket: str, settings: SourceSettings) -> None:
        """Raises InvalidRequest where s3fs is not installed."""
        try:
            import s3fs
        except ImportError as error:
            raise InvalidRequest(
                f"s3://{bucket} needs s3fs, which is not installed here ({error}): pip install 'millrace[s3]'"
            ) from None
        super().__init__(bucket, settings.store_timeout)
        self._files = s3fs.S3FileSystem(
            anon=settings.store_anonymous,
            skip_instance_cache=True,
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": min(_CONNECT_SECONDS, settings.store_timeout),
                "read_timeout": settings.store_timeout,
                "retries": {"max_attempts": 1},  # s3fs tries again itself
                "max_pool_connections": settings.store_reads,
            },
        )

    def pages(self, prefix: str, size: int) -> Iterator[list[Listed]]:
        given: dict[str, Any] = {"Bucket": self._bucket, "Prefix": prefix, "MaxKeys": size}
        while True:
            answer = self._call(self._files, translate, self._files._call_s3, "list_objects_v2", **given)
            found = answer.get("Contents", ())
            yield [Listed(item["Key"], int(item["Size"]), _validators(item)) for item in found]
            if not answer.get("IsTruncated"):
                return
            token = answer.get("NextContinuationToken")
            if not token or token == given.get("ContinuationToken"):
                raise SourceUnavailable(f"the listing of the bucket {self._bucket} does not go on; try again later")
            given["ContinuationToken"] = token

    def read(self, key: str, limit: int, into: IO[bytes]) -> Received:
        seconds = seconds_for(limit, self._timeout)
        found: Received = self._call(self._files, translate, self._receive, key, limit, into, seconds=seconds, key=key)
        return found

    async def _receive(self, key: str, limit: int, into: IO[bytes]) -> Received:
        size = 0
        answer = await self._files._call_s3("get_object", Bucket=self._bucket, Key=key)
        async with answer["Body"] as body:
            while size < limit:
                piece = await body.read(min(_READ_STEP, limit - size))
                if not piece:
                    break
                into.write(piece)
                size += len(piece)
        return Received(size, answer.get("ContentType"), _validators(answer))

    def close(self) -> None:
        if self._files._s3 is not None:
            self._end(self._files, self._files._s3.close)


def _validators(found: Any) -> dict[str, str]:
    etag = found.get("ETag")
    return {"etag": str(etag)} if etag else {}


def translate(error: Exception, bucket: str, key: str | None) -> MillraceError | None:
    """The Millrace error for what botocore, aiohttp, s3fs or the loop raised; None for a fault of our own."""
    import asyncio

    import aiohttp
    from botocore import exceptions as boto

    name = f"s3://{bucket}/{key}" if key is not None else f"the bucket {bucket}"
    cause = error.__cause__ if isinstance(error.__cause__, boto.ClientError) else error
    if isinstance(cause, boto.ClientError):
        return _answered(cause, name, bucket, key)
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError | boto.CredentialRetrievalError):
        return InvalidRequest(
            f"there are no credentials for {name}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
            "for a public bucket MILLRACE_SOURCES__STORE_ANONYMOUS=true"
        )
    if isinstance(
        error, boto.ProfileNotFound | boto.ParamValidationError | boto.NoRegionError | boto.InvalidRegionError
    ):
        return InvalidRequest(f"{name} cannot be asked for: {one_line(error)}")
    if isinstance(error, boto.BotoCoreError | aiohttp.ClientError | asyncio.TimeoutError | OSError):
        return SourceUnavailable(
            f"{name} cannot be reached: {one_line(error)}; try again later, and check AWS_ENDPOINT_URL where one is set"
        )
    return None


def _answered(error: Any, name: str, bucket: str, key: str | None) -> MillraceError:
    """What a refusal of the store means."""
    told = error.response.get("Error", {})
    code, said = str(told.get("Code", "")), one_line(told.get("Message", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    found: MillraceError = InvalidRequest(f"{name}: the store answered {code}: {said}")
    if code == "NoSuchBucket" or (code == "404" and key is None):
        found = InvalidRequest(f"there is no bucket {bucket}; check its name, and AWS_ENDPOINT_URL where one is set")
    elif code in {"NoSuchKey", "404"}:
        found = ExtractionFailed(f"{name} is gone since it was listed")
    elif code == "InvalidObjectState":
        found = ExtractionFailed(f"{name} is archived ({said}); restore it first")
    elif code in _BAD_CREDENTIALS:
        found = SourceRefused(f"{name}: the credentials are not taken ({code}); check AWS_ACCESS_KEY_ID, AWS_PROFILE")
    elif code in _DENIED or status in {401, 403}:
        right = "s3:ListBucket on the bucket" if key is None else "s3:GetObject on its objects"
        found = SourceRefused(f"{name} may not be read with these credentials ({code}: {said}); they need {right}")
    elif status >= 500 or code in {"SlowDown", "RequestTimeout"}:
        found = SourceUnavailable(f"{name}: the store answered {code}: {said}; try again later")
    return found
