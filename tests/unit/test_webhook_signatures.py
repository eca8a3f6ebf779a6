"""What a webhook is signed with, who may take it for ours, and where it may be sent."""

from __future__ import annotations

import base64
import time

import pytest
from pydantic import SecretStr

from pipeline.errors import InvalidRequest, InvalidSettings, WebhookRejected
from pipeline.settings import WebhookSettings, load_settings
from pipeline.webhooks import check_url, signature, verify

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(range(1, 33))).decode()


def test_the_signature_of_the_specifications_example() -> None:
    # The example of the reference libraries' tests
    found = signature(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    )
    assert found == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_was_not_signed_by_us_is_rejected() -> None:
    body = b'{"type": "job.finished"}'
    now = int(time.time())
    headers = {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(now),
        "Webhook-Signature": f"v1,old v1a,other {signature('msg_1', now, body, SECRET)}",
    }
    assert verify(headers, body, SECRET) == {"type": "job.finished"}

    old = now - 400
    for changed, content, secret, told in (
        (headers, body + b" ", SECRET, "not made with this secret"),
        (headers, body, OTHER, "not made with this secret"),
        ({**headers, "Webhook-Id": "msg_2"}, body, SECRET, "not made with this secret"),
        ({**headers, "Webhook-Timestamp": str(now - 1)}, body, SECRET, "not made with this secret"),
        ({**headers, "Webhook-Timestamp": "soon"}, body, SECRET, "is no time"),
        (
            {**headers, "Webhook-Timestamp": str(old), "Webhook-Signature": signature("msg_1", old, body, SECRET)},
            body,
            SECRET,
            "more than 300 seconds",
        ),
        ({"webhook-id": "msg_1"}, body, SECRET, "no header webhook-timestamp, webhook-signature"),
    ):
        with pytest.raises(WebhookRejected, match=told):
            verify(changed, content, secret)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://example.org/x", "https URL.*MILLRACE_WEBHOOKS__PRIVATE=true allows http"),
        ("ftp://example.org/x", "https URL"),
        ("example.org", "https URL"),
        ("https:///x", "https URL"),
        ("https://user:secret@example.org/x", "holds no user or password"),
        ("https://example.org/x#y", "without a #fragment"),
        ("https://example.org/\u00e4", "ASCII"),
        ("https://example.org/ x", "ASCII"),
        ("https://example.org:port/x", "not a URL"),
        ("https://127.0.0.1/x", "no public address.*MILLRACE_WEBHOOKS__PRIVATE"),
        ("https://[::1]/x", "no public address"),
        ("https://169.254.169.254/latest/meta-data", "no public address"),
        ("https://localhost/x", "no public address"),
        ("https://example.org/" + "x" * 2000, "2000"),
    ],
)
def test_a_url_that_nothing_can_be_delivered_to_is_refused_where_the_job_is_enqueued(url: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        check_url(url, WebhookSettings(secret=SecretStr(SECRET)))


def test_a_secret_that_is_none_is_refused_by_name_and_not_shown() -> None:
    with pytest.raises(InvalidSettings, match=r"MILLRACE_WEBHOOKS__SECRET.*must be whsec_") as caught:
        load_settings(webhooks={"secret": "whsec_hunter2"})
    assert "hunter2" not in str(caught.value)
