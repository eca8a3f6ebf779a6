"""Webhooks: an application is told when its job has ended, and an operator of alerts, signed, again and again until it
was taken.

Signed by the scheme of Standard Webhooks (https://www.standardwebhooks.com), so that its libraries verify them too.
For an application: `verify`.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import ssl
import threading
import time
from collections.abc import Mapping
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import InvalidRequest, MillraceError, Unavailable, WebhookRejected
from pipeline.ledger import alerts, jobs, usage, webhooks
from pipeline.ledger.engine import Connection, Ledger
from pipeline.ledger.webhooks import Delivery
from pipeline.observe import count, logger, operation
from pipeline.settings import WebhookSettings, webhook_key
from pipeline.sources import guards
from pipeline.status import job_status

EVENT = "job.finished"
ID, TIMESTAMP, SIGNATURE = "webhook-id", "webhook-timestamp", "webhook-signature"
# A message whose time is further away than this is somebody's repetition of an old one.
TOLERANCE_SECONDS = 300.0

_MAX_URL = 2000
_PRIVATE = "MILLRACE_WEBHOOKS__PRIVATE"
# Deliveries of one process at one time. They wait for somebody else's server, not for us.
_THREADS = 8
# A delivery is held for so much longer than it may take.
_LEASE_MARGIN_SECONDS = 20.0
# How long a run of the duty waits for quick answers, and a process that ends for those under way.
_QUICK_SECONDS = 0.3
_LEAVE_SECONDS = 2.0
_ANSWER_BYTES = 300
_GONE = 410

_log = logger("webhooks")


# -- for applications ----------------------------------------------------------------------------------------------


def verify(headers: Mapping[str, str], body: bytes, secret: str) -> dict[str, Any]:
    """What a webhook says: `type`, "job.finished", and the job as `millrace job --json` shows it; or "alert.raised" or
    "alert.cleared", and the alert as `millrace alerts --json` shows it, under `alert`.

    headers: of the request, names in any case. body: as it came, before anything has read it as JSON. secret: the
    setting `webhooks.secret`. Raises WebhookRejected for what was not signed with it, or longer ago than five minutes;
    ValueError where the secret is none.
    """
    given = {name.lower(): value for name, value in headers.items()}
    missing = [name for name in (ID, TIMESTAMP, SIGNATURE) if name not in given]
    if missing:
        raise WebhookRejected(f"this is no webhook of ours: it has no header {', '.join(missing)}")
    try:
        sent = int(given[TIMESTAMP])
    except ValueError:
        raise WebhookRejected(f"the header {TIMESTAMP} is no time: {given[TIMESTAMP]!r:.40}") from None
    if abs(time.time() - sent) > TOLERANCE_SECONDS:
        raise WebhookRejected(f"this webhook was sent at {sent}, more than {TOLERANCE_SECONDS:g} seconds from now")
    right = signature(given[ID], sent, body, secret).encode()
    # The header may hold several, of a secret that is being replaced; each is compared in constant time.
    if not any(hmac.compare_digest(right, found.encode()) for found in given[SIGNATURE].split(" ")):
        raise WebhookRejected("the signature of this webhook was not made with this secret")
    content = json.loads(body)
    if not isinstance(content, dict):
        raise WebhookRejected("this webhook holds no JSON object")
    return content


def signature(message_id: str, timestamp: int, body: bytes, secret: str) -> str:
    """The `webhook-signature` of a message: `v1,` and the HMAC-SHA256 of `id.timestamp.body` in base64."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(webhook_key(secret), signed, sha256)).decode("ascii")


# -- where a job is enqueued ---------------------------------------------------------------------------------------


def check_url(url: str, settings: WebhookSettings) -> None:
    """Raises InvalidRequest where nothing can be delivered to this URL, or no secret is set to sign with."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidRequest(f"the webhook {url!r:.200} is not a URL: {error}") from None
    schemes = ("https", "http") if settings.private else ("https",)
    if parts.scheme not in schemes or not host:
        plain = f"; {_PRIVATE}=true allows http" if parts.scheme == "http" else ""
        raise InvalidRequest(f"a webhook is an https URL, not {url!r:.200}{plain}")
    if parts.username is not None or parts.password is not None:
        raise InvalidRequest("a webhook's URL holds no user or password; deliveries are signed instead")
    if parts.fragment or len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidRequest(
            f"a webhook's URL is of up to {_MAX_URL} printable ASCII characters, without a #fragment; not {url!r:.200}"
        )
    if not settings.private and (host == "localhost" or (_is_address(host) and not guards.is_public(host))):
        raise InvalidRequest(
            f"the webhook {url!r:.200} is at no public address; {_PRIVATE}=true allows private networks"
        )
    if not settings.secret.get_secret_value():
        raise InvalidRequest(
            "webhooks are signed, and no secret is set: give clients and workers the same MILLRACE_WEBHOOKS__SECRET "
            "(echo whsec_$(openssl rand -base64 32))"
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


# -- the duty ------------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """The endpoint did not take the message. status: of its answer, where it gave one."""

    def __init__(self, told: str, status: int | None = None) -> None:
        super().__init__(told)
        self.status = status


def _content(connection: Connection, delivery: Delivery) -> dict[str, Any]:
    """What is told: a job as it has ended, or an alert as it is now, under the event for which it is told."""
    if delivery.job_id is not None:
        job = jobs.get(connection, delivery.job_id)
        used = usage.of_jobs(connection, [job])[job.id]
        return {"type": EVENT, **job_status(job, jobs.errors(connection, job.id), None, used).to_json()}
    assert delivery.alert_id is not None
    alert = alerts.get(connection, delivery.alert_id)
    assert alert is not None, "its deliveries go with an alert"
    return {"type": f"alert.{delivery.event}", "alert": alert.to_json()}


class Deliverer:
    """Delivers what is due, in threads of its own: a slow endpoint holds up neither the others nor who calls `run`."""

    def __init__(self, ledger: Ledger, settings: WebhookSettings) -> None:
        self._ledger = ledger
        self._settings = settings
        self._lock = threading.Lock()
        self._under_way: set[threading.Thread] = set()
        self._told = {"delivered": 0, "failed": 0}
        self._tls: ssl.SSLContext | None = None

    def run(self, limit: int) -> dict[str, int]:
        """Begins up to `limit` deliveries that are due, as many as there are threads free, and waits a moment for the
        quick ones. Returns how many were delivered and failed since the last time, and what is under way and owed.

        Raises LedgerUnavailable.
        """
        with self._lock:
            free = _THREADS - len(self._under_way)
        if free > 0:
            with self._ledger.transaction() as connection:
                due = webhooks.claim(
                    connection,
                    min(free, limit),
                    self._settings.timeout + _LEASE_MARGIN_SECONDS,
                    self._settings.max_attempts,
                )
            for delivery in due:
                self._begin(delivery)
        under_way = self.wait(_QUICK_SECONDS)
        with self._ledger.transaction() as connection:
            owed = webhooks.counts(connection)
        with self._lock:
            told, self._told = self._told, dict.fromkeys(self._told, 0)
        return {**told, "under_way": under_way, **owed}

    def wait(self, seconds: float) -> int:
        """Waits for what is under way, so long at most. Returns how many deliveries still are."""
        deadline = time.monotonic() + seconds
        with self._lock:
            threads = list(self._under_way)
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            return len(self._under_way)

    def close(self) -> None:
        """Waits a little for what is under way; the lease of what is cut off runs out, and it is delivered again."""
        self.wait(_LEAVE_SECONDS)

    def _begin(self, delivery: Delivery) -> None:
        # Daemons: a process that is told to end does not wait for somebody's server.
        thread = threading.Thread(target=self._perform, args=(delivery,), name="webhook", daemon=True)
        with self._lock:
            self._under_way.add(thread)
        thread.start()

    def _perform(self, delivery: Delivery) -> None:
        taken = False
        try:
            with operation("webhook"):
                taken = self._attempt(delivery)
        except Unavailable as error:
            _log.warning("webhook of %s: %s", delivery.about, error)  # its lease runs out
        except Exception:  # noqa: BLE001 - nobody else would hear of it; its lease runs out, and it is tried again
            _log.exception("webhook of %s", delivery.about)
        finally:
            count("webhook_deliveries", 1, "delivered" if taken else "failed")
            with self._lock:
                self._told["delivered" if taken else "failed"] += 1
                self._under_way.discard(threading.current_thread())

    def _attempt(self, delivery: Delivery) -> bool:
        with self._ledger.transaction() as connection:
            content = _content(connection, delivery)
        body = json.dumps(content).encode()
        try:
            answer = self._post(delivery, body)
        except _Refused as error:
            gone = error.status == _GONE
            with self._ledger.transaction() as connection:
                webhooks.fail(connection, delivery, error.status, str(error), self._settings, gone=gone)
            _log.warning("webhook of %s, attempt %d: %s", delivery.about, delivery.attempts, error)
            return False
        with self._ledger.transaction() as connection:
            return webhooks.complete(connection, delivery, answer)

    def _post(self, delivery: Delivery, body: bytes) -> int:
        """The status of an answer that took it. Raises _Refused."""
        # Loaded with the first webhook: applications that only verify need no HTTP client.
        import httpx

        from pipeline.sources.transport import GuardedTransport

        secret = self._settings.secret.get_secret_value()
        if not secret:
            raise _Refused("this worker has no MILLRACE_WEBHOOKS__SECRET to sign with")
        sent = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "millrace-webhooks",
            ID: delivery.message_id,
            TIMESTAMP: str(sent),
            SIGNATURE: signature(delivery.message_id, sent, body, secret),
        }
        deadline = time.monotonic() + self._settings.timeout
        if self._tls is None:
            self._tls = httpx.create_ssl_context()  # reads every certificate that there is
        # Where alerts go is a setting, and no choice of whoever may enqueue: it may be beside the workers.
        private = self._settings.private or delivery.alert_id is not None
        transport = GuardedTransport(private, self._tls, deadline, _PRIVATE)
        try:
            # Redirects are not followed: they would lead past the checks, and the signature was made for this URL.
            with (
                httpx.Client(transport=transport, timeout=self._settings.timeout, follow_redirects=False) as client,
                client.stream("POST", delivery.url, content=body, headers=headers) as answer,
            ):
                if answer.is_success:
                    return answer.status_code
                said = next(answer.iter_bytes(_ANSWER_BYTES), b"").decode("utf-8", "replace").strip()
                raise _Refused(f"answered {answer.status_code} {said}".strip(), answer.status_code)
        except (httpx.HTTPError, httpx.InvalidURL, MillraceError, OSError) as error:
            raise _Refused(f"{type(error).__name__}: {error}") from error
