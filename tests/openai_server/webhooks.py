"""OpenAI's webhooks, as they are signed: Standard Webhooks with a secret `whsec_...`."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests, of 32 byte").decode()


def event(batch: str, kind: str = "batch.completed", secret: str = SECRET) -> tuple[dict[str, str], bytes]:
    """(headers, body) of what OpenAI posts when a batch has ended."""
    id_, at = "evt_" + secrets.token_hex(12), int(time.time())
    body = json.dumps({"id": id_, "object": "event", "created_at": at, "type": kind, "data": {"id": batch}}).encode()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = hmac.new(key, f"{id_}.{at}.".encode() + body, hashlib.sha256).digest()
    headers = {
        "webhook-id": id_,
        "webhook-timestamp": str(at),
        "webhook-signature": "v1," + base64.b64encode(signature).decode(),
        "content-type": "application/json",
    }
    return headers, body
