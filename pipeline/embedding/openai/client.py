"""The unmodified client of OpenAI, and what its errors are in our words.

It is imported when it is opened and not before: it takes most of a second. Nothing that it says of a key is passed on:
servers repeat the key, or parts of it, in their messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.embedding.openai.headers import retry_after
from pipeline.embedding.openai.spec import is_openai, normalised_url
from pipeline.errors import (
    InvalidRequest,
    InvalidVectors,
    KeyRejected,
    MillraceError,
    ModelUnavailable,
    ProviderLimited,
    ProviderUnavailable,
    QuotaExhausted,
)
from pipeline.settings import OpenAISettings

if TYPE_CHECKING:
    import openai

# Servers on this machine mostly want no key, and the client wants one.
_NO_KEY = "none"
_QUOTA_CODES = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_KEY_CODES = frozenset({"invalid_api_key", "account_deactivated"})
_MODEL_CODES = frozenset({"model_not_found", "unknown_model", "DeploymentNotFound"})
# The server ended it without a word of its own, or may have done it: what it cost, nobody knows.
_LOST_STATUSES = frozenset({408, 409, 502, 504, 524})
# What looks like a key, masked or not.
_KEY_LIKE = re.compile(r"\b(?:sk|sess|pk)-[\w*.…-]{4,}|\bBearer\s+\S+", re.IGNORECASE)
_LONGEST_MESSAGE = 500


def open_client(settings: OpenAISettings) -> openai.OpenAI:
    """The client, without retries: a request that is sent again may be paid for again.

    Raises KeyRejected where OpenAI's own server is meant and no key is set.
    """
    import openai

    key = settings.api_key.get_secret_value()
    if not key and is_openai(settings):
        raise KeyRejected("No key is set. Set MILLRACE_OPENAI__API_KEY, and restart the workers.")
    # Said here, empty ones too, so that the client takes nothing of somebody else's from the environment.
    client = openai.OpenAI(
        api_key=key or _NO_KEY,
        base_url=settings.base_url,
        organization=settings.organization,
        project=settings.project,
        webhook_secret="",
        timeout=settings.timeout,
        max_retries=0,
    )
    client.organization = settings.organization or None
    client.project = settings.project or None
    return client


class Failure(Exception):
    """What went wrong, in our words. lost: the request was sent, and may have been carried out and paid for.

    whole: it is the request as such that is refused, whatever texts are in it. status: of HTTP; None without an answer.
    texts: the server fails on these texts, and not on others.
    """

    def __init__(
        self, error: MillraceError, *, lost: bool = False, whole: bool = False, status: int | None = None
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.lost = lost
        self.whole = whole
        self.status = status
        self.texts = False


@contextmanager
def translated(what: str) -> Iterator[None]:
    """The errors of the client, and those of what reads its answers, become ours. what: such as "creating batch 7"."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - what is none of the client's is raised as it is
        raise translate(error, what).error from None


def translate(error: Exception, what: str) -> Failure:
    """Raises the error itself where it is none of the client's."""
    import openai

    if isinstance(error, MillraceError):
        return Failure(error)
    if isinstance(error, openai.APIStatusError):
        return _of_status(error, what)
    if isinstance(error, openai.APIConnectionError):
        return _of_connection(error, what)
    if isinstance(error, openai.APIResponseValidationError):
        return Failure(InvalidVectors(f"{what}: the answer is not what the protocol says"), lost=True, status=200)
    if isinstance(error, openai.OpenAIError):
        return Failure(ProviderUnavailable(f"{what}: {scrubbed(str(error))}"), lost=True)
    if isinstance(error, ValueError):
        return Failure(ProviderUnavailable(f"{what}: the answer makes no sense: {scrubbed(str(error))}"), lost=True)
    raise error


def told(error: Mapping[str, Any], what: str) -> Failure:
    """Of an error that came as the body of an answer with status 200."""
    code, message = _code(error), scrubbed(str(error.get("message") or "it gives no reason"))
    if code in _QUOTA_CODES:
        return Failure(_quota(what, message), status=200)
    if code in _KEY_CODES:
        return Failure(_rejected(what, 200, code), status=200)
    if code in {"rate_limit_exceeded", "429"}:
        return Failure(ProviderLimited(f"{what}: {message}"), status=429)
    return Failure(ProviderUnavailable(f"{what}: answered with an error ({code}): {message}"), lost=True, status=200)


def scrubbed(message: str, *secrets: str) -> str:
    """The message without these secrets and whatever looks like a key, and not longer than anybody reads."""
    for secret in secrets:
        if len(secret) > 3:
            message = message.replace(secret, "***")
    return _KEY_LIKE.sub("***", message)[:_LONGEST_MESSAGE]


def _of_status(error: openai.APIStatusError, what: str) -> Failure:
    status, code, message = error.status_code, str(error.code or error.type or ""), _message(error)
    if code in _QUOTA_CODES or status == 402:
        return Failure(_quota(what, message), status=status)
    if status in {401, 403}:
        return Failure(_rejected(what, status, code), status=status)
    if status == 429:
        seconds = retry_after(error.response.headers)
        wait = "" if seconds is None else f" (asks to wait {seconds:g} s)"
        return Failure(ProviderLimited(f"{what}: 429{wait}: {message}", seconds), status=status)
    if code in _MODEL_CODES or (status == 404 and error.request.url.path.endswith("/embeddings")):
        where = "check MILLRACE_OPENAI__MODEL and MILLRACE_OPENAI__BASE_URL"
        return Failure(ModelUnavailable(f"{what}: {status}: {message}; {where}"), whole=True, status=status)
    if status in _LOST_STATUSES or status >= 500:
        failed = ProviderUnavailable(f"{what}: {status}: {message}")
        return Failure(failed, lost=status in _LOST_STATUSES, status=status)
    whole = str(error.param or "").partition("[")[0] in {"dimensions", "encoding_format", "model", "user"}
    return Failure(InvalidRequest(f"{what}: refused with {status}: {message}"), whole=whole, status=status)


def _of_connection(error: openai.APIConnectionError, what: str) -> Failure:
    import httpx2
    import openai

    cause = error.__cause__
    # Before anything of it was sent.
    unsent = isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout | httpx2.ProxyError)
    if isinstance(error, openai.APITimeoutError):
        why = "no connection in time" if unsent else "no answer in time"
    else:
        why = f"{'no connection' if unsent else 'the connection broke'}: {_scrub(error, str(cause or error))}"
    return Failure(ProviderUnavailable(f"{what}: {why}. Work goes on by itself when it answers."), lost=not unsent)


def _quota(what: str, message: str) -> QuotaExhausted:
    return QuotaExhausted(f"{what}: the account is out of credit: {message} Top it up; work goes on by itself.")


def _rejected(what: str, status: int, code: str) -> KeyRejected:
    # Not a word of the server's: it likes to repeat the key.
    return KeyRejected(
        f"{what}: the key is rejected ({status}{f' {scrubbed(code)}' if code else ''}). Set MILLRACE_OPENAI__API_KEY "
        "to one that may do this, and restart the workers."
    )


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    said = body.get("message") if isinstance(body, dict) else None
    return _scrub(error, str(said or error.response.reason_phrase or "no reason given"))


def _scrub(error: openai.APIError, message: str) -> str:
    key = error.request.headers.get("authorization", "").partition(" ")[2]
    return scrubbed(message, key)


def _code(error: Mapping[str, Any]) -> str:
    return str(error.get("code") or error.get("type") or "")


def endpoint(settings: OpenAISettings) -> str:
    """The endpoint as it is named in messages: no credentials."""
    return normalised_url(settings.base_url)
